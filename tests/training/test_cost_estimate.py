"""The cost estimate of a run: bytes counted by hand, and a clock that the test advances."""

import gc
import json
import resource
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn

from fcnlab.data import DataModule, open_shapes
from fcnlab.data.transforms import standard
from fcnlab.models import FCN
from fcnlab.models.tiny import Tiny
from fcnlab.training import cost_estimate
from fcnlab.training.callbacks import EMA
from fcnlab.training.cost_estimate import (
    CostEstimate,
    CostMeter,
    MemoryEstimate,
    compare_with_estimate,
    estimate_cost,
    loading_seconds,
    pace,
    step_bytes,
    step_pace,
    training_memory,
    validation_images,
    validation_pace,
    warn_about_memory,
    with_loading_time,
)
from fcnlab.training.losses import CrossEntropy, Lovasz
from fcnlab.training.memory import AllocationTracker, MemoryMeter, optimizer_bytes
from fcnlab.training.optimizers import adamw, constant, freeze, sgd
from fcnlab.training.segmenter import Segmenter


def segmenter(loss: nn.Module | None = None, optimizer=adamw) -> Segmenter:
    net = FCN(Tiny(width=4), 21, (32, 16, 8))
    return Segmenter(net, list("abcdefghijklmnopqrstu"), loss or CrossEntropy(), partial(optimizer, lr=0.1), constant)


def test_allocation_tracker_counts_living_tensors():
    before = torch.empty(1000, device="meta")
    with AllocationTracker() as tracker:
        one = torch.empty(100, device="meta")  # 400 bytes
        two = one + 1  # 400 more
        del one
        three = two * 2  # 400, where the first ones were
        three.add_(1)  # nothing
        before.add_(1)  # nothing
        view = three[:10]  # nothing
    assert tracker.peak == 800 and tracker.now == 800 and view.numel() == 10


class OneLayer(nn.Module):
    """A step of three numbers to two, for ``count`` examples: the loss is the sum of what is positive."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 2, bias=False)

    def _step(self, batch, stage):
        return {"loss": torch.relu(self.net(batch["image"])).sum()}


def test_step_bytes_match_a_count_by_hand():
    """5 examples. While relu works: gradients 2 x 3, its input 5 x 2, its result 5 x 2, of 4 bytes each. Later there
    is less: the result, its gradient of 5 x 2 and the loss; then the gradients of the weights and of the result."""
    net = OneLayer().to("meta")
    assert step_bytes(net, {"image": torch.empty(5, 3, device="meta")}) == 4 * (6 + 10 + 10)


@pytest.mark.parametrize(
    ("optimizer", "kept"), [(partial(sgd, momentum=0.9), 1), (adamw, 2), (partial(sgd, momentum=0), 0)]
)
def test_optimizer_bytes_per_parameter(optimizer, kept):
    net = FCN(Tiny(width=4), 21, (32,)).to("meta")
    numbers = sum(parameter.numel() for parameter in net.parameters())
    counts = len(list(net.parameters())) if optimizer is adamw else 0  # Adam counts the steps of each tensor
    state, peak = optimizer_bytes(partial(optimizer, lr=0.1), net)
    assert state == 4 * (kept * numbers + counts)
    assert 4 * numbers <= peak < 4 * 4 * numbers  # gradients, and temporary tensors of one parameter after the other
    assert all(parameter.grad is None for parameter in net.parameters())


def test_memory_is_the_sum_of_its_parts():
    made = segmenter()
    numbers = sum(tensor.numel() * tensor.element_size() for tensor in [*made.net.parameters(), *made.net.buffers()])
    small, large = (training_memory(made, (count, 64, 64)) for count in (2, 8))
    assert small.weights == numbers and small.average == 0
    assert training_memory(made, (2, 64, 64), averaged=True).total == small.total + numbers
    assert 3.5 < large.step / small.step < 4.5  # activations are nearly all of it
    half = training_memory(made, (8, 64, 64), "bf16-mixed")
    assert large.step / 2 < half.step < 0.95 * large.step  # the scores, most of it here, stay single
    assert all(tensor.device.type == "cpu" for tensor in made.net.parameters())


def test_activations_of_a_resting_backbone_are_not_kept():
    resting = segmenter()
    resting.net.pretrained = True
    freeze(resting.net, 0)
    assert training_memory(resting, (4, 64, 64)).step < training_memory(segmenter(), (4, 64, 64)).step


def test_a_loss_that_looks_at_labels_is_stood_in_for():
    """Which classes are there decides what Lovász-softmax computes; on ``meta`` nobody can say."""
    lovasz, plain = training_memory(segmenter(Lovasz()), (4, 64, 64)), training_memory(segmenter(), (4, 64, 64))
    assert 0.9 * plain.step < lovasz.step < 1.5 * plain.step


class Clock:
    """Time that passes when somebody works."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Worker(nn.Module):
    """Takes ``each`` seconds for an image and ``call`` for every call, and the first time ``first`` besides."""

    def __init__(self, clock: Clock, each: float, call: float = 0.0, first: float = 0.0):
        super().__init__()
        self.clock, self.each, self.call, self.first = clock, each, call, first
        self.device, self.classes = torch.device("cpu"), ["a", "b"]

    def _step(self, batch, stage):
        self.clock.now += self.call + self.each * len(batch["image"]) + self.first
        self.first = 0.0
        return {"loss": torch.zeros(2, requires_grad=True).sum()}


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(cost_estimate.time, "perf_counter", made)
    return made


