"""``fcnlab train``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig
from torch import nn

from fcnlab.callbacks import MetricsFile
from fcnlab.config import CONF, check_needs, check_targets
from fcnlab.data import DataModule
from fcnlab.errors import UserError
from fcnlab.losses import CrossEntropySum
from fcnlab.optim import MOMENTUM, freeze
from fcnlab.results.scores import Scores
from fcnlab.segmenter import Segmenter
from fcnlab.signals import Interrupted, StopSignals
from fcnlab.tasks.building import (
    build_trainer,
    choices,
    given,
    open_data,
    open_loggers,
    run_folder,
    say,
    training_callbacks,
    training_speed,
    wandb_id,
    warn,
)
from fcnlab.tasks.checkpoints import checkpoint_record, read_checkpoint
from fcnlab.tasks.expecting import Took, announce, beside_expected
from fcnlab.tasks.recording import RunRecord, recorded, repeat_exactly
from fcnlab.tasks.resuming import where_to_start
from fcnlab.tasks.scoring import describe, score, table
from fcnlab.tasks.staged import train_in_stages
from fcnlab.trust import trusting

MOST_LASTING_STEP = 10.0
LEAST_LASTING_STEP = 1e-4
LEAST_CLIPPED_STEP = 1e-6  # the length of the longest step that a clipped gradient allows


def train(cfg: DictConfig) -> float | None:
    """Train, score the best checkpoint, leave the record; the score is what a sweeper maximises."""
    folder = run_folder()
    if cfg.stages:
        return train_in_stages(cfg, folder)
    check_needs(cfg, HydraConfig.get().overrides.task)
    repeat_exactly(cfg)
    check_targets(cfg)
    start = where_to_start(cfg.checkpoint, folder)
    say_what_surprises(cfg)
    record = RunRecord(folder)
    with StopSignals() as signals, recorded(cfg, folder, record), how_to_go_on(folder):
        segmenter, data = build(cfg)
        say(describe(segmenter, data.split("val")))
        with open_loggers(cfg, record.facts.get("wandb")) as loggers, signals.told_apart():
            record.write(wandb=wandb_id(loggers))
            curves = MetricsFile(folder / "metrics.csv")
            curves.cut(start.rows)
            trainer = build_trainer(cfg, [curves, *loggers], training_callbacks(cfg, curves, signals))
            device = type(trainer.accelerator).__name__.removesuffix("Accelerator")
            say(f"Training on {trainer.num_devices} x {device}, precision {trainer.precision}, in {folder}")
            expected = announce(segmenter, data, trainer, start.steps)
            took = Took(trainer.strategy.root_device, segmenter.net)
            trainer.fit(segmenter, datamodule=data, ckpt_path=start.checkpoint, weights_only=True)
            training = took.facts(expected)
            best = best_checkpoint(trainer)
            last = folder / "checkpoints" / "last.ckpt"
            if best or last.is_file():
                # Not by test(ckpt_path=...): Lightning's weight averaging would restore the weights not averaged.
                segmenter.load_state_dict(read_checkpoint(best or last)["state_dict"])
            found = score(trainer, segmenter, data, folder, cfg.seed, training)
    if found is None:
        return None
    say_what_came(found, segmenter, trainer, training, folder, best)
    return found.miou


def build(cfg: DictConfig) -> tuple[Segmenter, DataModule]:
    """The net with all that trains it, and the data, which is looked at before any long work."""
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    net = instantiate(cfg.model, _convert_="all")
    data = open_data(cfg.data, cfg.sweep.recorded)
    backbone_rate = cfg.optim.get("pretrained_lr_scale", 1.0)
    if not net.pretrained and (backbone_rate == 0 or given("optim.pretrained_lr_scale")):
        warn("optim.pretrained_lr_scale has no effect: the backbone starts from no weights")
    freeze(net, backbone_rate)
    data.check("train", "val", "test", min_size=net.backbone.min_size)
    loss: nn.Module = instantiate(cfg.loss, _convert_="all")
    check_rate(cfg, loss, data)
    segmenter = Segmenter(
        net,
        classes=data.split("val").classes,
        loss=loss,
        optimizer=instantiate(cfg.optim, _convert_="all"),
        schedule=instantiate(cfg.schedule, _convert_="all"),
        record=checkpoint_record(cfg, data.split("val")),
        **training_speed(cfg, net),
    )
    if given("speed.row_blocks") and cfg.speed.row_blocks and not segmenter.row_blocks:
        warn(f"speed.row_blocks=true has no effect with loss={choices()['loss']}, which looks at all pixels together")
    return segmenter, data


def check_rate(cfg: DictConfig, loss: nn.Module, data: DataModule) -> None:
    """Tell rates that belong to another recipe: a sum over pixels wants one some 100,000 times smaller than a mean.

    What counts is the lasting step, lr / (1 - momentum), of a pixel's mean loss. CVPR's recipe has 1e-3 and the heavy
    one 1.9e-3; the staged 16s and 8s have a hundredth of it each, which only a trained net before them can bear. Adam's
    step does not depend on the loss's scale.

    Raises
    ------
    UserError
        A summed loss would blow the weights up within a few steps.
    """
    if cfg.optim._target_ != "fcnlab.optim.sgd":
        return
    summed = any(isinstance(part, CrossEntropySum) for part in loss.modules())
    pixels = data.training_pixels() if summed else 1
    momentum, starts_from = cfg.optim.get("momentum", MOMENTUM), cfg.model.get("weights", "none")
    rate, clip = cfg.optim.lr / (1 - momentum), cfg.trainer.gradient_clip_val
    if summed and clip is None and rate * pixels > MOST_LASTING_STEP:
        raise UserError(
            f"optim.lr={cfg.optim.lr:g} is a rate for mean losses, and loss={choices()['loss']} adds {pixels} pixels"
            " up: choose optim=sgd_heavy (1e-10) or loss=cross_entropy"
        )
    if summed and clip is not None and rate * clip < LEAST_CLIPPED_STEP:
        warn(
            f"trainer.gradient_clip_val={clip:g} cuts the gradients of a summed loss to nothing that optim.lr="
            f"{cfg.optim.lr:g} could learn by: set trainer.gradient_clip_val=null, as trainer=paper does"
        )
    elif rate * pixels < LEAST_LASTING_STEP and starts_from == "none":
        kind = f"a loss summed over {pixels} pixels" if summed else "a mean loss"
        warn(
            f"optim.lr={cfg.optim.lr:g} with {kind} is too small to learn from anything but a trained FCN: staged"
            " recipes start FCN-16s from FCN-32s and FCN-8s from FCN-16s by model.weights=PATH (paper/staged does)"
        )


@contextmanager
def how_to_go_on(folder: Path) -> Iterator[None]:
    """Say to a run that was stopped how it goes on."""
    try:
        yield
    except Interrupted as stop:
        last = folder / "checkpoints" / "last.ckpt"
        how = f"Go on with the same command and checkpoint=last hydra.run.dir={folder}" if last.is_file() else ""
        say(f"Stopped by {stop}. {how}".rstrip())
        raise


def say_what_surprises(cfg: DictConfig) -> None:
    """Settings that have no effect, and defaults that are not meant for what was chosen."""
    chosen = choices()
    if chosen.get("model/backbone") == "tiny" and chosen.get("data") != "shapes":
        others = sorted({path.stem for path in (CONF / "model" / "backbone").glob("*.yaml")} - {"tiny"})
        warn(f"the backbone is tiny, for first looks: for real pictures choose model/backbone={' | '.join(others)}")
    if chosen.get("augment") == "none" and given("data.crop_size"):
        warn("data.crop_size has no effect with augment=none, which takes whole pictures")
    if cfg.data.get("cache") != "disk" and given("data.cache_dir"):
        warn(f"data.cache_dir has no effect with data.cache={cfg.data.get('cache')}: set data.cache=disk")
    if given("speed.bf16") and cfg.trainer.precision != "auto":
        warn(f"speed.bf16 has no effect with trainer.precision={cfg.trainer.precision}: it is for auto")
    if given("speed.fused_optimizer") and "fused" not in cfg.optim:
        warn(f"speed.fused_optimizer has no effect with optim={chosen.get('optim')}, which has no fused")
    if cfg.speed.compile and chosen.get("augment") == "none":
        warn("speed.compile=true with augment=none, which takes whole pictures: each new size may be compiled anew")
    if cfg.data.get("num_workers") == 0 and given("data.prefetch_factor"):
        warn("data.prefetch_factor has no effect with data.num_workers=0: nothing is read ahead")


def best_checkpoint(trainer: L.Trainer) -> str | None:
    """The path of the best checkpoint; None where none was asked for: then the last weights count."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return next((callback.best_model_path for callback in callbacks if callback.monitor), "") or None


def say_what_came(
    found: Scores, segmenter: Segmenter, trainer: L.Trainer, training: dict[str, float], folder: Path, best: str | None
) -> None:
    """The last lines that the user sees: scores, what it took, where the run lies, what to type next."""
    say(table(found, tuple(segmenter.classes)))
    say(beside_expected(training))
    minutes = f"{training['training_minutes']:.1f} min"
    say(f"val mIoU {100 * found.miou:.2f} % after {trainer.global_step} steps, {minutes}. The run: {folder}")
    if best:
        checkpoint = Path(best).relative_to(Path.cwd()) if Path(best).is_relative_to(Path.cwd()) else best
        trust = "".join(f" {word}" for word in trusting(segmenter.record["model"]))
        say(f"Next: fcnlab predict checkpoint={checkpoint}{trust} input=FILE|FOLDER output=FOLDER")
