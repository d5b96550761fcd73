"""What a run was, how it ended, and all that it takes to repeat it: run.json, config.yaml and changes.diff."""

import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fcnlab.config import components, plain
from fcnlab.errors import UserError, first_line
from fcnlab.launching import as_typed, config_dir, key_of
from fcnlab.launching.manifest import now
from fcnlab.results.reading import Unreadable, read_json, yaml_text
from fcnlab.results.record import ID, as_json, aside
from fcnlab.results.settings import leaves
from fcnlab.signals import Interrupted
from fcnlab.tasks.building import PRECISIONS, precision, say, warn
from fcnlab.tasks.fingerprint import fingerprint
from fcnlab.tasks.run_folder import DAMAGED, RunFolder, set_aside
from fcnlab.tasks.scoring import PACKAGES, command, commit, git
from fcnlab.trust import WRITTEN_TO, why_not_set

SECRET = re.compile(  # a file's name, or one of the folders above it, in small letters
    r"\.env(\..*)?|.*\.env|\.?(netrc|pgpass|pypirc|npmrc|htpasswd|git-credentials|dockercfg)|_netrc"
    r"|.*\.(pem|key|p12|pfx|jks|keystore|kdbx|ppk|gpg|asc)|id_(rsa|dsa|ecdsa|ed25519)(\..*)?"
    r"|.*(secret|credential|passwd|password|api_?key|access_?token|private_?key).*|\.(ssh|aws|gnupg|kube|docker)"
    r"|tokens?(\.\w+)?|.*service[-_]account.*\.json"
)
PRECISION = "trainer.precision"
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
        self.damaged = False
        try:
            self.facts = _checked(read_json(folder, self.path.name) or {})
        except Unreadable as error:
            self.damaged = True
            warn(f"{folder}: {error}: it is kept as {self.path.name}{DAMAGED}, and a new one begun")

    @property
    def is_new(self) -> bool:
        """Whether there was no record of a run yet."""
        return not self.facts and not self.damaged

    @rank_zero_only
    def write(self, **facts: Any) -> None:
        self.facts |= facts
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.damaged:
            set_aside(self.path)
            self.damaged = False
        with aside(self.path) as path:
            path.write_text(as_json(self.facts), encoding="utf-8")


@contextmanager
def recorded(cfg: DictConfig, folder: RunFolder, record: RunRecord, **facts: Any) -> Iterator[Callable[[], None]]:
    """Leave the record of a run, whatever becomes of it once it has begun: give the function that begins it.

    What ends before that, a refused command or a signal, leaves the record as it was. ``facts`` are further ones that
    are known when it begins.
    """
    beginning = _beginning(cfg, record) | facts
    begun = False

    def begin() -> None:
        nonlocal begun
        if not begun:
            folder.accept(cfg)
            begun = True
            record.write(**beginning)
            _write(folder.path / "changes.diff", uncommitted_changes())
        _write(folder.path / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))  # with what was decided since

    try:
        yield begin
        record.write(status="finished", reason=None, ended=now())
    except BaseException as error:
        if begun:
            with suppress(OSError):  # the first error is the one to show
                record.write(**_end(error), ended=now())
        raise


def _end(error: BaseException) -> dict[str, str]:
    """How a run ended that an error ended."""
    if isinstance(error, Interrupted):
        return {"status": "interrupted", "reason": str(error)}
    return {"status": "failed", "reason": f"{type(error).__name__}: {first_line(error)}"}


