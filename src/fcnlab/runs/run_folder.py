"""The folder in which a command leaves its files: held by one process, and unchanged until the command is accepted.

A command that is refused, because of a setting or of what the folder holds, must not touch the record of the run that
it was refused for. So the lock is taken first, the checks follow, and ``accept`` comes before the first file is
written. Nothing here imports torch: every command has such a folder.
"""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fcnlab.config.overrides import plain_overrides
from fcnlab.errors import UserError
from fcnlab.files.in_place import check_own, open_own
from fcnlab.files.locks import FolderLock
from fcnlab.files.reading import Unreadable, read_json_facts, read_yaml
from fcnlab.files.writing import atomic_write
from fcnlab.runs.origins import nested_map

FOLDERS = (".hydra", "cache", "checkpoints", "predictions", "wandb")
FILES = ("metrics.json", "confusions.npz", "run.json", "config.yaml", "changes.diff", "metrics.csv")
DAMAGED = ".damaged"  # after the name of a file that is kept, and no longer used
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


class RunFolder:
    """While entered, no other command works in this folder, and what is logged is kept back until ``accept``.

    Of several processes of one run the first holds the lock and writes ``.hydra/``; each has a log of its own.

    Raises
    ------
    UserError
        Another process works there; the folder holds what another command left; a file is where a folder has to be.
    """

    def __init__(self, path: Path, began: float):
        self.path, self.accepted = path, False
        self._is_new = _is_empty(path) and path.stat().st_ctime >= began  # Hydra has made it for this command
        self._lock: FolderLock | None = None

    def __enter__(self) -> "RunFolder":
        self._log = DeferredLog(self.path)
        try:
            self._log.check()
            if is_first_process(os.environ):
                self._lock = FolderLock(self.path)
                check_folder_contents(self.path, str(HydraConfig.get().job.config_name))
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
                with suppress(OSError):  # where it is not empty, or not there
                    self.path.rmdir()

    def accept(self, cfg: DictConfig) -> None:
        """Begin to write: who works here, what was logged so far, and what Hydra writes of a run."""
        if self.accepted:
            return
        self._log.write()
        self.accepted = True
        if self._lock:
            self._lock.claim()
            remove_parts(self.path)
            write_hydra(cfg, self.path / ".hydra")


class DeferredLog:
    """What is logged for a file of a folder, kept in memory until it may be written."""

    def __init__(self, folder: Path):
        root = logging.getLogger()
        files = [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]
        self._files = [file for file in files if Path(file.baseFilename).parent == folder]
        never = sys.maxsize
        self._kept = [MemoryHandler(never, flushLevel=never, flushOnClose=False) for _ in self._files]
        self._swap(self._files, self._kept)

    def check(self) -> None:
        """Before any work: raise what :meth:`write` would raise of what lies there."""
        for file in self._files:
            check_own(Path(file.baseFilename))

    def write(self) -> None:
        for file, kept in zip(self._files, self._kept, strict=True):
            os.close(open_own(Path(file.baseFilename), os.O_WRONLY | os.O_APPEND))  # a link is not written to
            kept.setTarget(file)  # not before: Hydra flushes every handler that there is
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
    """Whether this is the only process of its run, or the one that writes for all."""
    if "RANK" in environment:  # torchrun's, which counts over all machines
        return environment["RANK"] == "0"
    return all(environment.get(name, "0") == "0" for name in RANKS)


def check_folder_contents(folder: Path, verb: str) -> None:
    """Before any work: whether a command's files can lie in this folder.

    Raises
    ------
    UserError
        Another verb left what is there, and its record would be replaced; a file is where a folder has to be, or the
        other way round; a link would lead what is written out of the folder.
    """
    left = _verb_of(folder)
    if left is not None and left != verb:
        raise UserError(
            f"hydra.run.dir={folder} holds what fcnlab {left} left there, and fcnlab {verb} would replace its record:"
            " leave hydra.run.dir out, or name a new folder"
        )
    for name in (*FOLDERS, *FILES):
        path, kind = folder / name, "folder" if name in FOLDERS else "file"
        if os.path.lexists(path) and (not path.exists() or path.is_dir() != (kind == "folder")):
            what = f"a link to {path.readlink()}, which is not there" if not path.exists() else f"no {kind}"
            raise UserError(f"{path} is {what}: move it away, or name another hydra.run.dir")
    for name in (".hydra", *FILES):
        if (folder / name).is_symlink():
            raise UserError(f"{folder / name} is a link, and nothing is written through it: remove it")
    for path in _links_to_folders(folder):
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{path} is a link to {path.resolve()}, out of the run's folder, and nothing is written through it:"
                " put a folder in its place, or name another hydra.run.dir"
            )


def _links_to_folders(folder: Path) -> Iterator[Path]:
    """Links where a command writes: its folders, and the subfolders that names of images and checkpoints make."""
    yield from (folder / name for name in FOLDERS if (folder / name).is_symlink())
    for name in ("checkpoints", "predictions"):
        for place, folders, _ in os.walk(folder / name):
            yield from (path for path in (Path(place) / found for found in folders) if path.is_symlink())


def _verb_of(folder: Path) -> str | None:
    """Which command left its record in a folder; None where there is none, or none that can be read."""
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
    """Remove what a command that was killed in this folder had half written: nobody else works here."""
    for path in (*folder.glob("checkpoints/*.ckpt.part"), *(folder / f"{name}.part" for name in FILES)):
        with suppress(OSError):
            path.unlink()


def rename_damaged(path: Path) -> Path:
    """Keep a damaged file under a name that nothing reads."""
    place = path.with_name(path.name + DAMAGED)
    for number in range(2, 1000):
        if not os.path.lexists(place):
            break
        place = path.with_name(f"{path.name}{DAMAGED}{number}")
    return path.rename(place)


def write_hydra(cfg: DictConfig, folder: Path) -> None:
    """What Hydra writes of a run, each file whole or not at all, and not before it is sure that the run begins."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "config.yaml": OmegaConf.to_yaml(cfg),
        "hydra.yaml": OmegaConf.to_yaml(HydraConfig.instance().cfg),
        "overrides.yaml": OmegaConf.to_yaml(OmegaConf.create(plain_overrides(HydraConfig.get().overrides.task))),
    }
    for name, text in texts.items():
        with atomic_write(folder / name) as part:
            part.write_text(text, encoding="utf-8", errors="backslashreplace")  # a path may be no UTF-8


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None
