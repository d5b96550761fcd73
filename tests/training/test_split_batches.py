"""Steps in parts: accumulated batches make the step of one large batch, where the loss is a sum divided by a count.

Several devices: tests/tasks/test_processes.py.
"""

from functools import partial

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from fcnlab.models import FCN, Tiny
from fcnlab.training.callbacks import EMA
from fcnlab.training.losses import OHEM, CentrePixels, CrossEntropy, CrossEntropySum, Dice, Focal, SampledPixels
from fcnlab.training.optimizers import constant, sgd
from fcnlab.training.segmenter import Segmenter

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),  # nothing validated
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*is deprecated:FutureWarning"),  # Lightning's use of torch
    pytest.mark.filterwarnings("ignore:Found .* module:UserWarning"),  # norms at rest
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning"),  # the scaler left a step out
]
CLASSES = ["background", "cat", "dog"]
WEIGHTS = [0.2, 1.0, 5.0]
SCALE, CLIP = 0.05, 0.5


def images(count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """With more and more ignored pixels, from none to all of an image, in turns of five."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (count, 3, 32, 40), generator=generator, dtype=torch.uint8)
    mask = torch.randint(len(CLASSES), (count, 32, 40), generator=generator, dtype=torch.uint8)
    for place in range(count):
        mask[place, : 8 * (place % 5)] = 255
    return {"image": image, "mask": mask, "index": torch.arange(count)}


def cut(whole: dict[str, torch.Tensor], sizes) -> list[dict[str, torch.Tensor]]:
    parts = {name: value.split(sizes) for name, value in whole.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def without_batch_statistics(loss, **settings) -> Segmenter:
    torch.manual_seed(0)
    net = FCN(Tiny(width=4), len(CLASSES))
    for head in net.heads.parameters():
        nn.init.normal_(head)
    rest(net)
    return Segmenter(net, CLASSES, loss, partial(sgd, lr=SCALE), constant, **settings)


def rest(net: nn.Module) -> None:
    """Lightning leaves norms so."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()


class Losses(L.Callback):
    """What is said of each optimiser step."""

    def __init__(self):
        self.found = {}

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        if pl_module.train_loss is not None:
            self.found[trainer.global_step] = pl_module.train_loss.item()


def fit(module: Segmenter, batches, accumulate: int, callbacks=(), **settings) -> list[float]:
    """Train for an epoch; give the losses of its steps."""
    losses = Losses()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "log_every_n_steps": 1}
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=CLIP,
        enable_model_summary=False,
        callbacks=[losses, *callbacks],
        **quiet,
        **settings,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    if losses.found:
        assert trainer.callback_metrics["train/loss"] == pytest.approx(
            list(losses.found.values())[-1]
        )  # what is logged
    return list(losses.found.values())


def at_once(module: Segmenter, batches, loss) -> list[float]:
    """Independently: torch's own loop, each step over one batch."""
    optimizer, losses = sgd(module.net.train(), lr=SCALE), []
    rest(module.net)
    for each in batches:
        found = loss(module.net(each["image"].float() / 255), each["mask"].long())
        optimizer.zero_grad()
        found.backward()
        nn.utils.clip_grad_norm_(module.net.parameters(), CLIP)
        optimizer.step()
        losses.append(found.item())
    return losses


def weights_of(module: Segmenter) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.net.parameters()).detach()


def apart(one: Segmenter, other: Segmenter) -> float:
    """How far two trainings lie apart, as a share of the way that they went."""
    start, first, second = (weights_of(module) for module in (without_batch_statistics(None), one, other))
    return ((first - second).norm() / (first - start).norm()).item()


def mean_cross_entropy(scores, target, weight=None):
    """torch's own; its mean of nothing is not a number."""
    if (target == 255).all():
        return 0 * scores.sum()
    return F.cross_entropy(scores, target, weight, ignore_index=255)