def _checked(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a record, if those that a resumed run goes on with are of their types."""
    starts = facts.get("starts", 0)
    if not isinstance(facts.get("earlier", []), list) or type(starts) is not int:
        raise Unreadable("run.json is not one of fcnlab's: its earlier or its starts is none")
    for name in ("id", "wandb"):
        if facts.get(name) is not None and not ID.fullmatch(str(facts[name])):
            raise Unreadable(f"run.json is not one of fcnlab's: its {name} is none")
    return facts


def _beginning(cfg: DictConfig, record: RunRecord) -> dict[str, Any]:
    """What is known of a run when it begins, or goes on."""
    kept = ("started", "status", "command", "commit", "source")
    before = {key: record.facts[key] for key in kept if key in record.facts}
    return {
        "earlier": [*record.facts.get("earlier", []), *([before] if before else [])],
        "id": record.facts.get("id") or uuid4().hex[:12],
        "status": "running",
        "reason": None,
        "verb": HydraConfig.get().job.config_name,
        "command": command(),
        "overrides": as_typed(HydraConfig.get().overrides.task),
        "config_dir": config_dir(HydraConfig.get()),  # shown, never used: it can name any code
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
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def repeat_exactly(cfg: DictConfig) -> None:
    """Where ``from_run`` repeats a record: give ``cfg`` the recorded values of settings whose defaults have changed.

    Settings that were typed for this run are left alone.

    Raises
    ------
    UserError
        There is no such record; a recorded value is none that a record may set.
    """
    if not cfg.from_run:
        return
    folder = Path(cfg.from_run)
    record, then = RunRecord(folder).facts, recorded_config(folder, f"from_run={cfg.from_run}")
    words = as_typed(HydraConfig.get().overrides.task)
    typed = {key_of(word).replace("/", ".") for word in words if word not in record["overrides"]}
    recorded, today = (leaves(OmegaConf.to_container(tree, resolve=False)) for tree in (then, cfg))
    ours = {path for path in recorded | today if is_under(path, typed | {"from_run", "checkpoint", "sweep"})}
    if PRECISION not in ours:
        _repeat_precision(cfg, folder)
        ours.add(PRECISION)
    for path, value in recorded.items():
        value = RENAMED.get(str(value), value)
        where_to = path.rpartition(".")[2] in WRITTEN_TO  # which is today's business
        if path not in ours and not where_to and (path not in today or today[path] != value):
            _check_harmless(path, value, folder)
            OmegaConf.update(cfg, path, value, force_add=True)
            if path.startswith("data.") and "data.root" not in typed:
                cfg.sweep.recorded = True
            say(f"Since that run the default of {path} has become {today.get(path)!r}: its {value!r} is used")
    for path in today.keys() - recorded.keys() - ours:
        if not is_under(path, set(recorded)):  # else a value of that run stands in its group's place
            warn(f"{path}={today[path]!r} is new since that run")
    if any(key_of(word) == "checkpoint" for word in record["overrides"]):
        warn("that run went on with a checkpoint; this one starts from the beginning")
    then_had = record.get("packages")
    for name, version in then_had.items() if isinstance(then_had, dict) else ():
        if name in PACKAGES and metadata.version(name) != version:
            warn(f"that run had {name} {version}, here is {metadata.version(name)}")
    if record.get("commit") != commit():
        warn(f"that run was of commit {record.get('commit')}, this is {commit()}")


def _repeat_precision(cfg: DictConfig, folder: Path) -> None:
    """Compute in what the run computed in, whatever was typed for it: ``auto`` and ``fastest`` may be another here."""
    if not (folder / "config.yaml").is_file():
        return
    used = leaves(plain(recorded_config(folder, f"from_run={folder}", "config.yaml"))).get(PRECISION)
    if used in PRECISIONS and used != precision(cfg):
        say(f"That run computed in trainer.precision={used}: so does this one")
        cfg.trainer.precision = used


def recorded_config(folder: Path, asked: str, name: str = ".hydra/config.yaml") -> DictConfig:
    """What a run was set to, by its record.

    Raises
    ------
    UserError
        There is no such record, or it is damaged or over a limit.
    """
    try:
        text = yaml_text(folder, name)
        found = OmegaConf.create(text or "{}")
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{asked}: the record in {folder} cannot be used: {first_line(error)}") from error
    if not text or not isinstance(found, DictConfig):
        raise UserError(f"{asked}: {folder / name} is missing, or no configuration")
    return found


def is_under(path: str, keys: set[str]) -> bool:
    """Whether a setting is one of these, or inside one of them."""
    return any(path == key or path.startswith(f"{key}.") for key in keys)


def _check_harmless(path: str, value: Any, folder: Path) -> None:
    """Refuse what no record may set, and interpolations that today's configuration does not have in this place."""
    foreign = next(components({path: value}), None) is not None or "$" in f"{path}{value}"
    leaves_of = value if isinstance(value, list) else [value]
    why = next(filter(None, (why_not_set(path, leaf) for leaf in leaves_of if not isinstance(leaf, list | dict))), "")
    if foreign or why or why_not_set(path, None):
        raise UserError(
            f"from_run={folder} wants {path}={value!r:.200}, which today's conf/ does not; refused"
            f"{f': {why}' if why else ''}. Type {path}=VALUE behind it"
        )


def uncommitted_changes() -> str:
    """How fcnlab's checkout differs from its commit; empty where it does not, or where there is no checkout.

    A record is shown to others, so files that look like secrets are left out, and named before the changes, where
    ``git apply`` passes them over.
    """
    names = (git("diff", "HEAD", "--name-only", "--no-renames", "-z", "--", ":/") or "").split("\0")
    secret = [name for name in names if looks_secret(name)]
    left_out = "".join(f"left out, since it may hold a secret: {name!r}\n" for name in secret)
    others = [f":(top,literal,exclude){name}" for name in secret]
    return left_out + (git("diff", "HEAD", "--no-color", "--no-ext-diff", "--", ":/", *others) or "")


def looks_secret(name: str) -> bool:
    """Whether a file's path is one by which keys, passwords and tokens are kept."""
    return any(SECRET.fullmatch(part) for part in name.lower().split("/"))
