"""W&B's folders for data, cache and temporary files: writable ones, from which killed runs leave nothing."""

import atexit
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from fcnlab.data.temporary_folders import held_folder, remove_leftovers
from fcnlab.errors import UserError

TEMPORARY_PREFIX = "fcnlab-wandb-"  # of the folder for W&B's temporary folders
REQUIRED_SPACE = 1 << 20  # bytes


def import_wandb() -> None:
    """Import W&B, which creates temporary folders."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # reports to W&B's makers, which may hold up the exit
    if "wandb" not in sys.modules:
        with temporary_files_in_own_folder():
            import wandb  # noqa: F401


def set_folders(folder: Path) -> None:
    """Set W&B's data and cache folders: the usual ones if they are writable, otherwise subfolders of ``folder``.

    They are always set: without HOME, W&B's process finds no place for its log and writes it to the terminal.
    """
    for variable, usual in _usual_folders():
        os.environ[variable] = str(usual if _is_writable(usual) else folder / variable.lower())


@cache
def _usual_folders() -> tuple[tuple[str, Path], ...]:
    """Return W&B's data and cache folders by environment variable, as the user has set them."""
    from wandb import env

    return (env.DATA_DIR, Path(env.get_data_dir())), (env.CACHE_DIR, env.get_cache_dir())


def _is_writable(folder: Path) -> bool:
    """Return whether a small file can be written to a folder: neither read-only nor full."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(REQUIRED_SPACE))
    except OSError:
        return False
    return True


@cache
def _held_temporary_folder() -> Path:
    """Return this process's temporary folder, which is removed at its end; remove those of killed processes."""
    parent, stack = Path(tempfile.gettempdir()), ExitStack()
    remove_leftovers(parent, TEMPORARY_PREFIX)
    atexit.register(stack.close)
    return stack.enter_context(held_folder(parent, TEMPORARY_PREFIX))


@contextmanager
def temporary_files_in_own_folder() -> Iterator[None]:
    """Create temporary files in a folder that the next run removes if this one is killed: W&B uses arbitrary names."""
    folder = _held_temporary_folder()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def download_folder() -> Path:
    """Return the folder for downloaded checkpoints, in W&B's cache folder.

    Raises
    ------
    UserError
        The cache folder is not writable.
    """
    cache = next(usual for variable, usual in _usual_folders() if variable == "WANDB_CACHE_DIR")
    if not _is_writable(cache):
        raise UserError(f"W&B's cache folder {cache} is not writable: set WANDB_CACHE_DIR to another folder")
    return cache / "fcnlab"