@pytest.mark.parametrize(
    ("each", "call", "times", "seconds", "images"),
    [
        (0.002, 0.006, 1000, 0.014, 4),  # a batch of 4 is measured as it is
        (2.0, 0.5, 99, 10.0, 1),  # one image is: 4 times 2.5
        (2.0, 0.5, 100, 8.5, 4),  # two batches are a fiftieth of a run of 100
    ],
)
def test_a_step_takes_what_the_net_takes(clock, each, call, times, seconds, images):
    measured = step_pace(Worker(clock, each, call), (4, 8, 8), nullcontext, times)
    assert measured.seconds == pytest.approx(seconds) and measured.images == images
    assert measured.samples >= 1 and clock.now < max(10, 0.03 * times * seconds)


class OfTwo(Worker):
    """Refuses a batch of one image, as batch normalisation does that gets one value per channel."""

    def _step(self, batch, stage):
        if len(batch["image"]) == 1:
            raise ValueError("Expected more than 1 value per channel when training")
        return super()._step(batch, stage)


@pytest.mark.parametrize(("each", "seconds", "images"), [(0.002, 0.014, 4), (2.0, 9.0, 2)])
def test_a_step_of_a_net_that_refuses_one_image(clock, each, seconds, images):
    """Four images at 2 s take 4 / 2 times the 4.5 s of two; where they are quick, the batch is measured as it is."""
    call = 0.5 if images == 2 else 0.006
    measured = step_pace(OfTwo(clock, each, call), (4, 8, 8), nullcontext, 99)
    assert measured.seconds == pytest.approx(seconds) and measured.images == images


def test_a_first_step_is_not_counted(clock):
    """What it takes besides was 30 times a step on a busy machine."""
    measured = step_pace(Worker(clock, 0.02, first=9.0), (1, 8, 8), nullcontext, 800)
    assert measured.seconds == pytest.approx(0.02) and measured.samples >= 2
    assert clock.now < 9 + 3.1


def test_pace_is_robust_to_slow_outliers(clock):
    times = iter([5.0, 0.1, 0.1, 7.0, *[0.1] * 30])

    def work():
        clock.now += next(times)

    assert pace(work, torch.device("cpu"), 1000).seconds == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("each", "times", "least", "most"),
    [
        (0.01, 10**6, 2, 0.4),  # of what is fast, many
        (1.0, 10**6, 2, 4.1),  # three seconds of what is slow, behind a first one
        (1.0, 20, 1, 2.1),  # in a short run one
        (11.0, 20, 0, 11.1),  # or, where that takes longer than anybody wants to wait, the first
        (11.0, 10**6, 1, 22.1),
    ],
)
def test_probe_takes_a_small_part_of_the_run(clock, each, times, least, most):
    measured = step_pace(Worker(clock, each), (1, 8, 8), nullcontext, times)
    assert measured.seconds == pytest.approx(each) and measured.samples >= least and clock.now <= most


@pytest.fixture
def images(shapes_root):
    return open_shapes(str(shapes_root), "val", num_train=24, num_val=8, size=64)


