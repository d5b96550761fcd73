"""Checkpoints that are always whole: written aside, synced, renamed; and when the last state is saved."""

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

from fcnlab.callbacks.interruption import may_stop
from fcnlab.callbacks.stopping import TrainingDiverged
from fcnlab.errors import NotWritten, first_line
from fcnlab.models.weights import WeightsError, load_plainly
from fcnlab.ranges import NonNegative, Whole
from fcnlab.results.origins import part
from fcnlab.results.record import aside
from fcnlab.results.selection import OF_A_CHECKPOINT, is_one
from fcnlab.signals import Interrupted

log = logging.getLogger("fcnlab")


class WholeFiles(TorchCheckpointIO):
    """Write a checkpoint beside the old one and only then in its place, so that either of them is there, and whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with aside(path) as part:
                torch.save(checkpoint, part)
        except (OSError, RuntimeError) as error:  # torch's writer tells only at which byte it stopped
            full = "the disk is probably full, " if isinstance(error, RuntimeError) else ""
            raise NotWritten(
                f"{path} could not be written: {full}{first_line(error)}. Checkpoints from before are whole: make room,"
                " then resume with checkpoint=auto and hydra.run.dir set to this run's folder."
            ) from error


class TopCheckpoints(ModelCheckpoint):
    """Keep the ``keep`` checkpoints of best val mIoU, each under its score and step, beside best.ckpt.

    A class of its own, since Lightning keeps the states of two plain ModelCheckpoints of one metric under one key.
    ``saving`` is true while it saves.
    """

    saving = False

    def __init__(self, dirpath: str | Path, keep: Whole = 3):
        if keep < 0:
            raise ValueError(f"checkpointing.keep_top={keep}: choose 0 (none) or more")
        super().__init__(
            dirpath,
            filename="miou={val/miou:.4f}-step={step:.0f}",
            auto_insert_metric_name=False,
            monitor="val/miou",
            mode="max",
            save_top_k=keep,
            enable_version_counter=False,
        )

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        self.saving = True
        try:
            super()._save_checkpoint(trainer, filepath)
        finally:
            self.saving = False


class LastCheckpoint(Checkpoint):
    """Keep ``last.ckpt``: after every validation, every ``every_n_minutes``, and when a run is interrupted.

    An exception between two steps or inside a validation (a picture that cannot be read, say) saves the state before
    it; one inside a step does not, since nobody knows how far the step had come. ``saving`` is true while it saves.
    """

    saving = False

    def __init__(self, dirpath: str | Path, every_n_minutes: NonNegative = 10.0):
        if every_n_minutes < 0:
            raise ValueError(f"checkpointing.every_n_minutes={every_n_minutes}: choose 0 (every step) or more")
        self.path = Path(dirpath) / "last.ckpt"
        self.every_n_minutes = every_n_minutes
        self._saved_at, self._saved_step = 0.0, -1

    def on_train_start(self, trainer: L.Trainer, pl_module) -> None:
        self._saved_at = time.monotonic()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        self._saved_step = checkpoint["global_step"]  # until a step is done, there is nothing to add to that file

    def on_train_batch_start(self, trainer: L.Trainer, pl_module, batch, batch_idx: int) -> None:
        new = trainer.global_step not in (0, self._saved_step)
        if new and may_stop(trainer, batch_idx) and self._due(trainer):
            self._save(trainer)

    def _due(self, trainer: L.Trainer) -> bool:
        due = time.monotonic() - self._saved_at >= 60 * self.every_n_minutes
        return due if trainer.world_size == 1 else trainer.strategy.broadcast(due)  # clocks differ: rank 0's counts

    def on_validation_end(self, trainer: L.Trainer, pl_module) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module, exception: BaseException) -> None:
        if self._can_save(trainer, exception):
            with contextlib.suppress(NotWritten):  # the first error is the one to show
                self._save(trainer)

    def _can_save(self, trainer: L.Trainer, exception: BaseException) -> bool:
        if trainer.state.fn != "fit" or isinstance(exception, (NotWritten, TrainingDiverged)):
            return False
        if isinstance(exception, Interrupted) and exception.at_once:
            return False
        if trainer.global_step in (0, self._saved_step):  # after the last one, averaged weights replace the others
            return False
        if trainer.world_size > 1 and not isinstance(exception, Interrupted):  # the others may not come to save
            return False
        done: Any = trainer.fit_loop.epoch_loop.batch_progress.current  # Lightning's annotation is too narrow
        whole_step = done.started == done.completed and done.completed % trainer.accumulate_grad_batches == 0
        return whole_step and not trainer.should_stop  # a run that is over is not resumed into its last validation

    def _save(self, trainer: L.Trainer) -> None:
        self.saving = True
        try:
            trainer.save_checkpoint(self.path)
        finally:
            self.saving = False
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step


def follow_folder(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Let a checkpoint know its best ones where they are now: in a folder that was moved, or reached by a link.

    Lightning forgets the best score where its folder has another name, and would overwrite best.ckpt with the next one;
    it counts a file that is gone, and the run could not be scored by it at its end.
    """
    resumed_from = Path(str(trainer.ckpt_path)).resolve()
    for callback in trainer.checkpoint_callbacks:
        state = checkpoint.get("callbacks", {}).get(callback.state_key)
        if isinstance(callback, ModelCheckpoint) and callback.dirpath and isinstance(state, dict):
            in_this_run = resumed_from.parent == Path(callback.dirpath).resolve()
            own = _own_score(callback, state, checkpoint, trainer.is_global_zero) if in_this_run else {}
            _relocate(state, callback, resumed_from.parent, own)
            if isinstance(callback, TopCheckpoints) and in_this_run:
                _count_this_one(state, callback, checkpoint, resumed_from if trainer.is_global_zero else None)


