"""``fcnlab train``."""

from collections.abc import Iterator, Sequence
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

from fcnlab.config.components import Settings
from fcnlab.config.locations import CONF
from fcnlab.config.overrides import chosen_options, plain_overrides, shell_override, was_set_on_command_line
from fcnlab.config.trust import trusted_packages
from fcnlab.config.validation import check_requirements, validate_config
from fcnlab.data import DataModule
from fcnlab.errors import UserError, first_line
from fcnlab.evaluation.cost import describe_model
from fcnlab.evaluation.evaluation import ScoredRun, describe_scores, evaluate_and_record, score_table
from fcnlab.evaluation.splits import check_splits, warn_about_fewer_workers
from fcnlab.library_internals.lightning import is_restoring, synchronises_batch_norm
from fcnlab.library_internals.torch import BATCH_NORMS, DROPOUTS
from fcnlab.messages import log_info, log_warning
from fcnlab.runs.run_folder import RunFolder
from fcnlab.runs.run_record import RunRecord, record_run
from fcnlab.runs.selection import Facts
from fcnlab.signals import Interrupted, StopSignals
from fcnlab.sweeps.sweep_table import selection_score
from fcnlab.tasks.staged import train_in_stages
from fcnlab.training.callbacks import CheckpointSelection, MetricsCsv, StopReason, TimeLeft
from fcnlab.training.checkpoints import checkpoint_record, read_checkpoint, selection_of
from fcnlab.training.components import open_data
from fcnlab.training.cost_estimate import CostMeter, compare_with_estimate, report_estimate
from fcnlab.training.hardware import FASTEST, check_machine
from fcnlab.training.ineffective_settings import ineffective_in_training
from fcnlab.training.limits import check_training_plan
from fcnlab.training.lineage import describe_training, starting_point_facts
from fcnlab.training.loggers import check_output_paths, open_loggers, wandb_id
from fcnlab.training.losses import CrossEntropySum, is_sum_over_pixels
from fcnlab.training.optimizers import MOMENTUM, freeze
from fcnlab.training.precision import choose_fastest, settle_precision
from fcnlab.training.recipe_checks import check_loss, check_optimizer_and_schedule, check_smallest_batch
from fcnlab.training.repeated_run import apply_recorded_config
from fcnlab.training.resume_point import (
    ResumePoint,
    check_more_to_train,
    find_resume_point,
    promote_to_last,
    rename_unusable,
    unusable_checkpoints,
)
from fcnlab.training.segmenter import Segmenter
from fcnlab.training.segments import as_recorded, check_images, has_new_segment, images_of, segments_of, settings_of
from fcnlab.training.speed import training_speed
from fcnlab.training.trainer import build_trainer, check_scored, training_callbacks

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
    check_requirements(cfg, plain_overrides(HydraConfig.get().overrides.task))
    apply_recorded_config(cfg)
    validate_config(cfg)
    check_scored(cfg)
    check_output_paths(cfg)
    start = find_resume_point(cfg.checkpoint, folder)
    check_more_to_train(start, folder, cfg.trainer.get("max_steps", -1))
    segments = segments_of(cfg, start)
    warn_about_ineffective_settings(cfg)
    settle_precision(cfg, start)
    kept = as_recorded(cfg, start)
    record = RunRecord(folder)
    known = {"segments": segments, "stopped_early": None} | starting_point_facts(start, folder, kept)
    with (
        StopSignals() as signals,
        record_run(kept, run, record, **known) as begin,
        report_resume_command(folder),
        signals.told_apart(),
    ):
        if record.is_new and not start.checkpoint:
            begin()  # a run that fails is recorded; a command that is refused for one that is there is not
        unusable = unusable_checkpoints(folder / "checkpoints", start, has_new_segment(segments, start))
        segmenter, data = build(cfg, segments, settings_of(kept))
        check_images(data, start)
        log_info(describe_model(segmenter, data.split("val")))
        curves = MetricsCsv(folder / "metrics.csv")
        if cfg.trainer.precision == FASTEST:
            cfg.trainer.precision = kept.trainer.precision = choose_fastest(cfg, segmenter, data)
            segmenter.record["settings"] = settings_of(kept)
        trainer = build_trainer(cfg, [curves], training_callbacks(cfg, curves, signals))
        check_training_plan(trainer, data, segmenter.classes)
        warn_about_fewer_workers(data, "train", "val", processes=trainer.num_devices)
        # Behind all else that may refuse a setting, since a run on a dashboard cannot be taken back; before the record,
        # which a refused command leaves as it was.
        with open_loggers(kept, record.facts | known) as loggers, signals.told_apart():
            begin()
            record.write(images=images_of(data), devices=trainer.num_devices, wandb=wandb_id(loggers))
            segmenter.record["trained"] = describe_training(kept, record.facts, trainer)
            rename_unusable(unusable)
            promote_to_last(start, folder)
            drop_rows_after_checkpoint(curves, start)
            trainer.loggers = [curves, *loggers]
            device = type(trainer.accelerator).__name__.removesuffix("Accelerator")
            log_info(f"Training on {trainer.num_devices} x {device}, precision {trainer.precision}, in {folder}")
            report_split_batches(segmenter, data, trainer)
            expected = report_estimate(segmenter, data, trainer, start.steps)
            if expected:
                time_left(trainer).expect(expected.step, expected.validation)
            took = CostMeter(trainer.strategy.root_device)
            with report_restore_errors(trainer, start):
                trainer.fit(segmenter, datamodule=data, ckpt_path=start.checkpoint, weights_only=True)
            training = took.facts(expected)
            record.write(stopped_early=early_stop_reason(trainer))
            report_stop_reason(trainer, start, early_stop_reason(trainer))
            scored, checkpoint = scored_checkpoint(trainer, folder, cfg.checkpointing.score)
            selected = load_scored_weights(checkpoint, segmenter, trainer, curves)
            found = evaluate_and_record(trainer, segmenter, data, folder, cfg.seed, record.facts, training, selected)
    if found is None:
        return None
    report_results(found, segmenter, data, training, folder, scored)
    return selection_score(folder)


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
    if not net.pretrained and (backbone_rate == 0 or was_set_on_command_line("optim.pretrained_lr_scale")):
        log_warning("optim.pretrained_lr_scale has no effect: the backbone starts from no weights")
    freeze(net, backbone_rate)
    optimizer, schedule = instantiate(cfg.optim, _convert_="all"), instantiate(cfg.schedule, _convert_="all")
    check_optimizer_and_schedule(net, optimizer, schedule)
    check_splits(data, "train", "val", "test", min_size=net.backbone.min_size)
    if not cfg.trainer.sync_batchnorm:  # else the batches of all devices count together
        check_smallest_batch(net, data)
    loss: nn.Module = instantiate(cfg.loss, _convert_="all")
    check_loss(loss, net.num_classes, data)
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
    if was_set_on_command_line("speed.row_blocks") and cfg.speed.row_blocks and not segmenter.row_blocks:
        log_warning(
            f"speed.row_blocks=true has no effect with loss={chosen_options()['loss']}, which looks at all pixels together"
        )
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
    if cfg.optim._target_ != "fcnlab.training.optimizers.sgd":
        return
    summed = any(isinstance(part, CrossEntropySum) for part in loss.modules())
    pixels = data.training_pixels() if summed else 1
    momentum, starts_from = cfg.optim.get("momentum", MOMENTUM), cfg.model.get("weights", "none")
    rate, clip = cfg.optim.lr / (1 - momentum), cfg.trainer.gradient_clip_val
    if summed and clip is None and rate * pixels > MOST_LASTING_STEP:
        raise UserError(
            f"optim.lr={cfg.optim.lr:g} is a rate for mean losses, and loss={chosen_options()['loss']} adds {pixels} pixels"
            " up: choose optim=sgd_heavy (1e-10) or loss=cross_entropy"
        )
    if summed and clip is not None and rate * clip < LEAST_CLIPPED_STEP:
        log_warning(
            f"trainer.gradient_clip_val={clip:g} cuts the gradients of a summed loss to nothing that optim.lr="
            f"{cfg.optim.lr:g} could learn by: set trainer.gradient_clip_val=null, as trainer=paper does"
        )
    elif rate * pixels < LEAST_LASTING_STEP and starts_from == "none":
        kind = f"a loss summed over {pixels} pixels" if summed else "a mean loss"
        log_warning(
            f"optim.lr={cfg.optim.lr:g} with {kind} is too small to learn from anything but a trained FCN: staged"
            " recipes start FCN-16s from FCN-32s and FCN-8s from FCN-16s by model.weights=PATH (paper/staged does)"
        )


