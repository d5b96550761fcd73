"""Images per second and the wait for data, by a clock that the steps move; what is logged of the optimiser."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from lightning.pytorch.loggers import Logger

from fcnlab.data import loader_workers
from fcnlab.data.loader_workers import Loader
from fcnlab.models import FCN, Tiny
from fcnlab.training.callbacks import Throughput, throughput
from fcnlab.training.optimizers import Schedule, constant, sgd
from fcnlab.training.segmenter import learning_rates

BATCH = {"image": torch.zeros(4, 3, 1, 1)}


class Run:
    """A run on two devices whose steps are all logged: 3 s for each, of which it waits 1 s for data."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(throughput.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(throughput, "logs_this_step", lambda trainer: True)
        self.callback, self.logger = Throughput(), MagicMock(spec=Logger)
        self.loader = SimpleNamespace(waited=7.0)
        self.trainer = SimpleNamespace(world_size=2, global_step=0, loggers=[self.logger], train_dataloader=self.loader)
        self.module = SimpleNamespace(device=torch.device("cpu"))
        self.callback.on_train_start(self.trainer, self.module)

    def step(self, waiting: float = 1.0) -> None:
        self.now += waiting
        self.loader.waited += waiting
        self.callback.on_train_batch_start(self.trainer, self.module, BATCH, 0)
        self.now += 2.0
        self.trainer.global_step += 1
        self.callback.on_train_batch_end(self.trainer, self.module, None, BATCH, 0)

    def validate(self) -> None:
        self.callback.on_validation_start(self.trainer, self.module)
        self.now += 1000.0

    def logged(self) -> list[tuple]:
        return [(row["throughput/images_per_second"], row["throughput/data_wait"], step)
                for row, step in (call.args for call in self.logger.log_metrics.call_args_list)]  # fmt: skip


def test_first_step_and_validations_are_not_counted(monkeypatch):
    run = Run(monkeypatch)
    run.validate()  # before the training
    run.step(waiting=500.0)
    assert run.callback.facts() == {} and run.logged() == []
    run.step()
    run.validate()
    run.step(waiting=50.0)  # within the validation
    run.step(waiting=6.0)
    assert run.logged() == [(8 / 3, pytest.approx(1 / 3), 2), (8 / 2, 0.0, 3), (8 / 8, 6 / 8, 4)]
    facts = {"training_images_per_second": round(24 / 13, 4), "training_data_wait": round(7 / 13, 4)}
    assert run.callback.facts() == facts
    peak = run.logger.log_metrics.call_args.args[0]["memory/peak"]
    assert 10 < peak < 1_000_000  # of this process, in MiB


def test_accumulated_batches_are_logged_with_their_step(monkeypatch):
    run = Run(monkeypatch)
    run.step()
    run.step()
    for steps in (0, 1):  # two batches of one step
        run.now += 2.0
        run.trainer.global_step += steps
        run.callback.on_train_batch_end(run.trainer, run.module, None, BATCH, 0)
    assert run.logged()[1:] == [(16 / 4, 0.0, 3)]


def test_loader_counts_the_wait_for_batches(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loader_workers.time, "perf_counter", lambda: now[0])

    class Slow(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            now[0] += 1.0
            return index

    loader, batches = Loader(Slow(), batch_size=2), []
    for batch in loader:
        batches.append(batch.tolist())
        now[0] += 10.0  # the step
    assert batches == [[0, 1], [2, 3]] and loader.waited == 4.0


@pytest.mark.parametrize(
    ("pretrained", "bias", "names"),
    [
        (False, 1.0, {"train/lr": 0.5}),
        (False, 2.0, {"train/lr": 0.5, "train/lr/heads/bias": 1.0}),
        (True, 1.0, {"train/lr": 0.5, "train/lr/backbone/weight": 0.125}),
    ],
)
def test_distinct_learning_rates_are_named_by_their_groups(pretrained, bias, names):
    net = FCN(Tiny(width=4), 3, (32,))
    net.pretrained = pretrained
    optimizer = sgd(net, lr=0.5, bias_lr_scale=bias, pretrained_lr_scale=0.25)
    Schedule(optimizer, constant(10))
    found = learning_rates(optimizer)
    assert {name: rate for name, rate in found.items() if name in names} == names
    assert len(found) == len({group["lr"] for group in optimizer.param_groups})
