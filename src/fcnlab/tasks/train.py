"""``fcnlab train``."""

import shutil
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
from fcnlab.errors import UserError
from fcnlab.results.record import aside
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
from fcnlab.tasks.recording import recorded, repeat_exactly
from fcnlab.tasks.scoring import describe, score, table


def train(cfg: DictConfig) -> float | None:
    """Train, score the best checkpoint, leave the record; the score is what a sweeper maximises."""
    folder = run_folder()
    repeat_exactly(cfg)
    check_targets(cfg)
    resumed = checkpoint_to_resume(cfg.checkpoint, folder)
    say_what_surprises(cfg)
    with StopSignals() as signals, recorded(cfg, folder) as record, how_to_go_on(folder, signals):
        segmenter, data = build(cfg)
        say(describe(segmenter, data.split("val")))
        with open_loggers(cfg, record.facts.get("wandb")) as loggers:
            record.write(wandb=wandb_id(loggers))
            curves = MetricsFile(folder / "metrics.csv")
            curves.cut(rows_before(resumed))
            trainer = build_trainer(cfg, [curves, *loggers], training_callbacks(cfg, curves, signals))
            device = type(trainer.accelerator).__name__.removesuffix("Accelerator")
            say(f"Training on {trainer.num_devices} x {device}, precision {trainer.precision}, in {folder}")
            started = time.perf_counter()
            trainer.fit(segmenter, datamodule=data, ckpt_path=resumed, weights_only=True)
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


def checkpoint_to_resume(wanted: str | None, folder: Path) -> str | None:
    """The file that ``checkpoint=PATH|last|best|auto`` names; None for a start from scratch.

    Raises
    ------
    UserError
        There is none, or it is damaged; or another run, which is in the folder, would be overwritten.
    """
    checkpoints = folder / "checkpoints"
    if wanted == "auto":
        return newest_whole(checkpoints)
    if wanted in ("last", "best"):
        return own_checkpoint(checkpoints, wanted)
    if any(checkpoints.glob("*.ckpt")):
        raise UserError(
            f"{folder} holds a run already: go on with it by checkpoint=auto, last or best, or leave hydra.run.dir to a"
            " new folder"
        )
    if wanted in (None, "none"):
        return None
    read_checkpoint(wanted)
    return wanted


def own_checkpoint(checkpoints: Path, name: str) -> str:
    """The path of this run's last or best checkpoint, which is the latest of its files from now on."""
    path = checkpoints / f"{name}.ckpt"
    if path.is_file():
        read_checkpoint(path)
        if name != "last":
            with aside(checkpoints / "last.ckpt") as part:  # else the steps beyond would come back after a kill
                shutil.copyfile(path, part)
        return str(path)
    runs = sorted(Path("outputs").glob("**/checkpoints/last.ckpt"), key=lambda found: found.stat().st_mtime)
    newest = runs[-1].parents[1] if runs else None
    hint = f"; the newest run is {newest}: add hydra.run.dir={newest}" if newest else ": add hydra.run.dir=FOLDER"
    raise UserError(f"checkpoint={name}: there is no {path}, since this run is new{hint}")


def rows_before(checkpoint: str | None) -> int:
    """How many rows metrics.csv had when a checkpoint was written; a new run begins with none.

    Raises
    ------
    UserError
        It is no checkpoint to resume from.
    """
    if checkpoint is None:
        return 0
    found = read_checkpoint(checkpoint).get("resume")
    if found is None:
        raise UserError(f"checkpoint={checkpoint} was written by an older fcnlab: start from it by model.weights=")
    return found["rows"]


def newest_whole(checkpoints: Path) -> str | None:
    """last.ckpt, or the best one if that is damaged; None where there is neither, and the run starts from scratch."""
    for name in ("last", "best"):
        path = checkpoints / f"{name}.ckpt"
        if path.is_file():
            try:
                return own_checkpoint(checkpoints, name)
            except UserError as error:
                warn(f"{error} Going on without it.")
    return None


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
