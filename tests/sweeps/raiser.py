"""For runs in other processes: callbacks that raise in one rank, and that record the training images."""

from pathlib import Path

from lightning.pytorch.callbacks import Callback


class RaiseIn(Callback):
    """Raise an error in the run's third batch, in one rank only; -1: in none."""

    def __init__(self, rank: int):
        self.rank, self.seen = rank, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        self.seen += 1
        if self.seen == 3 and trainer.global_rank == self.rank:
            raise RuntimeError(f"rank {self.rank} was asked to fail")


class NoteImages(Callback):
    """Write a line "EPOCH RANK INDEX" to ``seen-RANK.txt`` in the run's folder for each training image."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        rank = trainer.global_rank
        with Path(trainer.default_root_dir, f"seen-{rank}.txt").open("a") as file:
            file.writelines(f"{trainer.current_epoch} {rank} {int(index)}\n" for index in batch["index"])
