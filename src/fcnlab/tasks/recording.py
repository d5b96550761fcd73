"""What a run was, how it ended, and all that it takes to repeat it: run.json, config.yaml and changes.diff."""

import json
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from fcnlab.config import components, plain
from fcnlab.errors import UserError, first_line
from fcnlab.launching.manifest import now
from fcnlab.results.reading import Unreadable, read_json, yaml_text
from fcnlab.results.record import aside
from fcnlab.results.runs import leaves
from fcnlab.signals import Interrupted
from fcnlab.tasks.building import say, warn
from fcnlab.tasks.fingerprint import fingerprint
from fcnlab.tasks.scoring import PACKAGES, command, commit, git

# What older records name, and what does the same today.
RENAMED = {"lightning.pytorch.callbacks.TQDMProgressBar": "fcnlab.callbacks.Progress"}


class RunRecord:
    """run.json: written when the run begins, and again when it ends; a resumed run goes on with the same file.

    ``status`` is "running", "finished", "interrupted" (a signal) or "failed" (an error). A run that was killed still
    says "running", since nobody was left to say otherwise.
    """

    def __init__(self, folder: Path):
        self.path = folder / "run.json"
        self.facts: dict[str, Any] = {}
        try:
            self.facts = read_json(folder, self.path.name) or {}
        except Unreadable as error:
            warn(f"{folder}: {error}: it is begun anew")

    @rank_zero_only
    def write(self, **facts: Any) -> None:
        self.facts |= facts
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with aside(self.path) as path:
            path.write_text(json.dumps(self.facts, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def recorded(cfg: DictConfig, folder: Path, record: RunRecord, **facts: Any) -> Iterator[None]:
    """Leave the record of a run, whatever becomes of it; a signal that comes before it is begun leaves none.

    ``facts`` are further ones that are known when it begins.
    """
    beginning = _beginning(cfg, record) | facts
    try:
        record.write(**beginning)
        _write(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        _write(folder / "changes.diff", uncommitted_changes())
        _write_hydra(cfg, folder / ".hydra")
        yield
        record.write(status="finished", reason=None, ended=now())
    except Interrupted as stop:
        record.write(status="interrupted", reason=str(stop), ended=now())
        raise
    except BaseException as error:
        record.write(status="failed", reason=f"{type(error).__name__}: {first_line(error)}", ended=now())
        raise


def _write_hydra(cfg: DictConfig, folder: Path) -> None:
    """What Hydra writes of a run, but not before it is sure that the run begins.

    Hydra itself would put a command that is refused, such as another network for a run that resumes, into its record.
    """
    _write(folder / "config.yaml", OmegaConf.to_yaml(cfg))
    _write(folder / "hydra.yaml", OmegaConf.to_yaml(HydraConfig.instance().cfg))
    _write(folder / "overrides.yaml", OmegaConf.to_yaml(HydraConfig.get().overrides.task))


def _beginning(cfg: DictConfig, record: RunRecord) -> dict[str, Any]:
    """What is known of a run when it begins, or goes on."""
    kept = ("started", "status", "command", "commit", "source")
    before = {key: record.facts[key] for key in kept if key in record.facts}
    return {
        "earlier": [*record.facts.get("earlier", []), *([before] if before else [])],
        "status": "running",
        "reason": None,
        "verb": HydraConfig.get().job.config_name,
        "command": command(),
        "overrides": list(HydraConfig.get().overrides.task),
        "started": now(),
        "ended": None,
        "starts": record.facts.get("starts", 0) + 1,
        "commit": commit(),
        "source": fingerprint(plain(cfg)),
        "host": platform.node(),
        "python": platform.python_version(),
        "packages": _packages(),
    }


def _packages() -> dict[str, str]:
    """Versions by name of all that is installed; of two that bear a name, the one that is imported."""
    found = [each.metadata for each in metadata.distributions()]  # once each: it parses a whole README
    versions = {each["Name"]: each["Version"] for each in reversed(found)}
    return dict(sorted(versions.items()))


@rank_zero_only
def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as part:
        part.write_text(text)


def repeat_exactly(cfg: DictConfig) -> None:
    """Where ``from_run`` repeats a record: give ``cfg`` the recorded values of settings whose defaults have changed.

    Settings that were typed for this run are left alone.

    Raises
    ------
    UserError
        A recorded value would run code that today's configuration does not name.
    """
    if not cfg.from_run:
        return
    folder = Path(cfg.from_run)
    record, then = RunRecord(folder).facts, recorded_config(folder, f"from_run={cfg.from_run}")
    words = HydraConfig.get().overrides.task
    typed = {word.partition("=")[0].lstrip("+~").replace("/", ".") for word in words if word not in record["overrides"]}
    recorded, today = (leaves(OmegaConf.to_container(tree, resolve=False)) for tree in (then, cfg))
    ours = {path for path in recorded | today if is_under(path, typed | {"from_run", "checkpoint", "sweep"})}
    for path, value in recorded.items():
        value = RENAMED.get(str(value), value)
        if path not in ours and (path not in today or today[path] != value):
            _check_harmless(path, value, folder)
            OmegaConf.update(cfg, path, value, force_add=True)
            say(f"Since that run the default of {path} has become {today.get(path)!r}: its {value!r} is used")
    for path in today.keys() - recorded.keys() - ours:
        if not is_under(path, set(recorded)):  # else a value of that run stands in its group's place
            warn(f"{path}={today[path]!r} is new since that run")
    if any(word.startswith("checkpoint=") for word in record["overrides"]):
        warn("that run went on with a checkpoint; this one starts from the beginning")
    for name, version in record["packages"].items():
        if name in PACKAGES and metadata.version(name) != version:
            warn(f"that run had {name} {version}, here is {metadata.version(name)}")
    if record["commit"] != commit():
        warn(f"that run was of commit {record['commit']}, this is {commit()}")


def recorded_config(folder: Path, asked: str) -> DictConfig:
    """What a run was set to, by its record.

    Raises
    ------
    UserError
        There is no such record, or it is damaged or over a limit.
    """
    name = ".hydra/config.yaml"
    try:
        text = yaml_text(folder, name)
    except (OSError, Unreadable) as error:
        raise UserError(f"{asked}: the record in {folder} cannot be used: {first_line(error)}") from error
    found = OmegaConf.create(text or "{}")
    if not text or not isinstance(found, DictConfig):
        raise UserError(f"{asked}: {folder / name} is missing, or no configuration")
    return found


def is_under(path: str, keys: set[str]) -> bool:
    """Whether a setting is one of these, or inside one of them."""
    return any(path == key or path.startswith(f"{key}.") for key in keys)


def _check_harmless(path: str, value: Any, folder: Path) -> None:
    """Refuse values that would call code or read the environment; today's conf/ names all that a run needs."""
    named = list(components({path: value}))
    if named or "_target_" in path or not re.fullmatch(r"[\w.]+", path) or "${oc." in str(value):
        raise UserError(f"from_run={folder} wants {path}={value!r}, which today's conf/ does not; refused")


def uncommitted_changes() -> str:
    """How fcnlab's checkout differs from its commit; empty where it does not, or where there is no checkout."""
    return git("diff", "HEAD", "--no-color", "--no-ext-diff", "--", ":/") or ""
