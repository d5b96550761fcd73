"""What a training is expected to cost: bytes counted by hand, and a clock that a net moves itself."""

import json
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn

from fcnlab.callbacks import EMA
from fcnlab.data import DataModule, open_shapes
from fcnlab.data.transforms import standard
from fcnlab.losses import CrossEntropy, Lovasz
from fcnlab.models import FCN
from fcnlab.models.tiny import Tiny
from fcnlab.optim import adamw, constant, freeze, sgd
from fcnlab.segmenter import Segmenter
from fcnlab.tasks import expecting
from fcnlab.tasks.expecting import (
    Expected,
    Held,
    Memory,
    Took,
    beside,
    beside_expected,
    expect,
    loading_seconds,
    optimizer_bytes,
    step_bytes,
    step_seconds,
    training_memory,
    validation_seconds,
    warn_of_memory,
)


def segmenter(loss: nn.Module | None = None, optimizer=adamw) -> Segmenter:
    net = FCN(Tiny(width=4), 21, (32, 16, 8))
    return Segmenter(net, list("abcdefghijklmnopqrstu"), loss or CrossEntropy(), partial(optimizer, lr=0.1), constant)


def test_held_counts_what_lives_at_a_time():
    before = torch.empty(1000, device="meta")
    with Held() as held:
        one = torch.empty(100, device="meta")  # 400 bytes
        two = one + 1  # 400 more
        del one
        three = two * 2  # 400, where the first ones were
        three.add_(1)  # nothing
        before.add_(1)  # nothing
        view = three[:10]  # nothing
    assert held.most == 800 and held.now == 800 and view.numel() == 10


class OneLayer(nn.Module):
    """A step of three numbers to two, for ``count`` examples: the loss is the sum of what is positive."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 2, bias=False)

    def _step(self, batch, stage):
        return {"loss": torch.relu(self.net(batch["image"])).sum()}


def test_the_bytes_of_a_step_are_those_counted_by_hand():
    """5 examples. While relu works: gradients 2 x 3, its input 5 x 2, its result 5 x 2, of 4 bytes each. Later there
    is less: the result, its gradient of 5 x 2 and the loss; then the gradients of the weights and of the result."""
    net = OneLayer().to("meta")
    assert step_bytes(net, {"image": torch.empty(5, 3, device="meta")}) == 4 * (6 + 10 + 10)


@pytest.mark.parametrize(
    ("optimizer", "kept"), [(partial(sgd, momentum=0.9), 1), (adamw, 2), (partial(sgd, momentum=0), 0)]
)
def test_what_an_optimiser_keeps_for_each_parameter(optimizer, kept):
    net = FCN(Tiny(width=4), 21, (32,)).to("meta")
    numbers = sum(parameter.numel() for parameter in net.parameters())
    counts = len(list(net.parameters())) if optimizer is adamw else 0  # Adam counts the steps of each tensor
    found, most = optimizer_bytes(partial(optimizer, lr=0.1), net)
    assert found == 4 * (kept * numbers + counts)
    assert 4 * numbers <= most < 4 * 4 * numbers  # gradients, and what is made of one tensor after the other
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
    found, plain = training_memory(segmenter(Lovasz()), (4, 64, 64)), training_memory(segmenter(), (4, 64, 64))
    assert 0.9 * plain.step < found.step < 1.5 * plain.step


class Clock:
    """Time that passes when somebody works."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Worker(nn.Module):
    """Takes ``each`` seconds for a picture, and ``call`` for every call."""

    def __init__(self, clock: Clock, each: float, call: float):
        super().__init__()
        self.clock, self.each, self.call, self.device = clock, each, call, torch.device("cpu")

    def forward(self, image):
        self.clock.now += self.call + self.each * len(image)
        return torch.zeros(len(image), 2, 1, 1, requires_grad=True)

    _scores = forward

    def _step(self, batch, stage):
        return {"loss": self(batch["image"]).sum()}


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(expecting.time, "perf_counter", made)
    return made


@pytest.mark.parametrize(
    ("each", "call", "seconds"),
    [
        (0.002, 0.006, 0.014),  # a batch of 4 is measured as it is
        (1.0, 0.5, 6.0),  # one picture is: 4 times 1.5
    ],
)
def test_a_step_takes_what_the_net_takes(clock, each, call, seconds):
    assert step_seconds(Worker(clock, each, call), (4, 8, 8), nullcontext) == pytest.approx(seconds)
    assert clock.now < 8  # nor is a slow one done thrice


@pytest.fixture
def pictures(shapes_root):
    return open_shapes(str(shapes_root), "val", num_train=24, num_val=8, size=64)


@pytest.mark.parametrize(("limit", "devices", "count"), [(1.0, 1, 8), (1.0, 2, 4), (3, 1, 3), (0.5, 1, 4), (100, 1, 8)])
def test_a_validation_is_of_so_many_pictures(clock, pictures, limit, devices, count):
    trainer = SimpleNamespace(limit_val_batches=limit, world_size=devices)
    found = validation_seconds(Worker(clock, 0.25, 0), pictures, nullcontext, trainer)
    assert found == pytest.approx(0.25 * count)


