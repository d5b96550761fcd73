"""The LightningModule: one step for training, validation and test."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, cast

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
from fcnlab.models import CoarseScores, Network
from fcnlab.training.losses import (
    MIN_COUNT,
    PixelCount,
    is_sum_over_pixels,
    mean_from,
    sum_and_count,
    supports_row_blocks,
)
from fcnlab.training.optimizers import Schedule

Stage = Literal["train", "val", "test", "final"]
ScoreMap = Float[Tensor, "batch classes rows cols"]
# Sums over pixels are divided by this before the backward pass, so that they stay in the range of half precision: the
# pixels of an image of 512x512, and a power of two, so that nothing is rounded.
UNIT = 2.0**18


class Segmenter(L.LightningModule):
    """Train and score a network that predicts class scores for every pixel of RGB images in 0..1.

    A step may consist of several parts: ``accumulate_grad_batches`` on each of ``world_size`` devices. Each part adds
    its sum over pixels and its count, and the gradients are divided once, by the total count, before they are clipped.
    Where the loss :func:`~fcnlab.training.losses.is_sum_over_pixels`, the step therefore equals that of one device with
    all the images, except for layers that work per batch (batch normalisation, dropout). The strategy must average
    gradients over devices, as DDP does. In half precision with a gradient scaler, gradients are unscaled first; this
    has not been tested on a GPU yet.

    ``train_loss`` is the loss of the last optimiser step over all its parts and devices, as a tensor on the device;
    None before the first step. It is logged as ``train/loss``: the number that one device with all images would log.

    Parameters
    ----------
    classes
        Class names, indexed by class id.
    record
        Plain values that are saved in every checkpoint, so that it can be used without the run's folder.
    optimizer, schedule
        ``optimizer(net)``, and ``schedule(total_steps)``, which returns a function from the step to the factor on the
        learning rate. Without them the module only evaluates.
    channels_last
        Keep images and weights in the channels-last memory format: the same result up to rounding, and faster where
        the device's convolutions prefer it.
    row_blocks
        Compute the loss (where it is a sum over pixels) and the predictions from the coarse scores, a block of image
        rows at a time: the same result up to rounding, in less memory and time.
    compiled
        Compile the backbone, or a network of another library as a whole, for training. Evaluation runs without
        compilation, since its images have many sizes.
    inference, postprocess
        The inference method of evaluation, and the post-processing of its probabilities: by default one pass over the
        whole image without post-processing.
    ensemble
        Further networks, for evaluation only: the class probabilities of all networks are averaged. One network at a
        time computes its probabilities, so only the weights take more memory.

    Attributes
    ----------
    scored_as
        The prefix under which Trainer.test logs scores: "test", or "final" if the images are the validation images.
    """

    def __init__(
        self,
        net: Network,
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
        ensemble: Sequence[Network] = (),
    ):
        super().__init__()
        if net.num_classes != len(classes):
            raise UserError(
                f"model.num_classes={net.num_classes}, but the data have {len(classes)} classes: leave it out, since it"
                " follows data.num_classes"
            )
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(memory_format=self.memory_format)
        self.others = nn.ModuleList(other.to(memory_format=self.memory_format) for other in ensemble)
        if compiled:
            net.compiled_part.compile()
        self.classes = list(classes)
        self.inference, self.postprocess = inference or WholeImage(), postprocess or NoPostprocess()
        self.loss, self.make_optimizer, self.make_schedule = loss, optimizer, schedule
        self.row_blocks = row_blocks and net.scores_rows_alone and (loss is None or supports_row_blocks(loss))
        self.record = record or {}
        self.scored_as: Literal["test", "final"] = "test"
        self.train_loss: Tensor | None = None
        self._sums: Tensor | None = None  # total and count of the finished parts of the current step
        self._unit = UNIT if loss is not None and is_sum_over_pixels(loss) else 1.0
        self.confusions = ImageConfusions(0, len(self.classes))  # replaced when an evaluation begins
        self._step_metrics: dict[str, Tensor] = {}  # metrics of the last optimiser step, to be logged

    def forward(self, image: UInt8[Tensor, "batch 3 rows cols"]) -> ScoreMap:
        """Return class scores for every pixel; the images are RGB in 0..255, as the data loader returns them."""
        images = self._images(image)
        if self.training:
            return self.net(images)
        with torch.compiler.set_stance("force_eager"):
            if isinstance(self.postprocess, NoPostprocess) and not self.others:
                return self.inference(self.net, images)
            return self.probabilities(images)

    @property
    def nets(self) -> list[Network]:
        """The network, and the further networks of an ensemble."""
        return [self.net, *cast(Iterable[Network], self.others)]

    def probabilities(self, images: Float[Tensor, "batch 3 rows cols"]) -> ScoreMap:
        """Return post-processed class probabilities of RGB images in 0..1, averaged over the networks of an ensemble.

        Post-processing is applied to the average.
        """
        first, *others = self.nets
        mean = self.inference.probabilities(first, images)
        for net in others:
            mean = mean + self.inference.probabilities(net, images)
        return self.postprocess(mean / len(self.nets), images)

    def _images(self, image: UInt8[Tensor, "batch 3 rows cols"]) -> Float[Tensor, "batch 3 rows cols"]:
        return (image.float() / 255).contiguous(memory_format=self.memory_format)

    def _scores(self, image: UInt8[Tensor, "batch 3 rows cols"]) -> ScoreMap | CoarseScores:
        """Return scores in single precision: coarse scores with ``row_blocks``, otherwise scores of every pixel.

        Without post-processing, the scores of a whole image are upsampled in single precision in both cases, so that
        ``row_blocks`` does not change any score.
        """
        whole_image = isinstance(self.inference, WholeImage) and isinstance(self.postprocess, NoPostprocess)
        whole_image = whole_image and not self.others
        if not (self.training or whole_image):
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
        """Return the loss, or, in a step of several parts, the sum whose gradients :meth:`_divide` normalises.

        Lightning divides by the number of accumulated batches and DDP by the number of devices: both are undone here.
        """
        result = self._step(batch, "train")
        parts = self.trainer.world_size * self.trainer.accumulate_grad_batches
        if parts == 1:
            self.train_loss = result["loss"].detach()
            return result["loss"]
        self._add(result["total"].detach(), result["count"])
        return result["total"] * (parts / self._unit)

    def _add(self, total: Float[Tensor, ""], count: PixelCount) -> None:
        count_tensor = total.new_full((), count) if isinstance(count, int) else count.to(total.dtype)
        sums = torch.stack([total, count_tensor])
        self._sums = sums if self._sums is None else self._sums + sums

    def on_train_start(self) -> None:
        self._sums = self.train_loss = None  # a previous fit may have ended inside a step

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Normalise the gradients: after the callbacks' hooks and the scaler's division, before clipping."""
        if self._sums is not None:
            self._divide(optimizer, self._sums)
            self._sums = None
        assert self.train_loss is not None
        self._step_metrics = {"train/loss": self.train_loss}
        if logs_this_step(self.trainer):
            self._step_metrics |= self._optimizer_metrics(optimizer)

    def _optimizer_metrics(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """Return the learning rates and the norm of all gradients before clipping.

        The norm stays on the device: reading it would wait for the device in each logged step.
        """
        gradients = [parameter.grad for parameter in _parameters(optimizer) if parameter.grad is not None]
        rates = {name: torch.tensor(rate) for name, rate in learning_rates(optimizer).items()}  # on the CPU
        return rates | {"train/grad_norm": torch.nn.utils.get_total_norm(gradients)}

    def _divide(self, optimizer: Optimizer, sums: Float[Tensor, "2"]) -> None:
        """Divide the gradients of a step's total by its count, over all parts; 0 where all pixels are ignored."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        total, count = sums.unbind()
        self.train_loss = mean_from(total, count)
        factor = (self._unit / count.clamp(min=MIN_COUNT)).where(count > 0, 0)
        gradients = [parameter.grad for parameter in _parameters(optimizer) if parameter.grad is not None]
        multiply_each(gradients, factor)

    def on_train_batch_end(self, *args) -> None:
        """Log the steps for which Lightning writes a row; logging the others would only cost time."""
        if logs_this_step(self.trainer):
            self.log_dict(self._step_metrics)
            self._log_step(self.global_step)

    def validation_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._evaluation_step(batch, "val")

    def test_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._evaluation_step(batch, self.scored_as)

    def _evaluation_step(self, batch: dict[str, Tensor], stage: Stage) -> dict[str, Tensor]:
        result = self._step(batch, stage)
        if "loss" in result:
            self.log(f"{stage}/loss", result["loss"], on_epoch=True, sync_dist=True, batch_size=len(batch["image"]))
        return result

    def predict_step(self, batch: dict[str, Tensor]) -> Int64[Tensor, "batch rows cols"]:
        return class_map(self._scores(batch["image"]))

    def on_validation_epoch_start(self) -> None:
        self._share_statistics()
        self._reset_confusions(self.trainer.val_dataloaders)

    def on_test_epoch_start(self) -> None:
        self._reset_confusions(self.trainer.test_dataloaders)

    def _share_statistics(self) -> None:
        """Copy rank 0's running statistics to all ranks, since checkpoints are saved by rank 0."""
        if self.trainer.world_size > 1:
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def _reset_confusions(self, loader) -> None:
        self.confusions = ImageConfusions(len(loader.dataset), len(self.classes)).to(self.device)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores(self.scored_as)

    def _log_scores(self, stage: Stage) -> None:
        _, matrices = self.confusions.compute()
        for name, value in dataset_scores(matrices).flat(self.classes).items():
            if value == value:  # skip nan, the score of a class without ground truth and predictions
                self.log(f"{stage}/{name}", _exact(value), prog_bar=name == "miou")
        self._log_step(self.global_step)

    def _log_step(self, step: int) -> None:
        """Log the number of optimiser steps as the step: Lightning's own logging step differs after resuming."""
        self.log_dict({"step": _exact(step), "epoch": _exact(self.current_epoch)})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        assert self.make_optimizer and self.make_schedule, "built for evaluation only"
        optimizer = self.make_optimizer(self.net)
        schedule = Schedule(optimizer, self.make_schedule(self._total_steps()))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _total_steps(self) -> int:
        """Return the number of optimiser steps of the whole run."""
        steps = int(self.trainer.estimated_stepping_batches)
        # Where epochs limit the run, Lightning has opened the training batches to count them and would keep them open,
        # but a resumed run does not know yet at which batch it resumes.
        forget_training_batches(self.trainer)
        return steps

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["fcnlab"] = self.record


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """Return ``train/lr``, that of the heads' weights (optim.lr times the schedule's factor), and those that differ.

    The others are named by their parameter group, such as ``train/lr/backbone/weight``. A group whose initial learning
    rate equals that of a group before it has the same learning rate at every step, and is left out.
    """
    rates: dict[str, float] = {}
    initial: set[float] = set()
    for group in sorted(optimizer.param_groups, key=lambda group: group["name"] != "heads/weight"):
        if group["initial_lr"] not in initial:
            rates[f"train/lr/{group['name']}" if initial else "train/lr"] = group["lr"]
            initial.add(group["initial_lr"])
    return rates


def _exact(value: float) -> Float[Tensor, ""]:
    """Return a double-precision tensor: Lightning would convert a plain number to single precision."""
    return torch.tensor(value, dtype=torch.float64)


def class_map(scores: ScoreMap | CoarseScores) -> Int64[Tensor, "batch rows cols"]:
    """Return the argmax over classes for every pixel; the first class where several are equal."""
    if isinstance(scores, CoarseScores):
        return torch.cat([_argmax(block) for _, block in scores.by_rows()], dim=1)
    return _argmax(scores)


def _argmax(scores: ScoreMap) -> Int64[Tensor, "batch rows cols"]:
    """Return the argmax over classes, by two maxima on a CPU.

    There torch computes a maximum with vector instructions, but its index one number at a time. So the index is found
    by a second maximum, over bytes, which takes a half to a quarter of the time of ``max`` or ``argmax``.
    """
    classes = scores.shape[1]
    if not scores.is_cpu or classes > torch.iinfo(torch.uint8).max:
        return scores.max(1).indices
    rank = torch.arange(classes, 0, -1, dtype=torch.uint8)[:, None, None]
    first = (scores == scores.amax(1, keepdim=True)).to(torch.uint8).mul_(rank).amax(1)
    return (classes - first.long()).clamp_(max=classes - 1)  # nan equals no maximum
