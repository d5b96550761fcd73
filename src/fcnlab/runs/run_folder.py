"""The output folder of a command: locked by one process, and unchanged until the command is accepted.

A command that is refused, because of a setting or of the contents of the folder, must not change an existing record. So
the lock comes first, then the checks, and ``accept`` before the first file is written. Nothing here imports torch,
because every command has an output folder.
"""

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fcnlab.config.run_context import RunContext
from fcnlab.errors import UserError
from fcnlab.files.in_place import check_own, open_own
from fcnlab.files.locks import FolderLock
from fcnlab.files.reading import Unreadable, read_json_facts, read_yaml
from fcnlab.files.writing import atomic_write
from fcnlab.runs.origins import nested_map

FOLDERS = (".hydra", "cache", "checkpoints", "predictions", "wandb")
FILES = (
    *("metrics.json", "confusions.npz", "predictions.zip"),
    *("run.json", "config.yaml", "changes.diff", "metrics.csv"),
)
DAMAGED = ".damaged"  # suffix of a damaged file, which is kept but not used
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


class RunFolder:
    """A context manager that locks the folder and buffers the log file until ``accept``.

    Of several processes of a run, the first holds the lock and writes ``.hydra/``; each has its own log.

    Raises
    ------
    UserError
        Another process uses the folder, another command has written to it, or a file is where a folder is needed.
    """

    def __init__(self, context: RunContext, began: float):
        self.context, self.path, self.accepted = context, context.folder, False
        self._is_new = _is_empty(self.path) and self.path.stat().st_ctime >= began  # created for this command
        self._lock: FolderLock | None = None

    def __enter__(self) -> "RunFolder":
        self._log = DeferredLog(self.path)
        try:
            self._log.check()
            if is_first_process(os.environ):
                self._lock = FolderLock(self.path)
                check_folder_contents(self.path, self.context.verb)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self.accepted and self._lock:
            self._lock.release()
        elif not self.accepted:
            self._log.drop()
            if self._lock:
                self._lock.abandon()
            if self._is_new:
                with suppress(OSError):  # not empty, or already removed
                    self.path.rmdir()

    def accept(self, cfg: DictConfig) -> None:
        """Start writing to the folder: the lock's owner, the buffered log, and Hydra's files."""
        if self.accepted:
            return
        self._log.write()
        self.accepted = True
        if self._lock:
            self._lock.claim()
            remove_parts(self.path)
            write_hydra(cfg, self.context)


class DeferredLog:
    """Log messages for the log file of a folder, kept in memory until the file may be written."""

    def __init__(self, folder: Path):
        root = logging.getLogger()
        files = [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]
        self._files = [file for file in files if Path(file.baseFilename).parent == folder]
        never = sys.maxsize
        self._kept = [MemoryHandler(never, flushLevel=never, flushOnClose=False) for _ in self._files]
        self._swap(self._files, self._kept)

    def check(self) -> None:
        """Raise early the errors that :meth:`write` would raise for existing files."""
        for file in self._files:
            check_own(Path(file.baseFilename))

    def write(self) -> None:
        for file, kept in zip(self._files, self._kept, strict=True):
            os.close(open_own(Path(file.baseFilename), os.O_WRONLY | os.O_APPEND))  # never write through a link
            kept.setTarget(file)  # not earlier: Hydra flushes all handlers
            kept.flush()
        self._swap(self._kept, self._files)

    def drop(self) -> None:
        self._swap([*self._kept, *self._files], [])

    @staticmethod
    def _swap(before: list, after: list) -> None:
        root = logging.getLogger()
        for handler in before:
            root.removeHandler(handler)
        for handler in after:
            root.addHandler(handler)


def is_first_process(environment: Mapping[str, str]) -> bool:
    """Return whether this is the only process of its run, or the one that writes for all (rank 0)."""
    if "RANK" in environment:  # set by torchrun, counts over all machines
        return environment["RANK"] == "0"
    return all(environment.get(name, "0") == "0" for name in RANKS)


