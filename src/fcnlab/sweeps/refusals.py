"""A sweep that is refused before its first job leaves its folder as it was."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

WRITTEN_BEFORE_JOBS = ("multirun.yaml", "search.json", "search.db", "search.db-journal")  # beside the locks


class FolderBefore:
    """What a sweep's folder contained before the command."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        self._new_files: list[Path] = []

    def list_files(self) -> None:
        """Remember which files are not there. Where the folder has a lock, call this only when it is held."""
        paths = [self.folder / name for name in WRITTEN_BEFORE_JOBS]
        self._new_files = [path for path in paths if not os.path.lexists(path)]

    def remove_files(self) -> None:
        for path in self._new_files:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def remove_folders(self) -> None:
        """Remove the folders that this command has created, as far as they are empty."""
        with suppress(OSError):
            for path in self._new_folders:
                path.rmdir()


@contextmanager
def folder_restored_on_refusal(launcher: Any) -> Iterator[None]:
    """If an error is raised inside, let a launcher of fcnlab remove what the sweep has created, unless jobs started."""
    try:
        yield
    except BaseException:
        if restore := getattr(launcher, "restore_folder", None):
            restore()
        raise
