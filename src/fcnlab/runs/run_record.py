"""Write and read the record of a run, which allows to repeat it: run.json, config.yaml and changes.diff."""

import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fcnlab.config.components import to_plain
from fcnlab.config.run_context import RunContext
from fcnlab.errors import UserError, first_line
from fcnlab.files.reading import Unreadable, read_json, yaml_text
from fcnlab.files.writing import as_json, atomic_write, timestamp
from fcnlab.messages import log_warning
from fcnlab.runs.provenance import command, commit, git, used_plugins
from fcnlab.runs.run_folder import DAMAGED, RunFolder, rename_damaged
from fcnlab.runs.score_record import ID
from fcnlab.runs.source_fingerprint import source_fingerprints
from fcnlab.signals import Interrupted

SECRET = re.compile(  # a file name or a parent folder, in lower case
    r"\.env(\..*)?|.*\.env|\.?(netrc|pgpass|pypirc|npmrc|htpasswd|git-credentials|dockercfg)|_netrc"
    r"|.*\.(pem|key|p12|pfx|jks|keystore|kdbx|ppk|gpg|asc)|id_(rsa|dsa|ecdsa|ed25519)(\..*)?"
    r"|.*(secret|credential|passwd|password|api_?key|access_?token|private_?key).*|\.(ssh|aws|gnupg|kube|docker)"
    r"|tokens?(\.\w+)?|.*service[-_]account.*\.json"
)


class RunRecord:
    """run.json: written at the start and at the end of a run; a resumed run continues the same file.

    ``status`` is "running", "finished", "interrupted" (by a signal) or "failed" (by an error). A killed run keeps the
    status "running".
    """

    def __init__(self, folder: Path):
        self.path = folder / "run.json"
        self.facts: dict[str, Any] = {}
        self.damaged = False
        try:
            self.facts = _checked(read_json(folder, self.path.name) or {})
        except Unreadable as error:
            self.damaged = True
            log_warning(f"{folder}: {error}. The file is kept as {self.path.name}{DAMAGED}, and a new one is started")

    @property
    def is_new(self) -> bool:
        """Whether there is no record yet."""
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
    """Record the start and the end of a run, however it ends; yield the function that starts the record.

    Before that call, a refused command or a signal leaves an existing record unchanged. ``facts`` are further entries
    for the start.
    """
    beginning = _beginning(cfg, folder.context, record) | facts
    begun = False

    def begin() -> None:
        nonlocal begun
        if not begun:
            folder.accept(cfg)
            begun = True
            record.write(**beginning)
            _write(folder.path / "changes.diff", uncommitted_changes())
        _write(folder.path / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))  # with values decided since the start

    try:
        yield begin
        record.write(status="finished", reason=None, ended=timestamp())
    except BaseException as error:
        if begun:
            with suppress(OSError):  # report the first error
                record.write(**_end(error), ended=timestamp())
        raise


def _end(error: BaseException) -> dict[str, str]:
    """Return the status of a run that ended by an error."""
    if isinstance(error, Interrupted):
        return {"status": "interrupted", "reason": str(error)}
    return {"status": "failed", "reason": f"{type(error).__name__}: {first_line(error)}"}


def _checked(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a record after checking the types of those that a resumed run uses."""
    starts = facts.get("starts", 0)
    if not isinstance(facts.get("earlier", []), list) or type(starts) is not int:
        raise Unreadable("run.json was not written by fcnlab: its earlier or starts entry is invalid")
    for name in ("id", "wandb"):
        if facts.get(name) is not None and not ID.fullmatch(str(facts[name])):
            raise Unreadable(f"run.json was not written by fcnlab: its {name} entry is invalid")
    return facts


def _beginning(cfg: DictConfig, context: RunContext, record: RunRecord) -> dict[str, Any]:
    """Return the facts at the start or at a resume of a run."""
    kept = ("started", "status", "command", "commit", "source")
    before = {key: record.facts[key] for key in kept if key in record.facts}
    return {
        "earlier": [*record.facts.get("earlier", []), *([before] if before else [])],
        "id": record.facts.get("id") or uuid4().hex[:12],
        "status": "running",
        "reason": None,
        "verb": context.verb,
        "command": command(context),
        "overrides": list(context.overrides),
        "config_dir": context.config_dir,  # for information only: it can name any code
        "started": timestamp(),
        "ended": None,
        "starts": record.facts.get("starts", 0) + 1,
        "commit": commit(),
        "source": source_fingerprints(to_plain(cfg)),
        "plugins": used_plugins(context, to_plain(cfg)),
        "host": platform.node(),
        "python": platform.python_version(),
        "packages": _packages(),
    }


def _packages() -> dict[str, str]:
    """Return the versions of all installed packages; of two with the same name, the imported one."""
    packages = [each.metadata for each in metadata.distributions()]  # once each, because it parses a whole README
    versions = {each["Name"]: each["Version"] for each in reversed(packages)}
    return dict(sorted(versions.items()))


@rank_zero_only
def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def recorded_config(folder: Path, argument: str, name: str = ".hydra/config.yaml") -> DictConfig:
    """Return the config that a run recorded.

    Raises
    ------
    UserError
        The record is missing, damaged or over a limit.
    """
    try:
        text = yaml_text(folder, name)
        config = OmegaConf.create(text or "{}")
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{argument}: the record in {folder} cannot be used: {first_line(error)}") from error
    if not text or not isinstance(config, DictConfig):
        raise UserError(f"{argument}: {folder / name} is missing or contains no configuration")
    return config


def is_under(path: str, keys: set[str]) -> bool:
    """Return whether a setting is one of the keys, or below one of them."""
    return any(path == key or path.startswith(f"{key}.") for key in keys)


def uncommitted_changes() -> str:
    """Return the diff of fcnlab's checkout against its commit; empty without changes or outside a checkout.

    Records are shared, so files that look like secrets are excluded and listed before the diff, where ``git apply``
    ignores them.
    """
    names = (git("diff", "HEAD", "--name-only", "--no-renames", "-z", "--", ":/") or "").split("\0")
    secret = [name for name in names if looks_secret(name)]
    left_out = "".join(f"excluded, because it may contain a secret: {name!r}\n" for name in secret)
    exclusions = [f":(top,literal,exclude){name}" for name in secret]
    return left_out + (git("diff", "HEAD", "--no-color", "--no-ext-diff", "--", ":/", *exclusions) or "")


def looks_secret(name: str) -> bool:
    """Return whether the path of a file is typical of keys, passwords or tokens."""
    return any(SECRET.fullmatch(part) for part in name.lower().split("/"))
