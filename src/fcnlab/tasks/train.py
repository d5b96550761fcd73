"""``fcnlab train``."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig
from torch import nn

from fcnlab.callbacks import EarlyEnd, MetricsFile, Selection, TimeLeft
from fcnlab.config import CONF, check_needs, check_targets
from fcnlab.data import DataModule
from fcnlab.errors import UserError, first_line
from fcnlab.launching import as_typed, to_type
from fcnlab.launching.board import score_of
from fcnlab.library_internals.lightning import is_restoring, synchronises_batch_norm
from fcnlab.library_internals.torch import BATCH_NORMS, DROPOUTS, INSTANCE_NORMS
from fcnlab.losses import CrossEntropySum, adds_up
from fcnlab.optim import MOMENTUM, freeze
from fcnlab.results.selection import Facts
from fcnlab.results.settings import Settings
from fcnlab.segmenter import Segmenter
from fcnlab.signals import Interrupted, StopSignals
from fcnlab.tasks.building import (
    FASTEST,
    build_trainer,
    check_machine,
    check_places,
    check_scored,
    choices,
    given,
    open_data,
    open_loggers,
    say,
    training_callbacks,
    training_speed,
    wandb_id,
    warn,
)
from fcnlab.tasks.checkpoints import checkpoint_record, read_checkpoint, selection_of
from fcnlab.tasks.expecting import Took, announce, beside_expected
from fcnlab.tasks.ineffective import ineffective_in_training
from fcnlab.tasks.limits import check_plan
from fcnlab.tasks.lineage import came_from, describe_training
from fcnlab.tasks.precision import choose_fastest, settle_precision
from fcnlab.tasks.recording import RunRecord, recorded, repeat_exactly
from fcnlab.tasks.resuming import (
    Start,
    check_more_to_train,
    keep_aside,
    make_latest,
    unusable_checkpoints,
    where_to_start,
)
from fcnlab.tasks.run_folder import RunFolder
from fcnlab.tasks.scoring import Scored, describe, score, table, words_of
from fcnlab.tasks.segments import as_recorded, check_images, has_new_segment, images_of, segments_of, settings_of
from fcnlab.tasks.splits import check_splits, warn_of_fewer_workers
from fcnlab.tasks.staged import train_in_stages
from fcnlab.trust import trusting

NORMALISATIONS = (BATCH_NORMS, INSTANCE_NORMS)
MOST_LASTING_STEP = 10.0
LEAST_LASTING_STEP = 1e-4
LEAST_CLIPPED_STEP = 1e-6  # the length of the longest step that a clipped gradient allows


def train(cfg: DictConfig, run: RunFolder) -> float | None:
    """Train, score the best or the last checkpoint, leave the record.

    What a sweeper maximises is the score on the validation images, whatever else was scored.
    """
    folder = run.path
    check_machine(cfg)
    if cfg.stages:
        return train_in_stages(cfg, run)
    check_needs(cfg, as_typed(HydraConfig.get().overrides.task))
    repeat_exactly(cfg)
    check_targets(cfg)
    check_scored(cfg)
    check_places(cfg)
    start = where_to_start(cfg.checkpoint, folder)
    check_more_to_train(start, folder, cfg.trainer.get("max_steps", -1))
    segments = segments_of(cfg, start)
    say_what_surprises(cfg)
    settle_precision(cfg, start)
    kept = as_recorded(cfg, start)
    record = RunRecord(folder)
    known = {"segments": segments, "stopped_early": None} | came_from(start, folder, kept)
    with (
        StopSignals() as signals,
        recorded(kept, run, record, **known) as begin,
        how_to_go_on(folder),
        signals.told_apart(),
    ):
        if record.is_new and not start.checkpoint:
            begin()  # a run that fails is recorded; a command that is refused for one that is there is not
        unusable = unusable_checkpoints(folder / "checkpoints", start, has_new_segment(segments, start))
        segmenter, data = build(cfg, segments, settings_of(kept))
        check_images(data, start)
        say(describe(segmenter, data.split("val")))
        curves = MetricsFile(folder / "metrics.csv")
        if cfg.trainer.precision == FASTEST:
            cfg.trainer.precision = kept.trainer.precision = choose_fastest(cfg, segmenter, data)
            segmenter.record["settings"] = settings_of(kept)
        trainer = build_trainer(cfg, [curves], training_callbacks(cfg, curves, signals))
        check_plan(trainer, data, segmenter.classes)
        warn_of_fewer_workers(data, "train", "val", processes=trainer.num_devices)
        # Behind all else that may refuse a setting, since a run on a dashboard cannot be taken back; before the record,
        # which a refused command leaves as it was.
        with open_loggers(kept, record.facts | known) as loggers, signals.told_apart():
            begin()
            record.write(images=images_of(data), devices=trainer.num_devices, wandb=wandb_id(loggers))
            segmenter.record["trained"] = describe_training(kept, record.facts, trainer)
            keep_aside(unusable)
            make_latest(start, folder)
            cut_curves(curves, start)
            trainer.loggers = [curves, *loggers]
            device = type(trainer.accelerator).__name__.removesuffix("Accelerator")
            say(f"Training on {trainer.num_devices} x {device}, precision {trainer.precision}, in {folder}")
            say_how_parts_add_up(segmenter, data, trainer)
            expected = announce(segmenter, data, trainer, start.steps)
            if expected:
                time_left(trainer).expect(expected.step, expected.validation)
            took = Took(trainer.strategy.root_device)
            with restoring(trainer, start):
                trainer.fit(segmenter, datamodule=data, ckpt_path=start.checkpoint, weights_only=True)
            training = took.facts(expected)
            record.write(stopped_early=early_end(trainer))
            say_why_it_ended(trainer, start, early_end(trainer))
            scored, checkpoint = scored_checkpoint(trainer, folder, cfg.checkpointing.score)
            selected = take_weights(checkpoint, segmenter, trainer, curves)
            found = score(trainer, segmenter, data, folder, cfg.seed, record.facts, training, selected)
    if found is None:
        return None
    say_what_came(found, segmenter, data, training, folder, scored)
    return score_of(folder)


def build(
    cfg: DictConfig, segments: Sequence[dict[str, Any]] = (), settings: Settings | None = None
) -> tuple[Segmenter, DataModule]:
    """The net with all that trains it, and the data, which is looked at before any long work.

    ``settings`` are what checkpoints record, if not all that ``cfg`` sets.
    """
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    net = instantiate(cfg.model, _convert_="all")
    data = open_data(cfg.data, cfg.sweep.recorded)
    backbone_rate = cfg.optim.get("pretrained_lr_scale", 1.0)
    if not net.pretrained and (backbone_rate == 0 or given("optim.pretrained_lr_scale")):
        warn("optim.pretrained_lr_scale has no effect: the backbone starts from no weights")
    freeze(net, backbone_rate)
    optimizer, schedule = instantiate(cfg.optim, _convert_="all"), instantiate(cfg.schedule, _convert_="all")
    try_recipe(net, optimizer, schedule)
    check_splits(data, "train", "val", "test", min_size=net.backbone.min_size)
    if not cfg.trainer.sync_batchnorm:  # else the batches of all devices count together
        try_batch(net, data)
    loss: nn.Module = instantiate(cfg.loss, _convert_="all")
    try_loss(loss, net.num_classes, data)
    check_rate(cfg, loss, data)
    segmenter = Segmenter(
        net,
        classes=data.split("val").classes,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        record=checkpoint_record(
            cfg,
            data.split("val"),
            settings=settings_of(cfg) if settings is None else settings,
            segments=list(segments),
            images=images_of(data),
        ),
        **training_speed(cfg, net),
    )
    if given("speed.row_blocks") and cfg.speed.row_blocks and not segmenter.row_blocks:
        warn(f"speed.row_blocks=true has no effect with loss={choices()['loss']}, which looks at all pixels together")
    return segmenter, data


def try_recipe(net: nn.Module, optimizer: Callable, schedule: Callable) -> None:
    """Have what the optimiser or the schedule refuses be said now, and not when the training begins."""
    try:
        optimizer(net)
        schedule(1)(0)
    except (TypeError, ValueError) as error:
        raise UserError(f"optim or schedule: {first_line(error)}") from error


def try_batch(net: nn.Module, data: DataModule) -> None:
    """Have what a normalisation refuses of the smallest batch be said now; nothing is computed.

    Raises
    ------
    UserError
        A normalisation would have one value per channel, of which there is no deviation.
    """
    if not any(isinstance(layer, NORMALISATIONS) and layer.training for layer in net.modules()):
        return
    if data.augment is not None:
        (rows, cols), source = (data.crop_size,) * 2, f"data.crop_size={data.crop_size}"
    else:
        pictures = data.split("train")
        smallest = min(range(len(pictures)), key=lambda index: max(pictures.size(index)))
        (rows, cols), source = pictures.size(smallest), f"augment=none, {pictures.images[smallest]}"
    try:
        copy.deepcopy(net).to("meta")(torch.empty(data.batch_size, 3, rows, cols, device="meta"))
    except ValueError as error:
        raise UserError(
            f"data.batch_size={data.batch_size} is too small for images of {rows}x{cols} pixels ({source}): a"
            f" normalisation of the net cannot take them ({first_line(error)}). Set data.batch_size=2 or more, or take"
            " larger images"
        ) from error


def try_loss(loss: nn.Module, num_classes: int, data: DataModule) -> None:
    """Have what the loss refuses of crops of this size and number of classes be said now; nothing is computed.

    A loss that asks what the numbers are cannot be tried so.
    """
    rows, cols = (data.crop_size,) * 2 if data.augment is not None else data.split("train").mask(0).shape
    shadow = copy.deepcopy(loss).to("meta")
    scores = torch.empty(1, num_classes, rows, cols, device="meta")
    truth = torch.empty(1, rows, cols, dtype=torch.int64, device="meta")
    try:
        shadow(scores, truth)
    except ValueError as error:
        raise UserError(first_line(error)) from error
    except (RuntimeError, NotImplementedError):
        return


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
def restoring(trainer: L.Trainer, start: Start) -> Iterator[None]:
    """Make what Lightning and torch say of a checkpoint that they cannot restore an error of the user's."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a part of a checkpoint makes of its reader
        if not is_restoring(trainer):  # forgotten once all is restored
            raise
        raise UserError(f"checkpoint={start.checkpoint} cannot be resumed from: {first_line(error)}") from error


