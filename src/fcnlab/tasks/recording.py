"""What a run was, how it ended, and all that it takes to repeat it: run.json, config.yaml and changes.diff."""

import json
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from fcnlab.callbacks import Interrupted
from fcnlab.errors import UserError
from fcnlab.results.record import aside
from fcnlab.tasks.building import say, warn
from fcnlab.tasks.scoring import PACKAGES, command, commit


class RunRecord:
    """run.json: written when the run begins, and again when it ends; a resumed run goes on with the same file.

    ``status`` is "running", "finished", "interrupted" (a signal) or "failed" (an error). A run that was killed still
    says "running", since nobody was left to say otherwise.
    """

    def __init__(self, folder: Path):
        self.path = folder / "run.json"
        self.facts: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    @rank_zero_only
    def write(self, **facts: Any) -> None:
        self.facts |= facts
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with aside(self.path) as path:
            path.write_text(json.dumps(self.facts, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def recorded(cfg: DictConfig, folder: Path) -> Iterator[RunRecord]:
    """Leave the record of a run, whatever becomes of it."""
    record = RunRecord(folder)
    try:
        _begin(record, cfg, folder)
        yield record
    except Interrupted as stop:
        record.write(status="interrupted", reason=str(stop), ended=_now())
        raise
    except BaseException as error:
        record.write(status="failed", reason=f"{type(error).__name__}: {error}".splitlines()[0], ended=_now())
        raise
    record.write(status="finished", reason=None, ended=_now())


def _begin(record: RunRecord, cfg: DictConfig, folder: Path) -> None:
    record.write(
        status="running",
        reason=None,
        verb=HydraConfig.get().job.config_name,
        command=command(),
        overrides=list(HydraConfig.get().overrides.task),
        started=_now(),
        ended=None,
        starts=record.facts.get("starts", 0) + 1,
        commit=commit(),
        host=platform.node(),
        python=platform.python_version(),
        packages={found.name: found.version for found in sorted(metadata.distributions(), key=lambda d: d.name)},
    )
    _write(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    _write(folder / "changes.diff", uncommitted_changes())


@rank_zero_only
def _write(path: Path, text: str) -> None:
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
    record, then = RunRecord(folder).facts, OmegaConf.load(folder / ".hydra" / "config.yaml")
    typed = tuple(
        word.partition("=")[0].lstrip("+~").replace("/", ".")
        for word in HydraConfig.get().overrides.task
        if word not in record["overrides"]
    )
    recorded, today = (_leaves(OmegaConf.to_container(tree, resolve=False)) for tree in (then, cfg))
    for path, value in recorded.items():
        ours = any(path == key or path.startswith(f"{key}.") for key in (*typed, "from_run", "checkpoint"))
        if ours or (path in today and today[path] == value):
            continue
        if path.endswith("_target_") or "${oc." in str(value):
            raise UserError(f"from_run={folder} wants {path}={value!r}, which today's conf/ does not; refused")
        OmegaConf.update(cfg, path, value, force_add=True)
        say(f"Since that run the default of {path} has become {today.get(path)!r}: its {value!r} is used")
    for name, version in record["packages"].items():
        if name in PACKAGES and metadata.version(name) != version:
            warn(f"that run had {name} {version}, here is {metadata.version(name)}")
    if record["commit"] != commit():
        warn(f"that run was of commit {record['commit']}, this is {commit()}")


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Every value of a tree by its dotted path; lists count as values."""
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    inside = [_leaves(value, f"{path}.{key}" if path else str(key)) for key, value in tree.items()]
    return {name: value for leaves in inside for name, value in leaves.items()}


def uncommitted_changes() -> str:
    """How fcnlab's checkout differs from its commit; empty where it does not, or where there is no checkout."""
    here = Path(__file__).parent
    differ = ["git", "-C", str(here), "diff", "HEAD", "--no-color", "--no-ext-diff"]
    try:
        done = subprocess.run(differ, capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