def check_folder_contents(folder: Path, verb: str) -> None:
    """Check that a command can write its files to this folder.

    Raises
    ------
    UserError
        Another command's record would be replaced, a file is where a folder is needed or the reverse, or a link leads
        out of the folder.
    """
    recorded_verb = _verb_of(folder)
    if recorded_verb is not None and recorded_verb != verb:
        raise UserError(
            f"hydra.run.dir={folder} contains the record of fcnlab {recorded_verb}, which fcnlab {verb} would replace:"
            " leave hydra.run.dir out, or choose a new folder"
        )
    for name in (*FOLDERS, *FILES):
        path, kind = folder / name, "folder" if name in FOLDERS else "file"
        if os.path.lexists(path) and (not path.exists() or path.is_dir() != (kind == "folder")):
            problem = f"a broken link to {path.readlink()}" if not path.exists() else f"not a {kind}"
            raise UserError(f"{path} is {problem}: move it away, or choose another hydra.run.dir")
    for name in (".hydra", *FILES):
        if (folder / name).is_symlink():
            raise UserError(f"{folder / name} is a link, and fcnlab does not write through links: remove it")
    for path in _links_to_folders(folder):
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{path} is a link to {path.resolve()}, outside the run's folder, and fcnlab does not write through"
                " links: replace it by a folder, or choose another hydra.run.dir"
            )


def check_report_folder(folder: Path, names: Sequence[str]) -> None:
    """Check that writing a report to a folder replaces no foreign files: it is new, or contains an earlier report.

    Raises
    ------
    UserError
        It contains files of these names but not the first: they belong to something else, or are links.
    """
    existing = [name for name in names if (folder / name).exists() or (folder / name).is_symlink()]
    if existing and existing[0] != names[0]:
        raise UserError(
            f"hydra.run.dir={folder} contains {existing[0]} but no {names[0]}, so it is not the folder of an earlier"
            " report: choose another folder, or leave hydra.run.dir out"
        )


def _links_to_folders(folder: Path) -> Iterator[Path]:
    """Yield links among the folders of a command and the subfolders for names of images and checkpoints."""
    yield from (folder / name for name in FOLDERS if (folder / name).is_symlink())
    for name in ("checkpoints", "predictions"):
        for parent, folders, _ in os.walk(folder / name):
            yield from (path for path in (Path(parent) / subfolder for subfolder in folders) if path.is_symlink())


def _verb_of(folder: Path) -> str | None:
    """Return which command wrote the record in a folder; None if there is no readable record."""
    verb = read_json_facts(folder, "run.json").get("verb")
    if isinstance(verb, str):
        return verb
    if (folder / "run.json").is_file():
        return "train"
    try:
        hydra = nested_map(read_yaml(folder, ".hydra/hydra.yaml"), "hydra")
    except (OSError, Unreadable):
        return None
    verb = nested_map(hydra, "job").get("config_name")
    return verb if isinstance(verb, str) else None


def remove_parts(folder: Path) -> None:
    """Remove incomplete files of a killed command; the lock ensures that no other command uses them."""
    for path in (*folder.glob("checkpoints/*.ckpt.part"), *(folder / f"{name}.part" for name in FILES)):
        with suppress(OSError):
            path.unlink()


def rename_damaged(path: Path) -> Path:
    """Rename a damaged file, so that it is kept but never read."""
    renamed = path.with_name(path.name + DAMAGED)
    for number in range(2, 1000):
        if not os.path.lexists(renamed):
            break
        renamed = path.with_name(f"{path.name}{DAMAGED}{number}")
    return path.rename(renamed)


def write_hydra(cfg: DictConfig, context: RunContext) -> None:
    """Write Hydra's files of a run, atomically, and only once the run is accepted."""
    folder = context.folder / ".hydra"
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "config.yaml": OmegaConf.to_yaml(cfg),
        "hydra.yaml": context.hydra_yaml,
        "overrides.yaml": OmegaConf.to_yaml(OmegaConf.create(list(context.overrides))),
    }
    for name, text in texts.items():
        with atomic_write(folder / name) as part:
            part.write_text(text, encoding="utf-8", errors="backslashreplace")  # a path may contain invalid UTF-8


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None