@contextmanager
def report_restore_errors(trainer: L.Trainer, start: ResumePoint) -> Iterator[None]:
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
def report_resume_command(folder: Path) -> Iterator[None]:
    """Say to a run that was stopped how it goes on."""
    try:
        yield
    except Interrupted as stop:
        last = folder / "checkpoints" / "last.ckpt"
        how = f"Go on with the same command and checkpoint=last {shell_override('hydra.run.dir', folder)}"
        how = how if last.is_file() else ""
        log_info(f"Stopped by {stop}. {how}".rstrip())
        stop.reported = True
        raise


def warn_about_ineffective_settings(cfg: DictConfig) -> None:
    """Settings that have no effect, and defaults that are not meant for what was chosen."""
    chosen = chosen_options()
    if chosen.get("model/backbone") == "tiny" and chosen.get("data") != "shapes":
        others = sorted({path.stem for path in (CONF / "model" / "backbone").glob("*.yaml")} - {"tiny"})
        log_warning(
            f"the backbone is tiny, for first looks: for real images choose model/backbone={' | '.join(others)}"
        )
    if cfg.speed.compile and chosen.get("augment") == "none":
        log_warning(
            "speed.compile=true with augment=none, which takes whole images: each new size may be compiled anew"
        )
    for sentence in ineffective_in_training(cfg):
        log_warning(sentence)


