"""``fcnlab train``."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

from fcnlab.callbacks import Interrupted, MetricsFile, StopSignals
from fcnlab.config import CONF, check_targets
from fcnlab.data import DataModule
from fcnlab.results.scores import Scores
from fcnlab.segmenter import Segmenter
from fcnlab.tasks.building import (
    build_trainer,
    choices,
    open_loggers,
    run_folder,
    say,
    training_callbacks,
    wandb_id,
    warn,
)
from fcnlab.tasks.checkpoints import checkpoint_record, read_checkpoint
from fcnlab.tasks.recording import RunRecord, recorded, repeat_exactly
from fcnlab.tasks.resuming import where_to_start
from fcnlab.tasks.scoring import describe, score, table


def train(cfg: DictConfig) -> float | None:
    """Train, score the best checkpoint, leave the record; the score is what a sweeper maximises."""
    folder = run_folder()
    repeat_exactly(cfg)
    check_targets(cfg)
    start = where_to_start(cfg.checkpoint, folder)
    say_what_surprises(cfg)
    record = RunRecord(folder)
    with StopSignals() as signals, recorded(cfg, folder, record), how_to_go_on(folder, signals):
        segmenter, data = build(cfg)
        say(describe(segmenter, data.split("val")))
        with open_loggers(cfg, record.facts.get("wandb")) as loggers:
            record.write(wandb=wandb_id(loggers))
            curves = MetricsFile(folder / "metrics.csv")
            curves.cut(start.rows)
            trainer = build_trainer(cfg, [curves, *loggers], training_callbacks(cfg, curves, signals))
            device = type(trainer.accelerator).__name__.removesuffix("Accelerator")
            say(f"Training on {trainer.num_devices} x {device}, precision {trainer.precision}, in {folder}")
            started = time.perf_counter()
            trainer.fit(segmenter, datamodule=data, ckpt_path=start.checkpoint, weights_only=True)
            minutes = (time.perf_counter() - started) / 60
            best = best_checkpoint(trainer)
            last = folder / "checkpoints" / "last.ckpt"
            if best or last.is_file():
                # Not by test(ckpt_path=...): Lightning's weight averaging would restore the weights not averaged.
                segmenter.load_state_dict(read_checkpoint(best or last)["state_dict"])
            found = score(trainer, segmenter, data, folder, cfg.seed)
    if found is None:
        return None
    say_what_came(found, segmenter, trainer, minutes, folder, best)
    return found.miou


def build(cfg: DictConfig) -> tuple[Segmenter, DataModule]:
    """The net with all that trains it, and the data, which is looked at before any long work."""
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    net = instantiate(cfg.model, _convert_="all")
    data: DataModule = instantiate(cfg.data, _convert_="all")
    if _given("optim.pretrained_lr_scale") and not net.pretrained:
        warn("optim.pretrained_lr_scale has no effect: the backbone starts from no weights")
    data.check("train", "val", "test", min_size=net.backbone.min_size)
    segmenter = Segmenter(
        net,
        classes=data.split("val").classes,
        loss=instantiate(cfg.loss, _convert_="all"),
        optimizer=instantiate(cfg.optim, _convert_="all"),
        schedule=instantiate(cfg.schedule, _convert_="all"),
        record=checkpoint_record(cfg, data.split("val")),
        channels_last=cfg.speed.channels_last,
    )
    return segmenter, data


@contextmanager
def how_to_go_on(folder: Path, signals: StopSignals) -> Iterator[None]:
    """Say to a run that was stopped how it goes on.

    Where Python had to swallow our exception (in a handler of a fork, say), Lightning's own ends the run, with code 0.
    """
    try:
        yield
    except SystemExit as ended:
        if signals.asked is None:
            raise
        stop = ended if isinstance(ended, Interrupted) else Interrupted(signals.asked)
        last = folder / "checkpoints" / "last.ckpt"
        how = f"Go on with the same command and checkpoint=last hydra.run.dir={folder}" if last.is_file() else ""
        say(f"Stopped by {stop}. {how}".rstrip())
        raise stop from ended


def say_what_surprises(cfg: DictConfig) -> None:
    """Settings that have no effect, and defaults that are not meant for what was chosen."""
    chosen = choices()
    if chosen.get("model/backbone") == "tiny" and chosen.get("data") != "shapes":
        others = sorted({path.stem for path in (CONF / "model" / "backbone").glob("*.yaml")} - {"tiny"})
        warn(f"the backbone is tiny, for first looks: for real pictures choose model/backbone={' | '.join(others)}")
    if chosen.get("augment") == "none" and _given("data.crop_size"):
        warn("data.crop_size has no effect with augment=none, which takes whole pictures")


def _given(key: str) -> bool:
    """Whether a setting was typed."""
    return any(word.startswith(f"{key}=") for word in HydraConfig.get().overrides.task)


def best_checkpoint(trainer: L.Trainer) -> str | None:
    """The path of the best checkpoint; None where none was asked for: then the last weights count."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return next((callback.best_model_path for callback in callbacks if callback.monitor), "") or None


def say_what_came(
    found: Scores, segmenter: Segmenter, trainer: L.Trainer, minutes: float, folder: Path, best: str | None
) -> None:
    """The last lines that the user sees: scores, where the run lies, what to type next."""
    say(table(found, tuple(segmenter.classes)))
    say(f"val mIoU {100 * found.miou:.2f} % after {trainer.global_step} steps, {minutes:.1f} min. The run: {folder}")
    if best:
        checkpoint = Path(best).relative_to(Path.cwd()) if Path(best).is_relative_to(Path.cwd()) else best
        say(f"Next: fcnlab predict checkpoint={checkpoint} input=FILE|FOLDER output=FOLDER")
