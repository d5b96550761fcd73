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

from fcnlab.config.components import to_plain
from fcnlab.config.overrides import config_dir, plain_overrides
from fcnlab.errors import UserError, first_line
from fcnlab.files.reading import Unreadable, read_json, yaml_text
from fcnlab.files.writing import as_json, atomic_write, timestamp
from fcnlab.messages import log_warning
from fcnlab.runs.provenance import command, commit, git
from fcnlab.runs.run_folder import DAMAGED, RunFolder, rename_damaged
from fcnlab.runs.score_record import ID
from fcnlab.runs.source_fingerprint import source_fingerprints
from fcnlab.signals import Interrupted

SECRET = re.compile(  # a file's name, or one of the folders above it, in small letters
    r"\.env(\..*)?|.*\.env|\.?(netrc|pgpass|pypirc|npmrc|htpasswd|git-credentials|dockercfg)|_netrc"
    r"|.*\.(pem|key|p12|pfx|jks|keystore|kdbx|ppk|gpg|asc)|id_(rsa|dsa|ecdsa|ed25519)(\..*)?"
    r"|.*(secret|credential|passwd|password|api_?key|access_?token|private_?key).*|\.(ssh|aws|gnupg|kube|docker)"
    r"|tokens?(\.\w+)?|.*service[-_]account.*\.json"
)


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
            log_warning(f"{folder}: {error}: it is kept as {self.path.name}{DAMAGED}, and a new one begun")

    @property
    def is_new(self) -> bool:
        """Whether there was no record of a run yet."""
        return not self.facts and not self.damaged

    @rank_zero_only
    def write(self, **facts: Any) -> None:
        self.facts |= facts
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.damaged:
            rename_damaged(self.path)
            self.damaged = False
        with atomic_write(self.path) as path:
            path.write_text(as_json(self.facts), encoding="utf-8")


@contextmanager
def record_run(cfg: DictConfig, folder: RunFolder, record: RunRecord, **facts: Any) -> Iterator[Callable[[], None]]:
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
        record.write(status="finished", reason=None, ended=timestamp())
    except BaseException as error:
        if begun:
            with suppress(OSError):  # the first error is the one to show
                record.write(**_end(error), ended=timestamp())
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
        "overrides": plain_overrides(HydraConfig.get().overrides.task),
        "config_dir": config_dir(HydraConfig.get()),  # shown, never used: it can name any code
        "started": timestamp(),
        "ended": None,
        "starts": record.facts.get("starts", 0) + 1,
        "commit": commit(),
        "source": source_fingerprints(to_plain(cfg)),
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
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


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
