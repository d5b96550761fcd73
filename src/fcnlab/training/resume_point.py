"""Find the checkpoint from which a run resumes: ``checkpoint=PATH|wandb:ADDRESS|last|best|auto``."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fcnlab.config.overrides import shell_override
from fcnlab.config.run_context import RunContext
from fcnlab.errors import UserError
from fcnlab.files.writing import atomic_write
from fcnlab.messages import log_warning
from fcnlab.runs.origins import nested_map
from fcnlab.runs.run_folder import DAMAGED, is_first_process, rename_damaged
from fcnlab.tracking.downloads import checkpoint_file
from fcnlab.training.checkpoints import check_resumable, read_checkpoint
from fcnlab.training.hardware import PRECISIONS


class ResumePoint(NamedTuple):
    """A checkpoint's path, and the state of the run when it was written: rows of metrics.csv, steps and epoch.

    ``settings``, ``segments`` and ``images`` are those of the run up to then (see :mod:`fcnlab.training.segments`),
    ``trained`` describes its training (:mod:`fcnlab.runs.lineage`), ``shapes`` are the shapes of its weights, and
    ``bests`` the file names of the best checkpoints that it lists. ``artifact`` are the facts of the W&B artifact that
    it comes from, if any (:class:`fcnlab.tracking.downloads.CheckpointFile`).
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
    artifact: Mapping[str, str] | None = None


def precision_of(start: ResumePoint) -> str | None:
    """Return the precision in which a checkpoint was trained; None where it is not recorded."""
    recorded = nested_map(start.trained, "settings").get("trainer.precision")
    return recorded if recorded in PRECISIONS else None


def find_resume_point(requested: str | None, context: RunContext) -> ResumePoint:
    """Return the resume point that ``checkpoint=`` requests; an empty one where the run starts from the beginning.

    Raises
    ------
    UserError
        The checkpoint does not exist, is damaged or cannot be resumed; or the folder contains another run, which would
        be overwritten.
    """
    folder, setting = context.folder, context.folder_setting
    checkpoints = folder / "checkpoints"
    for path in checkpoints.glob("*.ckpt"):
        if path.is_symlink() and not path.exists():
            raise UserError(
                f"{path} is a link to {path.readlink()}, which does not exist: restore that file, or remove the link"
            )
    if requested == "auto":
        return _newest_usable(checkpoints, setting)
    if requested in ("last", "best"):
        return _own(checkpoints, requested, setting)
    if any(checkpoints.glob("*.ckpt")):
        raise UserError(
            f"{folder} already contains a run: resume it with checkpoint=auto, last or best, or set {setting} to a new"
            " folder"
        )
    if requested in (None, "none"):
        return ResumePoint()
    log_warning(
        f"checkpoint={requested} belongs to another run: this run selects its best checkpoint among its own validations"
    )
    file = checkpoint_file(requested)
    return _start(file.path)._replace(artifact=file.artifact)


def check_more_to_train(start: ResumePoint, folder: Path, max_steps: int) -> None:
    """Refuse to train no step from another run's checkpoint: the scores would be those of the other run."""
    if start.checkpoint and start.steps == max_steps and not belongs_to_run(start.checkpoint, folder):
        raise UserError(
            f"trainer.max_steps={max_steps}: checkpoint={start.checkpoint} is at this step already, so there is nothing"
            " to train. Raise trainer.max_steps, or score the checkpoint with fcnlab eval"
            f" {shell_override('checkpoint', start.checkpoint)}"
        )


def belongs_to_run(checkpoint: str, folder: Path) -> bool:
    """Return whether a checkpoint belongs to the run in this folder; links are resolved."""
    return os.path.realpath(Path(checkpoint).parents[1]) == os.path.realpath(folder)


def _start(path: str | Path) -> ResumePoint:
    checkpoint = read_checkpoint(path)
    resume = checkpoint.get("resume")
    if resume is None:
        raise UserError(
            f"checkpoint={path} cannot be resumed: it does not contain the state of a training run. To start a new run"
            f" from its weights: {shell_override('model.weights', path)}"
        )
    check_resumable(checkpoint, path)
    record = checkpoint["fcnlab"]
    return ResumePoint(
        str(path),
        resume["rows"],
        steps=checkpoint.get("global_step", 0),
        epoch=checkpoint.get("epoch", 0),
        settings=record["settings"],
        segments=record["segments"],
        images=record["images"],
        trained=nested_map(record, "trained"),
        shapes=_shapes(checkpoint),
        bests=_bests(checkpoint),
    )