def test_validation_pace_is_per_image(clock, images):
    measured = validation_pace(Worker(clock, 0.25, 0.5, first=9), images, 2, nullcontext, 1000)
    assert measured.seconds == pytest.approx((0.5 + 2 * 0.25) / 2)


@pytest.mark.parametrize(("limit", "devices", "count"), [(1.0, 1, 8), (1.0, 2, 4), (3, 1, 6), (0.5, 1, 4), (100, 1, 8)])
def test_number_of_validation_images(images, limit, devices, count):
    """Limits count batches, here of two."""
    trainer = SimpleNamespace(limit_val_batches=limit, world_size=devices)
    assert validation_images(SimpleNamespace(split=lambda name: images, eval_batch_size=2), trainer) == count


def test_loading_time_is_the_median_without_the_first(clock, images):
    times = iter([100.0, 1, 2, 50, 3, 4])

    def augment(image, mask, seed):
        clock.now += next(times)

    assert loading_seconds(images, augment) == pytest.approx(3)


@pytest.mark.parametrize(
    ("loading", "workers", "device", "seconds"),
    [
        (0.5, 0, "cpu", 2.5),  # one after the other
        (0.5, 1, "cpu", 2.0),  # on a core that nobody else uses
        (3.0, 1, "cpu", 3.0),  # the worker is slower
        (3.0, 4, "cpu", 2.5),  # two cores have five seconds to work
        (3.0, 4, "cuda", 2.0),
        (5.0, 4, "cuda", 2.5),
    ],
)
def test_loading_shares_the_cores_with_computing(monkeypatch, loading, workers, device, seconds):
    """Two cores, and a net on one of them."""
    monkeypatch.setattr(cost_estimate, "visible_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert with_loading_time(2.0, loading, workers, torch.device(device)) == seconds


@pytest.fixture
def data(shapes_root) -> DataModule:
    opened = partial(open_shapes, num_train=24, num_val=8, size=64)
    return DataModule(opened, str(shapes_root), "train", "val", 21, standard, crop_size=64, batch_size=4, num_workers=0)


def trainer(**settings) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **settings)


@pytest.mark.parametrize(
    ("settings", "done", "steps", "validations"),
    [
        ({"max_steps": 10, "val_check_interval": 4}, 0, 10, 3),  # the last one at the end
        ({"max_steps": 10, "val_check_interval": 4}, 6, 4, 2),  # resumed: after 8 and 10
        ({"max_steps": 10, "val_check_interval": 8, "accumulate_grad_batches": 2}, 0, 10, 3),  # counted in batches
        ({"max_epochs": 3, "val_check_interval": 9}, 0, 18, 2),  # of 6 batches each
        ({"max_steps": 10, "max_epochs": 1, "val_check_interval": 9}, 0, 6, 1),
        ({"max_epochs": 3, "val_check_interval": 2, "limit_train_batches": 2}, 0, 6, 3),
        ({"max_steps": 10, "val_check_interval": 4}, 10, 0, 0),
    ],
)
def test_remaining_steps_and_validations(data, settings, done, steps, validations):
    estimate = estimate_cost(segmenter(), data, trainer(check_val_every_n_epoch=None, **settings), done)
    assert (estimate.steps, estimate.validations) == (steps, validations)
    assert estimate.step > 0 and estimate.validation > 0 and (estimate.minutes > 0) == (steps > 0)


def test_estimate_does_not_change_the_run(data):
    made = segmenter()
    made.net.backbone.eval()  # as a frozen one is
    state = {name: value.clone() for name, value in made.state_dict().items()}
    modes = [module.training for module in made.modules()]
    random = torch.get_rng_state()
    average = EMA()
    estimate = estimate_cost(made, data, trainer(max_steps=4, val_check_interval=2, callbacks=[average]))
    assert estimate.memory.average == estimate.memory.weights
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in made.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in made.state_dict().items())
    assert all(parameter.grad is None for parameter in made.parameters())


def test_estimate_respects_max_time(data):
    """A step and a validation take more than a thousandth of a second."""
    made = trainer(max_steps=2000, val_check_interval=10, check_val_every_n_epoch=None, max_time={"seconds": 1})
    assert estimate_cost(segmenter(), data, made).minutes == pytest.approx(1 / 60, abs=0.001)


