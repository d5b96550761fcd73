"""Write checkpoints atomically, and decide when to save the last state and the best ones."""

import contextlib
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from fcnlab.config.ranges import NonNegative, Whole
from fcnlab.errors import WriteError, first_line
from fcnlab.files.writing import atomic_write
from fcnlab.library_internals.lightning import ObservedCheckpoint
from fcnlab.models.weights import WeightsError, load_without_code
from fcnlab.runs.origins import nested_map
from fcnlab.runs.selection import CHECKPOINT_TYPES, is_valid_selection
from fcnlab.signals import Interrupted
from fcnlab.training.callbacks.interruption import safe_to_stop
from fcnlab.training.callbacks.stopping import TrainingDiverged

log = logging.getLogger("fcnlab")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint to a temporary file and rename it, so that a complete checkpoint exists at all times."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as part:
                torch.save(checkpoint, part)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            full = "the disk is probably full, " if isinstance(error, RuntimeError) else ""
            raise WriteError(
                f"{path} could not be written: {full}{first_line(error)}. Earlier checkpoints are intact: free some"
                " space, then resume the run in the same folder with checkpoint=auto."
            ) from error


class TopCheckpoints(ObservedCheckpoint):
    """Keep the ``keep`` checkpoints of best val mIoU, named by score and step, in addition to best.ckpt.

    This is a class of its own, since Lightning saves the states of two ModelCheckpoints of one metric under one key.
    """

    def __init__(self, dirpath: str | Path, keep: Whole = 3):
        if keep < 0:
            raise ValueError(f"checkpointing.keep_top={keep} must be at least 0 (none)")
        super().__init__(
            dirpath,
            filename="miou={val/miou:.4f}-step={step:.0f}",
            auto_insert_metric_name=False,
            monitor="val/miou",
            mode="max",
            save_top_k=keep,
            enable_version_counter=False,
        )


class LastCheckpoint(Checkpoint):
    """Save ``last.ckpt`` after every validation, every ``every_n_minutes``, and when a run is interrupted.

    After an exception between two steps or inside a validation (for example an unreadable image), the state before it
    is saved; after one inside a step it is not, since the step is incomplete. ``saving`` is true while it saves.
    """

    saving = False

    def __init__(self, dirpath: str | Path, every_n_minutes: NonNegative = 10.0):
        if every_n_minutes < 0:
            raise ValueError(f"checkpointing.every_n_minutes={every_n_minutes} must be at least 0 (every step)")
        self.path = Path(dirpath) / "last.ckpt"
        self.every_n_minutes = every_n_minutes
        self._saved_at, self._saved_step = 0.0, -1

    def on_train_start(self, trainer: L.Trainer, pl_module) -> None:
        self._saved_at = time.monotonic()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        self._saved_step = checkpoint["global_step"]  # nothing new to save until the next step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module, batch, batch_idx: int) -> None:
        new = trainer.global_step not in (0, self._saved_step)
        if new and safe_to_stop(trainer, batch_idx) and self._due(trainer):
            self._save(trainer)

    def _due(self, trainer: L.Trainer) -> bool:
        due = time.monotonic() - self._saved_at >= 60 * self.every_n_minutes
        return due if trainer.world_size == 1 else trainer.strategy.broadcast(due)  # clocks differ: rank 0 decides

    def on_validation_end(self, trainer: L.Trainer, pl_module) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module, exception: BaseException) -> None:
        if self._can_save(trainer, exception):
            with contextlib.suppress(WriteError):  # show the original error
                self._save(trainer)

    def _can_save(self, trainer: L.Trainer, exception: BaseException) -> bool:
        if trainer.state.fn != "fit" or isinstance(exception, (WriteError, TrainingDiverged)):
            return False
        if isinstance(exception, Interrupted) and exception.at_once:
            return False
        if trainer.global_step in (0, self._saved_step):  # after the last step, EMA weights replace the weights
            return False
        if trainer.world_size > 1 and not isinstance(exception, Interrupted):  # other ranks may never reach the save
            return False
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current  # Lightning's annotation is too narrow
        whole_step = batches.started == batches.completed and batches.completed % trainer.accumulate_grad_batches == 0
        return whole_step and not trainer.should_stop  # a stopped run must not resume into its last validation

    def _save(self, trainer: L.Trainer) -> None:
        self.saving = True
        try:
            trainer.save_checkpoint(self.path)
        finally:
            self.saving = False
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step


