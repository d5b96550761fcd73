"""The LightningModule: one step for training, validation and test."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import lightning as L
import torch
from jaxtyping import Float, Int64, UInt8
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from fcnlab.errors import UserError
from fcnlab.inference import InferenceMethod, NoPostprocess, Postprocess, WholeImage
from fcnlab.library_internals.lightning import forget_training_batches, logs_this_step
from fcnlab.library_internals.torch import multiply_each
from fcnlab.metrics.confusion import ImageConfusions, dataset_scores
from fcnlab.models import FCN, CoarseScores
from fcnlab.training.losses import LEAST, PixelCount, is_sum_over_pixels, mean_from, sum_and_count, supports_row_blocks
from fcnlab.training.optimizers import Schedule

Stage = Literal["train", "val", "test", "final"]
ScoreMap = Float[Tensor, "batch classes rows cols"]
# Sums over pixels are divided by it on their way through the net, for the range of half precision: the pixels of a
# image of 512x512, and a power of two, so that nothing is rounded.
UNIT = 2.0**18


class Segmenter(L.LightningModule):
    """Trains and scores a net that gives scores for every pixel of RGB images in 0..1.

    A step may come in parts: ``accumulate_grad_batches``, on each of ``world_size`` devices. Each adds its sum over
    pixels and its count, and the gradients are divided once, by the count of all, before they are clipped: where the
    loss :func:`~fcnlab.training.losses.is_sum_over_pixels` the step is that of one device with all the images, but for what the net itself
    does by batch (batch normalisation, dropout). A strategy has to average gradients over devices, as DDP does. In half
    precision with a scaler, gradients are unscaled before; no GPU has seen that yet.

    ``train_loss`` is the loss of the last optimiser step, over all its parts on all devices, on the device; None before
    the first. That is what is logged as ``train/loss``: the number that one device with all the images would log.

    Parameters
    ----------
    classes
        Names, by class id.
    record
        Plain values that go into every checkpoint, so that it can be used without the run's folder.
    optimizer, schedule
        ``optimizer(net)``, and ``schedule(total_steps)``, which gives the factor on the rate at a step. Without them
        the module only evaluates.
    channels_last
        Keep images and weights in that memory format: the same result but for rounding, faster where the device's
        convolutions want it.
    row_blocks
        Take the loss (where it is a sum over pixels) and the labels straight from the coarse scores, some rows of the
        image at a time: the same but for rounding, in less memory and time.
    compiled
        Let torch compile the backbone for training. Evaluation, whose images have many sizes, runs without.
    inference, postprocess
        How evaluation computes scores, and what works on their probabilities: by default one pass over the whole image,
        and nothing.

    Attributes
    ----------
    scored_as
        What Trainer.test logs scores under: "test", or "final" where the images are those of the validations.
    """

    def __init__(
        self,
        net: FCN,
        classes: Sequence[str],
        loss: nn.Module | None = None,
        optimizer: Callable[[nn.Module], Optimizer] | None = None,
        schedule: Callable[[int], Callable[[int], float]] | None = None,
        record: dict[str, Any] | None = None,
        channels_last: bool = False,
        row_blocks: bool = False,
        compiled: bool = False,
        inference: InferenceMethod | None = None,
        postprocess: Postprocess | None = None,
    ):
        super().__init__()
        if net.num_classes != len(classes):
            raise UserError(
                f"model.num_classes={net.num_classes}, and the data have {len(classes)} classes: leave it out (it"
                " follows data.num_classes)"
            )
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(memory_format=self.memory_format)
        if compiled:
            assert isinstance(net.backbone, nn.Module)
            net.backbone.compile()
        self.classes = list(classes)
        self.inference, self.postprocess = inference or WholeImage(), postprocess or NoPostprocess()
        self.loss, self.make_optimizer, self.make_schedule = loss, optimizer, schedule
        self.row_blocks = row_blocks and (loss is None or supports_row_blocks(loss))
        self.record = record or {}
        self.scored_as: Literal["test", "final"] = "test"
        self.train_loss: Tensor | None = None
        self._sums: Tensor | None = None  # the total and the count of the parts of a step so far
        self._unit = UNIT if loss is not None and is_sum_over_pixels(loss) else 1.0
        self.confusions = ImageConfusions(0, len(self.classes))  # one for each set, when it is evaluated
        self._of_step: dict[str, Tensor] = {}  # what there is to log of the last optimiser step

    def forward(self, image: UInt8[Tensor, "batch 3 rows cols"]) -> ScoreMap:
        """Scores of every pixel; the images are RGB in 0..255, as they travel."""
        images = self._images(image)
        if self.training:
            return self.net(images)
        with torch.compiler.set_stance("force_eager"):
            if isinstance(self.postprocess, NoPostprocess):
                return self.inference(self.net, images)
            return self.postprocess(self.inference.probabilities(self.net, images), images)

    def _images(self, image: UInt8[Tensor, "batch 3 rows cols"]) -> Float[Tensor, "batch 3 rows cols"]:
        return (image.float() / 255).contiguous(memory_format=self.memory_format)

    def _scores(self, image: UInt8[Tensor, "batch 3 rows cols"]) -> ScoreMap | CoarseScores:
        """Scores in single precision: on the way to every pixel, where what follows takes them so.

        The scores of a whole image that nothing post-processes are upsampled in single precision, too: which of the two
        it is changes no score.
        """
        plain = isinstance(self.inference, WholeImage) and isinstance(self.postprocess, NoPostprocess)
        if not (self.training or plain):
            return self(image).float()
        with torch.compiler.set_stance("default" if self.training else "force_eager"):
            scores = self.net.coarse(self._images(image)).float()
        return scores if self.row_blocks else scores.full()

    def _step(self, batch: dict[str, Tensor], stage: Stage) -> dict[str, Tensor]:
        scores = self._scores(batch["image"])
        result = {}
        if self.loss is not None:
            target = batch["mask"] if isinstance(scores, CoarseScores) else batch["mask"].long()
            result["total"], result["count"] = sum_and_count(self.loss, scores, target)
            result["loss"] = mean_from(result["total"], result["count"])
        if stage != "train":
            result["prediction"] = class_map(scores)
            self.confusions.update(result["prediction"], batch["mask"], batch["index"])
        return result

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """What gradients come from: the loss, or, of a step in parts, a sum that :meth:`_divide` makes the loss of.

        Lightning divides by the batches that are accumulated, DDP by the devices: both are undone here.
        """
        result = self._step(batch, "train")
        parts = self.trainer.world_size * self.trainer.accumulate_grad_batches
        if parts == 1:
            self.train_loss = result["loss"].detach()
            return result["loss"]
        self._add(result["total"].detach(), result["count"])
        return result["total"] * (parts / self._unit)

    def _add(self, total: Float[Tensor, ""], count: PixelCount) -> None:
        counted = total.new_full((), count) if isinstance(count, int) else count.to(total.dtype)
        sums = torch.stack([total, counted])
        self._sums = sums if self._sums is None else self._sums + sums

    def on_train_start(self) -> None:
        self._sums = self.train_loss = None  # of a training that ended inside a step

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Behind the callbacks' hooks of this name and the scaler's division, before clipping."""
        if self._sums is not None:
            self._divide(optimizer, self._sums)
            self._sums = None
        assert self.train_loss is not None
        self._of_step = {"train/loss": self.train_loss, "train/lr": torch.tensor(self._rate())}  # numbers on the host

    def _divide(self, optimizer: Optimizer, sums: Float[Tensor, "2"]) -> None:
        """Divide the gradients of a step's total by its count, over all parts: where all is void they are 0."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        total, count = sums.unbind()
        self.train_loss = mean_from(total, count)
        factor = (self._unit / count.clamp(min=LEAST)).where(count > 0, 0)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        multiply_each(gradients, factor)

    def on_train_batch_end(self, *args) -> None:
        """Log a step of which Lightning writes a row; of the others nobody reads what it would take its time for."""
        if logs_this_step(self.trainer):
            self.log_dict(self._of_step)
            self._log_step(self.global_step)

    def validation_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._evaluated(batch, "val")

    def test_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._evaluated(batch, self.scored_as)

    def _evaluated(self, batch: dict[str, Tensor], stage: Stage) -> dict[str, Tensor]:
        result = self._step(batch, stage)
        if "loss" in result:
            self.log(f"{stage}/loss", result["loss"], on_epoch=True, sync_dist=True, batch_size=len(batch["image"]))
        return result

    def predict_step(self, batch: dict[str, Tensor]) -> Int64[Tensor, "batch rows cols"]:
        return class_map(self._scores(batch["image"]))

    def on_validation_epoch_start(self) -> None:
        self._share_statistics()
        self._count_afresh(self.trainer.val_dataloaders)

    def on_test_epoch_start(self) -> None:
        self._count_afresh(self.trainer.test_dataloaders)

    def _share_statistics(self) -> None:
        """Take rank 0's running statistics, as its checkpoint will: each rank has those of its own last batches."""
        if self.trainer.world_size > 1:
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def _count_afresh(self, loader) -> None:
        self.confusions = ImageConfusions(len(loader.dataset), len(self.classes)).to(self.device)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores(self.scored_as)

    def _log_scores(self, stage: Stage) -> None:
        _, matrices = self.confusions.compute()
        found = dataset_scores(matrices).flat(self.classes)
        for name, value in found.items():
            if value == value:  # not nan: a class that nothing defines a score for has none in the logs either
                self.log(f"{stage}/{name}", _exact(value), prog_bar=name == "miou")
        self._log_step(self.global_step)

    def _rate(self) -> float:
        """The rate of the heads' weights, which is optim.lr times the schedule's factor."""
        groups = self.trainer.optimizers[0].param_groups
        return next(group["lr"] for group in groups if group["name"] == "heads/weight")

    def _log_step(self, done: int) -> None:
        """The optimiser steps done, as the step of what is logged: Lightning's own count differs after resuming."""
        self.log_dict({"step": _exact(done), "epoch": _exact(self.current_epoch)})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        assert self.make_optimizer and self.make_schedule, "built for evaluation only"
        optimizer = self.make_optimizer(self.net)
        schedule = Schedule(optimizer, self.make_schedule(self._length()))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _length(self) -> int:
        """The run's optimiser steps."""
        steps = int(self.trainer.estimated_stepping_batches)
        # Where epochs limit the run, Lightning has asked for the training batches to count them, and would keep them:
        # but a resumed run does not know yet from which batch it goes on.
        forget_training_batches(self.trainer)
        return steps

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["fcnlab"] = self.record


def _exact(value: float) -> Float[Tensor, ""]:
    """Lightning makes plain numbers single precision."""
    return torch.tensor(value, dtype=torch.float64)


def class_map(scores: ScoreMap | CoarseScores) -> Int64[Tensor, "batch rows cols"]:
    """The best class of every pixel; of equals, the first."""
    if isinstance(scores, CoarseScores):
        return torch.cat([_best(some) for _, some in scores.by_rows()], dim=1)
    return _best(scores)


def _best(scores: ScoreMap) -> Int64[Tensor, "batch rows cols"]:
    """On a CPU, torch compares whole vectors for a maximum, and single numbers for its place: so the place is found by
    another maximum, over bytes. That takes a half to a quarter of ``max``'s time, which takes that of ``argmax``.
    """
    classes = scores.shape[1]
    if not scores.is_cpu or classes > torch.iinfo(torch.uint8).max:
        return scores.max(1).indices
    rank = torch.arange(classes, 0, -1, dtype=torch.uint8)[:, None, None]
    first = (scores == scores.amax(1, keepdim=True)).to(torch.uint8).mul_(rank).amax(1)
    return (classes - first.long()).clamp_(max=classes - 1)  # a pixel that is not a number equals none
