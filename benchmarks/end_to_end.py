"""The overhead of `fcnlab train` against a bare PyTorch loop with the same model, data and recipe.

python benchmarks/end_to_end.py            some two minutes; less with --crop 128

Both train FCN-8s in one process, in turns: after each block of steps the training stops for as many steps of the loop.
The training is built like that of the command line (loader, clipping, EMA, schedule, callbacks, metrics.csv with a row
every 10 steps), and is measured from its second block on, without start-up, validations and Weights & Biases. The loop
has the same model, loader, loss, clipping, optimiser, schedule and average, and nothing else; the losses of both must
be equal. The process itself reads the images (data.num_workers=0), so that their time is counted. "tiny" is the worst
case, because a small model takes little time compared with the overhead.
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from itertools import count
from pathlib import Path

import lightning as L
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, open_dict
from torch.optim.lr_scheduler import LambdaLR

from fcnlab.config.locations import CONF
from fcnlab.config.run_context import RunContext, run_context
from fcnlab.data import DataModule
from fcnlab.hydra_registration import register_schemas
from fcnlab.signals import StopSignals
from fcnlab.tasks.train import build
from fcnlab.training.callbacks import MetricsCsv
from fcnlab.training.callbacks.ema import update_ema
from fcnlab.training.segmenter import Segmenter
from fcnlab.training.trainer import build_trainer, training_callbacks

BARE, OURS = "bare PyTorch loop", "fcnlab train"
NETS = {
    "googlenet": ["model/backbone=googlenet", "model.backbone.weights=none", "model.backbone.dropout=0.0"],
    "tiny": [],
}
PARTS = ("loader", "forward", "loss", "backward", "clipping", "optimiser", "average")


class Loop:
    """The bare loop, one step at a time; ``seconds`` are the times of its parts since the last reading."""

    def __init__(self, segmenter: Segmenter, data: DataModule, total: int, decay: float, clip: float):
        self.net, self.loss = segmenter.net.train(), segmenter.loss
        self.memory_format = segmenter.memory_format
        self.optimizer = segmenter.make_optimizer(self.net)
        self.parameters = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        self.schedule = LambdaLR(self.optimizer, segmenter.make_schedule(total))
        self.average, self.decay, self.clip = deepcopy(self.net), decay, clip
        self.batches, self.steps = self._batches(data), 0
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.losses: list[torch.Tensor] = []

    def _batches(self, data: DataModule) -> Iterator[dict[str, torch.Tensor]]:
        loader = data.train_dataloader()
        for epoch in count():
            loader.batch_sampler.set_epoch(epoch)
            yield from loader

    def step(self) -> None:
        ended = time.process_time()

        def done(part: str) -> None:
            nonlocal ended
            started, ended = ended, time.process_time()
            self.seconds[part] += ended - started

        batch = next(self.batches)
        done("loader")
        scores = self.net.coarse((batch["image"].float() / 255).contiguous(memory_format=self.memory_format))
        done("forward")
        loss = self.loss(scores, batch["mask"])
        done("loss")
        self.optimizer.zero_grad()
        loss.backward()
        done("backward")
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        done("clipping")
        self.optimizer.step()
        self.schedule.step()
        done("optimiser")
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.steps else 0.0
        update_ema(self.average, self.net, 1 - keep)
        self.steps += 1
        self.losses.append(loss.detach())
        done("average")


class InTurns(Callback):
    """Alternate blocks of steps of training and of the loop; the first block of each is a warm-up."""

    def __init__(self, loop: Loop, block: int):
        self.loop, self.block = loop, block
        self.times: dict[str, list[float]] = {BARE: [], OURS: []}
        self.parts: list[dict[str, float]] = []
        self._resumed = None

    def on_train_batch_end(self, trainer: L.Trainer, *args) -> None:
        if trainer.global_step % self.block:
            return
        stopped = time.process_time()
        self.loop.seconds = dict.fromkeys(PARTS, 0.0)
        for _ in range(self.block):
            self.loop.step()
        ended = time.process_time()
        if self._resumed is not None:
            self.times[OURS].append(stopped - self._resumed)
            self.times[BARE].append(ended - stopped)
            self.parts.append(self.loop.seconds)
        self._resumed = time.process_time()


def configuration(words: list[str], folder: Path) -> tuple[DictConfig, RunContext]:
    """Return the configuration of ``fcnlab train`` with these overrides, and its context."""
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=words, return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(cfg)
        context = run_context(HydraConfig.instance().cfg)
        del cfg["hydra"]
    return cfg, context


def data_words(root: str, folder: Path) -> list[str]:
    """Return overrides for VOC's images, or for generated shapes of their size."""
    if (Path(root) / "VOCdevkit").is_dir():
        return ["data=voc", f"data.root={root}"]
    shapes = ["data.dataset.num_train=64", "data.dataset.num_val=8", "data.dataset.size=430"]
    return ["data=shapes", f"data.root={folder / 'shapes'}", *shapes]