def _shapes(checkpoint: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}


def _bests(checkpoint: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the checkpoint files whose scores a checkpoint lists."""
    listed = [nested_map(state, "best_k_models") for state in checkpoint["callbacks"].values()]
    return frozenset(Path(str(path)).name for paths in listed for path in paths)


def _own(checkpoints: Path, name: str, setting: str) -> ResumePoint:
    """Return the resume point of this run's last or best checkpoint."""
    path = checkpoints / f"{name}.ckpt"
    if not path.exists():
        raise UserError(f"checkpoint={name}: {path} does not exist, since this run is new{_newest_run(setting)}")
    return _start(path)


def promote_to_last(start: ResumePoint, folder: Path) -> None:
    """Copy best.ckpt to last.ckpt when the run resumes from it, so that a kill does not bring back later steps.

    Call this only when it is certain that the run resumes: the old last.ckpt is overwritten.
    """
    last = folder / "checkpoints" / "last.ckpt"
    if start.checkpoint and Path(start.checkpoint) == last.with_name("best.ckpt"):
        with atomic_write(last) as part:
            shutil.copyfile(start.checkpoint, part)


def unusable_checkpoints(checkpoints: Path, start: ResumePoint, changed: bool) -> list[Path]:
    """Return and report the checkpoints of this folder that the run can neither score at its end nor overwrite.

    Where the run resumes with other settings (``changed``), these include checkpoints of later steps, which were
    trained with the old settings: a kill can leave a best.ckpt that is newer than last.ckpt.

    This runs before training resumes, since the best score would otherwise belong to a file that is lost.
    """
    reasons = why_unusable(checkpoints, start, changed)
    for path, reason in reasons.items():
        log_warning(
            f"{reason.removesuffix('.')}. It is renamed to {path.name}{DAMAGED}, and its score no longer counts"
        )
    return list(reasons)


def why_unusable(checkpoints: Path, start: ResumePoint, changed: bool) -> dict[Path, str]:
    """Return the checkpoints of :func:`unusable_checkpoints`, each with the reason."""
    reasons = {}
    for path in sorted(checkpoints.glob("*.ckpt")):
        if start.checkpoint and path.exists() and path.samefile(start.checkpoint):
            continue
        try:
            reason = _why_unusable(path, read_checkpoint(path), start, changed)
        except UserError as error:
            reason = str(error)
        if not start.checkpoint:
            reason = reason or f"The run cannot resume from {path}."
        if reason:
            reasons[path] = reason
    return reasons


def _why_unusable(path: Path, checkpoint: Mapping[str, Any], start: ResumePoint, changed: bool) -> str:
    if _shapes(checkpoint) != start.shapes:
        return f"{path} contains the weights of another model."
    run = nested_map(checkpoint["fcnlab"], "trained").get("run")
    if (
        start.checkpoint
        and path.name == "best.ckpt"
        and path.name not in start.bests
        and run != start.trained.get("run")
    ):
        return f"{path} belongs to another run, and {start.checkpoint} does not list it."
    step = checkpoint.get("global_step", 0)
    if changed and start.checkpoint and path.name != "last.ckpt" and step > start.steps:
        return f"{path} is of step {step}, but the run resumes from step {start.steps} with other settings."
    return ""


def rename_unusable(paths: Sequence[Path]) -> None:
    """Rename checkpoints that cannot be used; call this only when it is certain that the run resumes without them."""
    if is_first_process(os.environ):
        for path in paths:
            rename_damaged(path)


def _newest_run(setting: str) -> str:
    """Return a hint to the newest run, which the user probably meant to resume."""
    runs = sorted(Path("outputs").glob("**/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    if not runs:
        return f": add {setting}=FOLDER"
    return f"; the newest run is {runs[-1].parents[1]}: add {setting}={runs[-1].parents[1]}"


def _newest_usable(checkpoints: Path, setting: str) -> ResumePoint:
    """Return the resume point of last.ckpt, of best.ckpt if that is damaged, or an empty one without either."""
    for name in ("last", "best"):
        if (checkpoints / f"{name}.ckpt").exists():
            try:
                return _own(checkpoints, name, setting)
            except UserError as error:
                log_warning(f"{str(error).removesuffix('.')}. Continuing without it.")
    return ResumePoint()