EXACT = {
    "ce": (CrossEntropy(), mean_cross_entropy),
    "weighted": (CrossEntropy(WEIGHTS), partial(mean_cross_entropy, weight=torch.tensor(WEIGHTS))),
    "light": (CrossEntropy([1e-3, 2e-3, 0]), partial(mean_cross_entropy, weight=torch.tensor([1e-3, 2e-3, 0]))),
    "sum": (CrossEntropySum(), CrossEntropySum()),
    "focal": (Focal(), Focal()),
    "centre": (CentrePixels(CrossEntropy(WEIGHTS), 20), CentrePixels(CrossEntropy(WEIGHTS), 20)),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(
    ("size", "accumulate", "steps"),
    [(1, 4, [4] * 3), (2, 2, [4] * 3), (1, 3, [3, 3, 3, 3, 1]), (2, 5, [10, 4])],
    ids=["1x4", "2x2", "the last one short", "the last one shorter"],
)
@pytest.mark.parametrize("row_blocks", [True, False], ids=["by rows", "full scores"])
def test_accumulated_batches_are_one(name, size, accumulate, steps, row_blocks, monkeypatch):
    """Unequal void, one image with nothing else, clipped gradients: weights and losses are those of large batches."""
    monkeypatch.setattr("fcnlab.models.upsampling.BLOCK_ON_CPU", 1)
    (loss, independent), whole = EXACT[name], images(sum(steps))
    parts, one = without_batch_statistics(loss, row_blocks=row_blocks), without_batch_statistics(loss)
    found = fit(parts, cut(whole, [size] * (sum(steps) // size)), accumulate)
    assert found == pytest.approx(at_once(one, cut(whole, steps), independent), rel=1e-5)
    assert apart(one, parts) < 1e-5


def test_a_part_of_a_sampled_step_is_drawn_once(monkeypatch):
    """Total and count are of the same cells, and those of one step meet."""
    drawn, whole = torch.rand(12, 4, 5, generator=torch.Generator().manual_seed(3)), images(12)
    losses = []
    modules = [
        without_batch_statistics(SampledPixels(CrossEntropy(WEIGHTS), 0.5, cell=8), row_blocks=True) for _ in range(2)
    ]
    for module, train in ((modules[0], lambda module: fit(module, cut(whole, [1] * 12), 4)),
                          (modules[1], lambda module: at_once(module, cut(whole, [4] * 3), module.loss))):  # fmt: skip
        left = [drawn]

        def draw(count, rows, cols, device, left=left):
            found, left[0] = left[0][:count], left[0][count:]
            return found

        monkeypatch.setattr(torch, "rand", draw)
        losses.append(train(module))
        assert len(left[0]) == 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and apart(*modules) < 1e-5


def test_a_step_of_nothing_but_void_changes_nothing():
    whole = images(6)
    whole["mask"][:] = 255
    module = without_batch_statistics(CrossEntropy())
    before = weights_of(module).clone()
    module.make_optimizer = partial(sgd, lr=SCALE, weight_decay=0.0)
    assert fit(module, cut(whole, [1] * 6), 3) == [0, 0]
    assert torch.equal(weights_of(module), before)


@pytest.mark.parametrize("loss", [OHEM(0.25), Dice(), SampledPixels(Dice(), 1.0)], ids=["ohem", "dice", "sampled dice"])
def test_other_losses_are_averaged_over_parts(loss):
    """Independently: the mean of the losses of two batches. It is not that of both at once."""
    whole = images(8)
    parts, mean, one = (without_batch_statistics(loss) for _ in range(3))

    def averaged(scores, target):
        return (loss(scores[:2], target[:2]) + loss(scores[2:], target[2:])) / 2

    found = fit(parts, cut(whole, [2] * 4), 2)
    assert found == pytest.approx(at_once(mean, cut(whole, [4, 4]), averaged), rel=1e-5)
    assert apart(mean, parts) < 1e-5
    at_once(one, cut(whole, [4, 4]), loss)
    assert apart(one, parts) > 1e-4


def test_what_a_training_left_inside_a_step_is_not_added_to_the_next():
    class Stop(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
            if batch_idx == 1:
                raise RuntimeError("stopped")

    whole, module = images(8), without_batch_statistics(CrossEntropy())
    with pytest.raises(RuntimeError, match="stopped"):
        fit(module, cut(whole, [2] * 4), 2, [Stop()])
    one = without_batch_statistics(CrossEntropy())
    at_once(one, cut(whole, [4] * 2), CrossEntropy())
    fit(module, cut(whole, [2] * 4), 2)
    assert apart(one, module) < 1e-5


def test_the_average_of_weights_in_parts_is_that_at_once():
    whole, averages = images(12), []
    for sizes, accumulate in (([1] * 12, 4), ([4] * 3, 1)):
        average = EMA()
        fit(without_batch_statistics(CrossEntropy()), cut(whole, sizes), accumulate, [average])
        averages.append(nn.utils.parameters_to_vector(average.average.module.net.parameters()))
    torch.testing.assert_close(*averages, rtol=1e-5, atol=1e-6)


class Order(torch.amp.GradScaler):
    """A scaler that notes what it is asked for."""

    def __init__(self, scale: float):
        super().__init__("cpu", init_scale=scale)
        self.calls = []

    def unscale_(self, optimizer) -> None:
        self.calls.append("unscale")
        super().unscale_(optimizer)

    def step(self, optimizer, *args, **kwargs):
        self.calls.append("step")
        return super().step(optimizer, *args, **kwargs)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp16 that overflows"])
def test_half_precision_in_parts(precision, monkeypatch):
    """As at once, but for the rounding. Gradients are unscaled, divided, clipped, and then comes the step."""
    scaler = None if precision == "bf16" else Order(2.0**40 if "overflows" in precision else 2.0**12)
    plugin = MixedPrecision("bf16-mixed" if scaler is None else "16-mixed", "cpu", scaler)
    calls = [] if scaler is None else scaler.calls
    for name in ("_divide", "configure_gradient_clipping"):
        done = getattr(Segmenter, name)
        monkeypatch.setattr(Segmenter, name, lambda *a, n=name, d=done, **k: (calls.append(n), d(*a, **k))[1])
    parts, one = (without_batch_statistics(CrossEntropy(), row_blocks=True) for _ in range(2))
    whole, before = images(8), weights_of(parts).clone()
    losses = fit(parts, cut(whole, [1] * 8), 4, plugins=[plugin])
    assert losses[0] == pytest.approx(at_once(one, cut(whole, [4] * 2), CrossEntropy())[0], rel=0.02)
    scaling = [["unscale"], ["step"]] if scaler else [[], []]
    assert calls == 2 * [*scaling[0], "_divide", "configure_gradient_clipping", *scaling[1]]
    if "overflows" in precision:
        assert torch.equal(weights_of(parts), before) and parts._sums is None  # both steps were left out
    else:
        assert apart(one, parts) < 0.05
