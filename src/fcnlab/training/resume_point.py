"""Which checkpoint a training goes on from: ``checkpoint=PATH|last|best|auto``."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fcnlab.config.overrides import shell_override
from fcnlab.errors import UserError
from fcnlab.files.writing import atomic_write
from fcnlab.messages import log_warning
from fcnlab.runs.origins import nested_map
from fcnlab.runs.run_folder import DAMAGED, is_first_process, rename_damaged
from fcnlab.training.checkpoints import check_resumable, read_checkpoint
from fcnlab.training.hardware import PRECISIONS


class ResumePoint(NamedTuple):
    """A checkpoint's path, and when it was written: how many rows metrics.csv had, how many steps were done.

    ``settings``, ``segments`` and ``images`` are the run's until then (see :mod:`fcnlab.training.segments`); ``trained``
    is what the checkpoint tells of its training (:mod:`fcnlab.runs.lineage`), ``shapes`` those of its weights,
    ``bests`` the names of the best checkpoints that it knows.
    """

    checkpoint: str | None = None
    rows: int = 0
    steps: int = 0
    epoch: int = 0
    settings: Mapping[str, Any] = {}
    segments: Sequence[dict[str, Any]] = ()
    images: Mapping[str, Any] = {}
    trained: Mapping[str, Any] = {}
    shapes: Mapping[str, tuple[int, ...]] = {}
    bests: frozenset[str] = frozenset()


def precision_of(start: ResumePoint) -> str | None:
    """What a checkpoint was trained in; None where it does not tell."""
    used = nested_map(start.trained, "settings").get("trainer.precision")
    return used if used in PRECISIONS else None


def find_resume_point(wanted: str | None, folder: Path) -> ResumePoint:
    """What ``wanted`` names; the beginning where it names nothing.

    Raises
    ------
    UserError
        There is no such checkpoint, it is damaged, or none to resume from; or another run, which is in the folder,
        would be overwritten.
    """
    checkpoints = folder / "checkpoints"
    for path in checkpoints.glob("*.ckpt"):
        if path.is_symlink() and not path.exists():
            raise UserError(
                f"{path} is a link to {path.readlink()}, which is not there: bring that back, or remove the link"
            )
    if wanted == "auto":
        return _newest_whole(checkpoints)
    if wanted in ("last", "best"):
        return _own(checkpoints, wanted)
    if any(checkpoints.glob("*.ckpt")):
        raise UserError(
            f"{folder} holds a run already: go on with it by checkpoint=auto, last or best, or leave hydra.run.dir to a"
            " new folder"
        )
    if wanted in (None, "none"):
        return ResumePoint()
    log_warning(
        f"checkpoint={wanted} is another run's: the best checkpoint of this folder is chosen among the validations from"
        " here on"
    )
    return _start(wanted)


def check_more_to_train(start: ResumePoint, folder: Path, max_steps: int) -> None:
    """Refuse a run that would begin at another run's checkpoint and train no step: its scores would be that run's."""
    if start.checkpoint and start.steps == max_steps and not belongs_to_run(start.checkpoint, folder):
        raise UserError(
            f"trainer.max_steps={max_steps}: checkpoint={start.checkpoint} has reached it, so that this run would train"
            f" nothing. Raise it, or score the checkpoint by fcnlab eval {shell_override('checkpoint', start.checkpoint)}"
        )


def belongs_to_run(checkpoint: str, folder: Path) -> bool:
    """Whether a checkpoint is of the run in this folder, by whatever path."""
    return os.path.realpath(Path(checkpoint).parents[1]) == os.path.realpath(folder)


def _start(path: str | Path) -> ResumePoint:
    found = read_checkpoint(path)
    kept = found.get("resume")
    if kept is None:
        raise UserError(
            f"checkpoint={path} cannot be resumed from: it does not hold the state of a training run. To start a new run"
            f" from its weights: {shell_override('model.weights', path)}"
        )
    check_resumable(found, path)
    of_run = {name: found["fcnlab"][name] for name in ("settings", "segments", "images")}
    steps, epoch = found.get("global_step", 0), found.get("epoch", 0)
    trained = nested_map(found["fcnlab"], "trained")
    return ResumePoint(
        str(path), kept["rows"], steps, epoch, **of_run, trained=trained, shapes=_shapes(found), bests=_bests(found)
    )


def _shapes(checkpoint: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}


def _bests(checkpoint: Mapping[str, Any]) -> frozenset[str]:
    """The names of the files whose scores a checkpoint knows."""
    known = [nested_map(state, "best_k_models") for state in checkpoint["callbacks"].values()]
    return frozenset(Path(str(path)).name for paths in known for path in paths)


def _own(checkpoints: Path, name: str) -> ResumePoint:
    """This run's last or best checkpoint."""
    path = checkpoints / f"{name}.ckpt"
    if not path.exists():
        raise UserError(f"checkpoint={name}: there is no {path}, since this run is new{_newest_run()}")
    return _start(path)