def side_by_side(words: list[str], rounds: int, block: int, folder: Path) -> InTurns:
    """Train both; Lightning's final validation and checkpoints are not measured."""
    total = (rounds + 1) * block
    words = [*words, "logger=csv", "trainer=cpu", f"trainer.max_steps={total}", f"trainer.val_check_interval={total}"]
    words += ["+trainer.limit_val_batches=1", "+trainer.num_sanity_val_steps=0", "data.num_workers=0"]
    cfg, context = configuration(words, folder)
    (segmenter, data), other = build(cfg, context), build(cfg, context)
    loop = Loop(*other, total, cfg.callbacks.ema.decay, cfg.trainer.gradient_clip_val)
    turns, curves = InTurns(loop, block), MetricsCsv(folder / "metrics.csv")
    with StopSignals() as signals:
        trainer = build_trainer(cfg, folder, [curves], [*training_callbacks(cfg, curves, signals), turns])
        trainer.fit(segmenter, datamodule=data)
    for row in curves.rows():
        if row["train/loss"]:
            np.testing.assert_allclose(float(row["train/loss"]), loop.losses[int(row["step"]) - 1], rtol=0.02)
    return turns


def measure(words: list[str], rounds: int, block: int, images: int, folder: Path) -> dict[str, dict[str, float]]:
    """Return ratio and pace of both, the share of each part of the loop, and fcnlab's extra milliseconds per step."""
    turns = side_by_side(words, rounds, block, folder)
    times = {name: np.array(seconds) for name, seconds in turns.times.items()}
    found = measuring.summary(times, BARE, block * images)
    for part in PARTS:
        shares = [seconds[part] / whole for seconds, whole in zip(turns.parts, times[BARE], strict=True)]
        found[BARE][part] = round(float(np.median(shares)), 4)
    found[OURS]["ms_around_a_step"] = round(1000 * float(np.median(times[OURS] - times[BARE])) / block, 2)
    return found


def main() -> None:
    args = measuring.options(__doc__, root="../shared/data", rounds=4, block=10, batch=4, crop=257)
    measuring.on_cores(args.threads)
    found = {}
    for name, net in NETS.items():
        with tempfile.TemporaryDirectory() as folder:
            words = [*data_words(args.root, Path(folder)), *net]
            words += [f"data.batch_size={args.batch}", f"data.crop_size={args.crop}"]
            rows = measure(words, args.rounds, args.block, args.batch, Path(folder))
        shares = ", ".join(f"{part} {100 * rows[BARE][part]:.1f} %" for part in PARTS)
        print(f"{name}: of the loop's time {shares}; around a step {rows[OURS]['ms_around_a_step']} ms more")
        found |= {f"{name}, {what}": row for what, row in rows.items()}
    title = f"FCN-8s, batches of {args.batch} crops of {args.crop}, {args.rounds} rounds of {args.block} steps"
    measuring.report(title, found, args.json)


if __name__ == "__main__":
    main()