def test_estimate_as_text():
    estimate = CostEstimate(800, 0.8, 4, 3.0, MemoryEstimate(2**30, 2**29, 0, 2**29))
    assert estimate.minutes == pytest.approx(10.87, abs=0.01)
    by_steps = "about 11 min (800 steps of 800 ms, 4 validations of 3.0 s"
    assert str(estimate) == f"{by_steps}), 2.00 GiB of GPU memory (allocated by torch)"
    of_process = replace(estimate, samples=0, memory=replace(estimate.memory, process=3 * 2**30))
    first = "timed on the first step only, which is slower than the others"
    assert str(of_process) == f"{by_steps}; {first}), 4.00 GiB of memory for this process (3.00 GiB now)"
    of_one = replace(estimate, tried=1, images=16)
    assert str(of_one).startswith(f"{by_steps}; timed on 1 of the 16 images of a batch), ")


def test_total_memory_of_a_process():
    memory = MemoryEstimate(weights=1, optimizer=10, average=100, step=1000, workspace=200, validation=900)
    assert memory.total == 1311 and replace(memory, validation=5000).total == 5111
    assert replace(memory, process=10_000).total == 11_310  # in which the weights are


@pytest.mark.parametrize(
    ("batch_size", "accumulated", "advice"),
    [
        (4, 1, "data.batch_size=2 with trainer.accumulate_grad_batches=2 "),
        (5, 1, "data.batch_size=1 with trainer.accumulate_grad_batches=5 "),
        (9, 1, "data.batch_size=3 with trainer.accumulate_grad_batches=3 "),
        (6, 5, "data.batch_size=3 with trainer.accumulate_grad_batches=10 "),
        (1, 20, "set a smaller data.crop_size"),
    ],
)
def test_warning_about_memory_suggests_settings(caplog, batch_size, accumulated, advice):
    """The number of images per step stays the same."""
    memory = MemoryEstimate(2**30, 2**31, 0, 2**33)
    warn_about_memory(memory, 2**34, batch_size, accumulated)
    assert not caplog.messages
    warn_about_memory(memory, 2**33, batch_size, accumulated)
    assert "needs about 11.0 GiB, but the GPU has 8.0 GiB" in caplog.text and "smaller data.crop_size" in caplog.text
    assert advice in caplog.text and ("batch_size" in caplog.text) == (batch_size > 1)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can reset the peak")
def test_measured_memory_of_the_process(new_pages):
    gc.collect()  # what earlier tests left must not be freed in between
    new_pages(2**29).close()  # half a GiB, which was there and is gone
    took = CostMeter(torch.device("cpu"))
    held = new_pages(2**28)  # 256 MiB
    facts = took.facts(CostEstimate(1, 60.0, 0, 0.0, MemoryEstimate(2**30, 0, 0, 0)))
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    assert 256 < facts["training_peak_memory_mib"] <= largest + 1 and held[0] == 1
    with MemoryMeter(torch.device("cpu")) as meter:
        new_pages(2**27).close()
    assert 100 < meter.grown / 2**20 < 160
    assert facts["expected_minutes"] == 1 and facts["expected_memory_mib"] == 1024
    assert compare_with_estimate(facts).endswith("(estimated: 1.0 min and 1.00 GiB)")
    assert "expected" not in compare_with_estimate(took.facts(None))


def test_run_records_the_estimate(whole_probe, train):
    folder = train()
    cost = json.loads((folder / "metrics.json").read_text())["cost"]
    assert cost["expected_minutes"] > 0 and cost["training_minutes"] > 0
    assert cost["expected_memory_mib"] >= 1 and cost["training_peak_memory_mib"] >= 0
    assert 0.7 < cost["expected_memory_mib"] / cost["training_peak_memory_mib"] < 1.4  # both of the process
    log = (folder / "train.log").read_text()
    assert log.index("Estimated cost: about") < log.index("Training took") < log.index("final mIoU")


@pytest.mark.parametrize(("optimizer", "moments"), [(sgd, 1), (adamw, 2)])
def test_fused_optimizer_has_the_same_state_size(optimizer, moments):
    """torch refuses fused kernels on "meta"."""
    shadow = segmenter().net.to("meta")
    kept, _ = optimizer_bytes(partial(optimizer, lr=0.1, fused=True), shadow)
    weights = [4 * parameter.numel() for parameter in shadow.parameters()]
    steps = 4 * len(weights) if optimizer is adamw else 0  # a number for each tensor
    assert kept == moments * sum(weights) + steps
