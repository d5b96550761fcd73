"""A metric: the mean Dice coefficient, logged at each validation and of the final evaluation."""

from fcnlab import Segmenter
from lightning import Callback, Trainer
from torch import Tensor


def mean_dice(matrix: Tensor) -> Tensor:
    """Return the mean Dice coefficient of a confusion matrix (target, prediction), over the classes that occur."""
    matrix = matrix.double()
    pixels = matrix.sum(0) + matrix.sum(1)
    return (2 * matrix.diag() / pixels)[pixels > 0].mean()


class MeanDice(Callback):
    """Log ``val/mean_dice``, and at the end ``final/mean_dice`` or ``test/mean_dice``."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Segmenter) -> None:
        self._log(pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Segmenter) -> None:
        self._log(pl_module, pl_module.scored_as)

    def _log(self, segmenter: Segmenter, stage: str) -> None:
        _, matrices = segmenter.confusions.compute()  # one for each image, from all devices
        segmenter.log(f"{stage}/mean_dice", mean_dice(matrices.sum(0)))
