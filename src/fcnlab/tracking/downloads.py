"""Checkpoints in W&B artifacts: ``checkpoint=wandb:ENTITY/PROJECT/NAME:ALIAS`` is downloaded and read like a file.

Only addresses that the user types get here: a record from elsewhere must not contain one (:mod:`fcnlab.config.trust`).
"""

import re
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from fcnlab.config.trust import ARTIFACT_PREFIX
from fcnlab.data.locks import exclusive_lock
from fcnlab.errors import UserError, first_line
from fcnlab.library_internals.wandb import has_digest
from fcnlab.messages import log_info
from fcnlab.tracking.bounded_calls import within
from fcnlab.tracking.folders import download_folder
from fcnlab.tracking.server import check_server

ADDRESS = re.compile(
    r"wandb:(?P<entity>[\w-]{1,128})/(?P<project>[^/\\#?%:\x00-\x1f\x7f]{1,128})/(?P<name>[\w.-]{1,128}):(?P<alias>[\w.-]{1,128})",
    re.ASCII,
)
FILE_NAME = re.compile(r"\w[\w.=-]{0,100}\.ckpt", re.ASCII)
LOOKUP_TIMEOUT = 20.0  # seconds
MAX_BYTES = 16 << 30  # of a checkpoint: a ResNet-101's with two values per weight of its optimiser has 0.7e9
FREE_BYTES = 100 << 20  # that a download leaves on the disk


class CheckpointFile(NamedTuple):
    """A local checkpoint, and the facts of the artifact that it comes from, for the record (None for a usual file).

    The facts are ``artifact`` (``ENTITY/PROJECT/NAME:VERSION``), ``digest`` (W&B's, of the whole artifact) and
    ``file`` (its name in the artifact).
    """

    path: Path
    artifact: Mapping[str, str] | None = None


def checkpoint_file(checkpoint: str | Path) -> CheckpointFile:
    """Return the local file of a path or of a ``wandb:`` address; only the latter uses the network.

    Raises
    ------
    UserError
        The address is not valid, W&B cannot be asked, it has no such artifact, or the artifact does not contain one
        checkpoint of an allowed size.
    """
    if not str(checkpoint).startswith(ARTIFACT_PREFIX):
        return CheckpointFile(Path(checkpoint))
    try:
        return _downloaded(str(checkpoint))
    except UserError as error:
        raise UserError(f"checkpoint={checkpoint}: {error}") from error


def _downloaded(address: str) -> CheckpointFile:
    if not ADDRESS.fullmatch(address):
        raise UserError(
            "this is not the address of an artifact in W&B. It must be wandb:ENTITY/PROJECT/NAME:ALIAS, such as"
            " wandb:team/fcnlab/checkpoint-1a2b3c4d:best"
        )
    check_server()
    artifact, entry = _looked_up(address.removeprefix(ARTIFACT_PREFIX))
    folder = download_folder() / sha256(str(entry.digest).encode()).hexdigest()[:32]
    _check_size(entry, folder.parent)
    path = folder / str(entry.path)
    try:
        with exclusive_lock(folder.with_suffix(".lock"), "downloads this checkpoint"):
            if not (path.is_file() and has_digest(entry, path)):
                log_info(f"Downloading {artifact.source_qualified_name} ({entry.size / 1e6:.1f} MB) to {path}")
                _download(entry, path)
    except OSError as error:
        raise UserError(f"the download failed ({first_line(error)}). Type the command again") from error
    facts = {
        "artifact": str(artifact.source_qualified_name),
        "digest": str(artifact.digest),
        "file": str(entry.path),
    }
    return CheckpointFile(path, facts)


def _looked_up(name: str) -> tuple[Any, Any]:
    """Return an artifact and the entry of its checkpoint."""
    import wandb

    def look_up() -> tuple[Any, list[str]]:
        artifact = wandb.Api(timeout=int(LOOKUP_TIMEOUT)).artifact(name)
        return artifact, [str(path) for path in artifact.manifest.entries]

    try:
        artifact, paths = within(LOOKUP_TIMEOUT, look_up)
    except Exception as error:  # errors of the server, of the network and of the answer have no common type
        raise UserError(
            "the artifact was not found in W&B, or this key must not read it"
            f" ({first_line(error)}). Copy its full name from the artifact's page"
        ) from error
    checkpoints = [path for path in paths if path.endswith(".ckpt")]
    if len(checkpoints) != 1:
        raise UserError(f"the artifact must contain one checkpoint (*.ckpt), got {len(checkpoints)}")
    if not FILE_NAME.fullmatch(checkpoints[0]):
        raise UserError("the name of the artifact's checkpoint must consist of letters, digits and _ . = -")
    entry = artifact.get_entry(checkpoints[0])
    if entry.ref is not None:
        raise UserError("the artifact only refers to a file elsewhere, and fcnlab follows no such references")
    return artifact, entry


def _check_size(entry: Any, folder: Path) -> None:
    size = entry.size
    if type(size) is not int or not 0 < size <= MAX_BYTES:
        raise UserError(f"the artifact's checkpoint must have at most {MAX_BYTES / 1e9:.0f} GB, got {size} bytes")
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size + FREE_BYTES > free:
        raise UserError(
            f"the artifact's checkpoint has {size / 1e6:.0f} MB, but {folder} has only {free / 1e6:.0f} MB of free"
            " space. Free some, or set WANDB_CACHE_DIR to another folder"
        )


def _download(entry: Any, path: Path) -> None:
    """Download the file of an entry; remove it if it is incomplete or another one."""
    path.unlink(missing_ok=True)  # W&B keeps a file of this size, whatever it contains
    try:
        entry.download(root=str(path.parent), skip_cache=True)
    except Exception as error:  # as above
        raise UserError(f"the download failed ({first_line(error)}). Type the command again") from error
    if path.stat().st_size != entry.size or not has_digest(entry, path):
        path.unlink()
        raise UserError("the downloaded file is not the one that the artifact declares. Type the command again")