def _own_score(
    callback: ModelCheckpoint, state: dict[str, Any], checkpoint: dict[str, Any], speaks: bool
) -> dict[str, Any]:
    """The score that the run's best checkpoint has in itself, by its path; nothing where the state has the same.

    A checkpoint that forgets it, or gives it another score, would have it overwritten by a worse one, or by none.
    """
    path = Path(str(callback.dirpath)) / f"{callback.filename}.ckpt"
    if isinstance(callback, TopCheckpoints) or not path.is_file():
        return {}
    try:
        found = load_plainly(path)
    except WeightsError:  # the run has said so, where that matters
        return {}
    record, resumed = (one.get("fcnlab", {}) for one in (found, checkpoint))
    facts = record.get("selection")
    if not is_one(facts, OF_A_CHECKPOINT) or (facts["checkpoint"], facts["monitor"]) != ("best", callback.monitor):
        return {}
    runs = [part(one, "trained").get("run") for one in (record, resumed)]
    score = facts["val_miou"]
    if runs[0] != runs[1] or facts["step"] > checkpoint["global_step"] or score is None or not 0 <= score <= 1:
        return {}
    known = {Path(name).name: value for name, value in state["best_k_models"].items()}.get(path.name)
    if known is not None and float(known) == score:
        return {}
    if speaks:
        tells = "does not know it" if known is None else f"gives it {float(known):.4f}"
        log.warning(
            "Warning: %s has a score of %.4f in it, which counts, though the last checkpoint %s", path, score, tells
        )
    return {str(path): torch.tensor(score, dtype=torch.float64)}


def _relocate(state: dict[str, Any], callback: ModelCheckpoint, resumed_in: Path, own: dict[str, Any]) -> None:
    """``own``: a score that counts whatever the state has. ``resumed_in`` is the checkpoint's folder.

    That of the callback Lightning has resolved, so all are real paths.
    """
    folder = Path(str(callback.dirpath))
    known = {folder / Path(path).name: score for path, score in state["best_k_models"].items()}
    there = {str(path): score for path, score in known.items() if path.is_file()} | own
    if not there and folder not in (resumed_in, Path(state["dirpath"]).resolve()):
        return  # another run's checkpoint, whose best is none of this one's
    state["dirpath"], state["last_model_path"] = str(folder), ""
    _rank(state, callback, there)


def _rank(state: dict[str, Any], callback: ModelCheckpoint, there: dict[str, Any]) -> None:
    ranked = sorted(there, key=lambda path: float(there[path]), reverse=callback.mode == "max")
    state["best_k_models"] = there
    state["best_model_path"] = ranked[0] if ranked else ""
    state["best_model_score"] = there[ranked[0]] if ranked else None
    state["kth_best_model_path"] = ranked[-1] if ranked else ""
    state["kth_value"] = there[ranked[-1]] if ranked else callback.kth_value


def _count_this_one(
    state: dict[str, Any], callback: TopCheckpoints, checkpoint: dict[str, Any], file: Path | None
) -> None:
    """Let the best few know a best.ckpt that the run resumes from: it was saved before their turn had come.

    The run does not validate there again, and the disk may have been full by then. ``file`` is that checkpoint, in the
    process that writes.
    """
    facts = checkpoint["fcnlab"].get("selection") or {}
    if facts.get("checkpoint") != "best" or facts["val_miou"] is None:
        return
    score = torch.tensor(facts["val_miou"], dtype=torch.float64)
    path = callback.format_checkpoint_name({"val/miou": score, "step": torch.tensor(facts["step"])})
    known = state["best_k_models"]
    kept = dict(sorted((known | {path: score}).items(), key=lambda found: -float(found[1]))[: callback.save_top_k])
    if file and path in kept and not Path(path).is_file():
        with aside(Path(path)) as part:
            shutil.copyfile(file, part)
    if file:
        for one in known.keys() - kept.keys():
            Path(one).unlink(missing_ok=True)
    _rank(state, callback, kept)