def relocate_checkpoints(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Update the paths of the best checkpoints in a checkpoint's state, for a folder that was moved or linked.

    Lightning drops the best score if the folder has another name, and would overwrite best.ckpt at the next validation;
    it also keeps the score of a missing file, which could not be scored at the end of the run.
    """
    resumed_from = Path(str(trainer.ckpt_path)).resolve()
    for callback in trainer.checkpoint_callbacks:
        state = checkpoint.get("callbacks", {}).get(callback.state_key)
        if isinstance(callback, ModelCheckpoint) and callback.dirpath and isinstance(state, dict):
            in_this_run = resumed_from.parent == Path(callback.dirpath).resolve()
            own = _own_score(callback, state, checkpoint, trainer.is_global_zero) if in_this_run else {}
            _relocate(state, callback, resumed_from.parent, own)
            if isinstance(callback, TopCheckpoints) and in_this_run:
                _add_resumed_checkpoint(state, callback, checkpoint, resumed_from if trainer.is_global_zero else None)


def _own_score(
    callback: ModelCheckpoint, state: dict[str, Any], checkpoint: dict[str, Any], warn: bool
) -> dict[str, Any]:
    """Return the score recorded inside the run's best checkpoint, by its path; nothing where the state agrees.

    If the state lacks this score, or has another one, a worse checkpoint would overwrite best.ckpt.
    """
    path = Path(str(callback.dirpath)) / f"{callback.filename}.ckpt"
    if isinstance(callback, TopCheckpoints) or not path.is_file():
        return {}
    try:
        best = load_without_code(path)
    except WeightsError:  # reported before, where it matters
        return {}
    record, resumed = (each.get("fcnlab", {}) for each in (best, checkpoint))
    facts = record.get("selection")
    if not is_valid_selection(facts, CHECKPOINT_TYPES):
        return {}
    if facts["checkpoint"] != "best" or facts["monitor"] != callback.monitor:
        return {}
    runs = [nested_map(each, "trained").get("run") for each in (record, resumed)]
    score = facts["val_miou"]
    if runs[0] != runs[1] or facts["step"] > checkpoint["global_step"] or score is None or not 0 <= score <= 1:
        return {}
    listed = {Path(name).name: value for name, value in state["best_k_models"].items()}.get(path.name)
    if listed is not None and float(listed) == score:
        return {}
    if warn:
        difference = "does not list it" if listed is None else f"lists {float(listed):.4f}"
        log.warning(
            "Warning: %s contains a score of %.4f, which is used, but the last checkpoint %s", path, score, difference
        )
    return {str(path): torch.tensor(score, dtype=torch.float64)}


def _relocate(state: dict[str, Any], callback: ModelCheckpoint, resumed_in: Path, own: dict[str, Any]) -> None:
    """Move the state's best checkpoints to the callback's folder; ``own`` overrides their scores.

    ``resumed_in`` is the folder of the checkpoint. Lightning has resolved the callback's folder, so all paths are real.
    """
    folder = Path(str(callback.dirpath))
    listed = {folder / Path(path).name: score for path, score in state["best_k_models"].items()}
    existing = {str(path): score for path, score in listed.items() if path.is_file()} | own
    if not existing and folder not in (resumed_in, Path(state["dirpath"]).resolve()):
        return  # the checkpoint belongs to another run, with other best checkpoints
    state["dirpath"], state["last_model_path"] = str(folder), ""
    _rank(state, callback, existing)


def _rank(state: dict[str, Any], callback: ModelCheckpoint, scores: dict[str, Any]) -> None:
    ranked = sorted(scores, key=lambda path: float(scores[path]), reverse=callback.mode == "max")
    state["best_k_models"] = scores
    state["best_model_path"] = ranked[0] if ranked else ""
    state["best_model_score"] = scores[ranked[0]] if ranked else None
    state["kth_best_model_path"] = ranked[-1] if ranked else ""
    state["kth_value"] = scores[ranked[-1]] if ranked else callback.kth_value


def _add_resumed_checkpoint(
    state: dict[str, Any], callback: TopCheckpoints, checkpoint: dict[str, Any], file: Path | None
) -> None:
    """Add the best.ckpt from which the run resumes to the top checkpoints.

    It is saved before they are, and the run does not validate at this step again; the run may have ended in between,
    for example on a full disk. ``file`` is that checkpoint, in the process that writes; None in the others.
    """
    facts = checkpoint["fcnlab"].get("selection") or {}
    if facts.get("checkpoint") != "best" or facts["val_miou"] is None:
        return
    score = torch.tensor(facts["val_miou"], dtype=torch.float64)
    path = callback.format_checkpoint_name({"val/miou": score, "step": torch.tensor(facts["step"])})
    listed = state["best_k_models"]
    kept = dict(sorted((listed | {path: score}).items(), key=lambda item: -float(item[1]))[: callback.save_top_k])
    if file and path in kept and not Path(path).is_file():
        with atomic_write(Path(path)) as part:
            shutil.copyfile(file, part)
    if file:
        for dropped in listed.keys() - kept.keys():
            Path(dropped).unlink(missing_ok=True)
    _rank(state, callback, kept)