def drop_rows_after_checkpoint(curves: MetricsCsv, start: ResumePoint) -> None:
    """Drop the rows from beyond the checkpoint, which the run logs again; and say where some from before are lost."""
    if curves.count < start.rows:
        log_warning(
            f"{curves.path} has {curves.count} rows, and checkpoint={start.checkpoint} was written after {start.rows}:"
            " the curves from before are lost; the training resumes without them"
        )
    curves.cut(start.rows)


def scored_checkpoint(trainer: L.Trainer, folder: Path, wanted: str) -> tuple[Path | None, dict[str, Any] | None]:
    """The checkpoint to score and what is in it; None where none is kept: then the weights count as they are."""
    last = folder / "checkpoints" / "last.ckpt"
    best = best_checkpoint(trainer) if wanted == "best" else None
    if wanted == "best" and not best:
        log_warning("no best checkpoint was kept: the last weights are scored")
    for path in ([Path(best)] if best else []) + ([last] if last.is_file() else []):
        try:
            return path, read_checkpoint(path)
        except UserError as error:  # it was whole when it was written, and the training is done
            log_warning(f"{error} It cannot be scored: the last weights are")
    return None, None


def load_scored_weights(
    checkpoint: dict[str, Any] | None, segmenter: Segmenter, trainer: L.Trainer, curves: MetricsCsv
) -> Facts | None:
    """Give the net a checkpoint's weights; how they were selected, None where it does not tell."""
    if checkpoint is None:
        selection = next(one for one in trainer.callbacks if isinstance(one, CheckpointSelection))  # pyright: ignore[reportAttributeAccessIssue]
        return selection.facts(trainer)
    # Not by test(ckpt_path=...): Lightning's weight averaging would restore the weights not averaged.
    segmenter.load_state_dict(checkpoint["state_dict"])
    selected = selection_of(checkpoint)
    return selected and {**selected, "among": curves.validations}  # others came after this one


def report_split_batches(segmenter: Segmenter, data: DataModule, trainer: L.Trainer) -> None:
    """Where a step comes in parts, by accumulation or on several devices: what of it is as at once, and what is not."""
    devices, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    parts, images = devices * accumulated, devices * accumulated * data.batch_size
    if parts == 1:
        return
    step = f"A step takes {images} images in {parts} parts (devices: {devices}, accumulated batches: {accumulated})"
    others = layers_affected_by_split_batches(segmenter.net, trainer)
    others += ["padding to the largest image, which a net sees (augment=none)"] * (data.augment is None)
    by_part = f". What the net still does by part: {', '.join(others)}" if others else ""
    assert segmenter.loss is not None
    if is_sum_over_pixels(segmenter.loss):
        log_info(f"{step}: its loss is that of all {images} at once{by_part}")
    else:
        mean = f"loss={chosen_options()['loss']} is taken of each part and averaged, which is another loss than that of all"
        log_warning(f"{step}: {mean} {images} at once{by_part}")


def layers_affected_by_split_batches(net: nn.Module, trainer: L.Trainer) -> list[str]:
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


def early_stop_reason(trainer: L.Trainer) -> dict[str, Any] | None:
    """Why the run stopped early; None where it did not."""
    callbacks: list = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return next(callback for callback in callbacks if isinstance(callback, StopReason)).reason


def report_stop_reason(trainer: L.Trainer, start: ResumePoint, early: dict[str, Any] | None) -> None:
    """One line for a run that stopped early, or that had nothing left to train."""
    nothing = "Nothing is left to train. " if start.checkpoint and trainer.global_step == start.steps else ""
    if early:
        log_info(f"{nothing}The run stopped early at step {early['step']}: {_why(early)}")
    elif nothing:
        limits = {"trainer.max_steps": trainer.max_steps, "trainer.max_epochs": trainer.max_epochs}
        reached = " and ".join(f"{key}={limit}" for key, limit in limits.items() if limit not in (None, -1))
        log_info(
            f"{nothing}The run is at step {start.steps} and has reached its end ({reached}); raise that to train on"
        )


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


def report_results(
    found: ScoredRun,
    segmenter: Segmenter,
    data: DataModule,
    training: dict[str, float],
    folder: Path,
    scored: Path | None,
) -> None:
    """The last lines that the user sees: scores, what it took, where the run lies, what to type next."""
    log_info(score_table(found.scores, tuple(segmenter.classes)))
    log_info(compare_with_estimate(training))
    minutes = f"{training['training_minutes']:.1f} min"
    log_info(describe_scores(found, segmenter.scored_as, data))
    log_info(f"{segmenter.trainer.global_step} steps, {minutes}. The run: {folder}")
    if scored:
        checkpoint = scored.relative_to(Path.cwd()) if scored.is_relative_to(Path.cwd()) else scored
        trust = "".join(f" {word}" for word in trusted_packages(segmenter.record["model"]))
        log_info(
            f"Next: fcnlab predict {shell_override('checkpoint', checkpoint)}{trust} input=FILE|FOLDER output=FOLDER"
        )