def test_loading_is_a_median_without_the_first(clock, pictures):
    times = iter([100.0, 1, 2, 50, 3, 4])

    def augment(image, mask, seed):
        clock.now += next(times)

    assert loading_seconds(pictures, augment) == pytest.approx(3)


def test_on_a_cpu_loading_and_computing_add_up():
    assert beside(2.0, 0.5, apart=False) == 2.5
    assert beside(2.0, 0.5, apart=True) == 2.0 and beside(0.2, 0.5, apart=True) == 0.5


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
        ({"max_steps": 10, "val_check_interval": 4}, 6, 4, 1),  # gone on with
        ({"max_steps": 10, "val_check_interval": 8, "accumulate_grad_batches": 2}, 0, 10, 3),  # counted in batches
        ({"max_epochs": 3, "val_check_interval": 9}, 0, 18, 2),  # of 6 batches each
        ({"max_steps": 10, "max_epochs": 1, "val_check_interval": 9}, 0, 6, 1),
        ({"max_steps": 10, "val_check_interval": 4}, 10, 0, 0),
    ],
)
def test_what_is_left_of_a_run(data, settings, done, steps, validations):
    found = expect(segmenter(), data, trainer(check_val_every_n_epoch=None, **settings), done)
    assert (found.steps, found.validations) == (steps, validations)
    assert found.step > 0 and found.validation > 0 and (found.minutes > 0) == (steps > 0)


def test_a_run_is_the_same_whether_it_was_expected_or_not(data):
    made = segmenter()
    made.net.backbone.eval()  # as a resting one is
    state = {name: value.clone() for name, value in made.state_dict().items()}
    modes = [module.training for module in made.modules()]
    random = torch.get_rng_state()
    average = EMA()
    found = expect(made, data, trainer(max_steps=4, val_check_interval=2, callbacks=[average]))
    assert found.memory.average == found.memory.weights
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in made.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in made.state_dict().items())
    assert all(parameter.grad is None for parameter in made.parameters())


def test_what_is_said():
    found = Expected(800, 0.8, 4, 3.0, Memory(2**30, 2**29, 0, 2**29))
    assert found.minutes == pytest.approx(10.87, abs=0.01)
    assert str(found) == "about 11 min (800 steps of 800 ms, 4 validations of 3.0 s), 2.00 GiB of memory"


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
def test_too_little_memory_is_warned_of_with_what_to_set(caplog, batch_size, accumulated, advice):
    """A step keeps its pictures."""
    memory = Memory(2**30, 2**31, 0, 2**33)
    warn_of_memory(memory, 2**34, batch_size, accumulated)
    assert not caplog.messages
    warn_of_memory(memory, 2**33, batch_size, accumulated)
    assert "needs some 11.0 GiB and the GPU has 8.0" in caplog.text and "smaller data.crop_size" in caplog.text
    assert advice in caplog.text and ("batch_size" in caplog.text) == (batch_size > 1)


def test_measured_memory_is_what_came_on_top():
    took = Took(torch.device("cpu"), nn.Linear(1000, 1000, bias=False))
    before = took.peak()
    held = torch.ones(2**28, dtype=torch.uint8)  # 256 MiB; what was the process's largest size may hide some of it
    assert before >= 4_000_000 and took.peak() >= before and held[0] == 1
    facts = took.facts(Expected(1, 60.0, 0, 0.0, Memory(2**30, 0, 0, 0)))
    assert facts["expected_minutes"] == 1 and facts["expected_memory_mib"] == 1024
    assert beside_expected(facts).endswith("expected were 1.0 min and 1.00 GiB")
    assert "expected" not in beside_expected(took.facts(None))


def test_a_training_records_what_was_expected_of_it(train):
    folder = train()
    cost = json.loads((folder / "metrics.json").read_text())["cost"]
    assert cost["expected_minutes"] > 0 and cost["training_minutes"] > 0
    assert cost["expected_memory_mib"] >= 1 and cost["training_peak_memory_mib"] >= 0
    log = (folder / "train.log").read_text()
    assert log.index("Expected: about") < log.index("The training took") < log.index("final mIoU")


@pytest.mark.parametrize(("optimizer", "moments"), [(sgd, 1), (adamw, 2)])
def test_a_fused_optimiser_keeps_what_an_unfused_one_does(optimizer, moments):
    """torch refuses fused kernels on "meta"."""
    shadow = segmenter().net.to("meta")
    kept, _ = optimizer_bytes(partial(optimizer, lr=0.1, fused=True), shadow)
    weights = [4 * parameter.numel() for parameter in shadow.parameters()]
    steps = 4 * len(weights) if optimizer is adamw else 0  # a number for each tensor
    assert kept == moments * sum(weights) + steps