@contextmanager
def how_to_go_on(folder: Path) -> Iterator[None]:
    """Say to a run that was stopped how it goes on."""
    try:
        yield
    except Interrupted as stop:
        last = folder / "checkpoints" / "last.ckpt"
        how = f"Go on with the same command and checkpoint=last {to_type('hydra.run.dir', folder)}"
        how = how if last.is_file() else ""
        say(f"Stopped by {stop}. {how}".rstrip())
        stop.reported = True
        raise


def say_what_surprises(cfg: DictConfig) -> None:
    """Settings that have no effect, and defaults that are not meant for what was chosen."""
    chosen = choices()
    if chosen.get("model/backbone") == "tiny" and chosen.get("data") != "shapes":
        others = sorted({path.stem for path in (CONF / "model" / "backbone").glob("*.yaml")} - {"tiny"})
        warn(f"the backbone is tiny, for first looks: for real pictures choose model/backbone={' | '.join(others)}")
    if cfg.speed.compile and chosen.get("augment") == "none":
        warn("speed.compile=true with augment=none, which takes whole pictures: each new size may be compiled anew")
    for sentence in ineffective_in_training(cfg):
        warn(sentence)


def cut_curves(curves: MetricsFile, start: Start) -> None:
    """Drop the rows from beyond the checkpoint, which the run logs again; and say where some from before are lost."""
    if curves.count < start.rows:
        warn(
            f"{curves.path} has {curves.count} rows, and checkpoint={start.checkpoint} was written after {start.rows}:"
            " the curves from before are lost; the training resumes without them"
        )
    curves.cut(start.rows)