def promote_to_last(start: ResumePoint, folder: Path) -> None:
    """Let a checkpoint of this run be the latest of its files, else the steps beyond it would come back after a kill.

    Only once it is sure that the run resumes from it: what is overwritten here is gone.
    """
    last = folder / "checkpoints" / "last.ckpt"
    if start.checkpoint and Path(start.checkpoint) == last.with_name("best.ckpt"):
        with atomic_write(last) as part:
            shutil.copyfile(start.checkpoint, part)


def unusable_checkpoints(checkpoints: Path, start: ResumePoint, changed: bool) -> list[Path]:
    """Checkpoints of this folder that the run could not score at its end, or not overwrite; each is reported.

    Where it resumes with other settings (``changed``), so are those of steps that were trained with the settings of
    before, beyond the checkpoint: a kill can leave a best.ckpt that is newer than last.ckpt, which is overwritten.

    They are found before the training goes on, since its best score would be that of a file that is lost.
    """
    found = []
    for path in sorted(checkpoints.glob("*.ckpt")):
        if start.checkpoint and path.exists() and path.samefile(start.checkpoint):
            continue
        try:
            why = _why_unusable(path, read_checkpoint(path), start, changed)
        except UserError as error:
            why = str(error)
        if not start.checkpoint:
            why = why or f"The run cannot resume from {path}."
        if why:
            log_warning(f"{why} It is kept as {path.name}{DAMAGED}, and its score is forgotten")
            found.append(path)
    return found


def _why_unusable(path: Path, checkpoint: Mapping[str, Any], start: ResumePoint, changed: bool) -> str:
    if _shapes(checkpoint) != start.shapes:
        return f"{path} holds the weights of another network."
    run = nested_map(checkpoint["fcnlab"], "trained").get("run")
    if (
        start.checkpoint
        and path.name == "best.ckpt"
        and path.name not in start.bests
        and run != start.trained.get("run")
    ):
        return f"{path} is another run's, by what is in it, and {start.checkpoint} does not know it."
    step = checkpoint.get("global_step", 0)
    if changed and start.checkpoint and path.name != "last.ckpt" and step > start.steps:
        return f"{path} is of step {step}, and the run goes on from step {start.steps} with other settings."
    return ""


def rename_unusable(paths: Sequence[Path]) -> None:
    """Rename checkpoints that cannot be used; only once it is sure that the run resumes without them."""
    if is_first_process(os.environ):
        for path in paths:
            rename_damaged(path)


def _newest_run() -> str:
    """Where the user probably meant to go on."""
    runs = sorted(Path("outputs").glob("**/checkpoints/last.ckpt"), key=lambda found: found.stat().st_mtime)
    if not runs:
        return ": add hydra.run.dir=FOLDER"
    return f"; the newest run is {runs[-1].parents[1]}: add hydra.run.dir={runs[-1].parents[1]}"


def _newest_whole(checkpoints: Path) -> ResumePoint:
    """last.ckpt, or the best one if that is damaged; the beginning where there is neither."""
    for name in ("last", "best"):
        if (checkpoints / f"{name}.ckpt").exists():
            try:
                return _own(checkpoints, name)
            except UserError as error:
                log_warning(f"{error} Going on without it.")
    return ResumePoint()