def scored_checkpoint(trainer: L.Trainer, folder: Path, wanted: str) -> tuple[Path | None, dict[str, Any] | None]:
    """The checkpoint to score and what is in it; None where none is kept: then the weights count as they are."""
    last = folder / "checkpoints" / "last.ckpt"
    best = best_checkpoint(trainer) if wanted == "best" else None
    if wanted == "best" and not best:
        warn("no best checkpoint was kept: the last weights are scored")
    for path in ([Path(best)] if best else []) + ([last] if last.is_file() else []):
        try:
            return path, read_checkpoint(path)
        except UserError as error:  # it was whole when it was written, and the training is done
            warn(f"{error} It cannot be scored: the last weights are")
    return None, None


def take_weights(
    checkpoint: dict[str, Any] | None, segmenter: Segmenter, trainer: L.Trainer, curves: MetricsFile
) -> Facts | None:
    """Give the net a checkpoint's weights; how they were selected, None where it does not tell."""
    if checkpoint is None:
        selection = next(one for one in trainer.callbacks if isinstance(one, Selection))  # pyright: ignore[reportAttributeAccessIssue]
        return selection.facts(trainer)
    # Not by test(ckpt_path=...): Lightning's weight averaging would restore the weights not averaged.
    segmenter.load_state_dict(checkpoint["state_dict"])
    selected = selection_of(checkpoint)
    return selected and {**selected, "among": curves.validations}  # others came after this one


def say_how_parts_add_up(segmenter: Segmenter, data: DataModule, trainer: L.Trainer) -> None:
    """Where a step comes in parts, by accumulation or on several devices: what of it is as at once, and what is not."""
    devices, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    parts, pictures = devices * accumulated, devices * accumulated * data.batch_size
    if parts == 1:
        return
    step = f"A step takes {pictures} pictures in {parts} parts (devices: {devices}, accumulated batches: {accumulated})"
    others = net_by_parts(segmenter.net, trainer)
    others += ["padding to the largest image, which a net sees (augment=none)"] * (data.augment is None)
    by_part = f". What the net still does by part: {', '.join(others)}" if others else ""
    assert segmenter.loss is not None
    if adds_up(segmenter.loss):
        say(f"{step}: its loss is that of all {pictures} at once{by_part}")
    else:
        mean = f"loss={choices()['loss']} is taken of each part and averaged, which is another loss than that of all"
        warn(f"{step}: {mean} {pictures} at once{by_part}")


def net_by_parts(net: nn.Module, trainer: L.Trainer) -> list[str]:
    """What a net computes or draws by batch in training."""
    learning = [module for module in net.modules() if module.training]
    together = trainer.accumulate_grad_batches == 1 and synchronises_batch_norm(trainer)
    batch_norm = any(isinstance(module, BATCH_NORMS) for module in learning) and not together
    dropout = any(isinstance(module, DROPOUTS) and module.p > 0 for module in learning)
    return ["batch normalisation"] * batch_norm + ["dropout"] * dropout


def best_checkpoint(trainer: L.Trainer) -> str | None:
    """The path of the best checkpoint; None where none was asked for."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return next((callback.best_model_path for callback in callbacks if callback.monitor), "") or None


def time_left(trainer: L.Trainer) -> TimeLeft:
    """What tells how long the run still takes."""
    callbacks: list = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return next(callback for callback in callbacks if isinstance(callback, TimeLeft))


def early_end(trainer: L.Trainer) -> dict[str, Any] | None:
    """Why the run stopped early; None where it did not."""
    callbacks: list = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return next(callback for callback in callbacks if isinstance(callback, EarlyEnd)).reason


def say_why_it_ended(trainer: L.Trainer, start: Start, early: dict[str, Any] | None) -> None:
    """One line for a run that stopped early, or that had nothing left to train."""
    nothing = "Nothing is left to train. " if start.checkpoint and trainer.global_step == start.steps else ""
    if early:
        say(f"{nothing}The run stopped early at step {early['step']}: {_why(early)}")
    elif nothing:
        limits = {"trainer.max_steps": trainer.max_steps, "trainer.max_epochs": trainer.max_epochs}
        reached = " and ".join(f"{key}={limit}" for key, limit in limits.items() if limit not in (None, -1))
        say(f"{nothing}The run is at step {start.steps} and has reached its end ({reached}); raise that to train on")


def _why(early: dict[str, Any]) -> str:
    if "monitor" not in early:
        return "a callback or trainer.max_time ended it"
    value = "none" if early["best"] is None else f"{early['best']:.4f}, at step {early['best_step']}"
    best = f"the best value of {early['monitor']} is {value}"
    how = "To train on, resume with callbacks.early_stopping.enabled=false"
    if not early["out_of_patience"]:
        return f"{early['monitor']} was not finite or crossed a threshold, and {best}. {how}"
    return (
        f"{best}, and callbacks.early_stopping.patience={early['patience']} validations did not improve it. {how} or"
        " with more patience"
    )


def say_what_came(
    found: Scored, segmenter: Segmenter, data: DataModule, training: dict[str, float], folder: Path, scored: Path | None
) -> None:
    """The last lines that the user sees: scores, what it took, where the run lies, what to type next."""
    say(table(found.scores, tuple(segmenter.classes)))
    say(beside_expected(training))
    minutes = f"{training['training_minutes']:.1f} min"
    say(words_of(found, segmenter.scored_as, data))
    say(f"{segmenter.trainer.global_step} steps, {minutes}. The run: {folder}")
    if scored:
        checkpoint = scored.relative_to(Path.cwd()) if scored.is_relative_to(Path.cwd()) else scored
        trust = "".join(f" {word}" for word in trusting(segmenter.record["model"]))
        say(f"Next: fcnlab predict {to_type('checkpoint', checkpoint)}{trust} input=FILE|FOLDER output=FOLDER")
