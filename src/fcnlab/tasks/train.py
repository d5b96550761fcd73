"""``fcnlab train``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import nn

from fcnlab.config.components import Settings
from fcnlab.config.locations import CONF
from fcnlab.config.overrides import shell_override
from fcnlab.config.run_context import RunContext
from fcnlab.config.trust import trusted_packages
from fcnlab.config.validation import check_requirements, validate_config
from fcnlab.data import DataModule
from fcnlab.errors import UserError, first_line
from fcnlab.evaluation.cost import describe_model
from fcnlab.evaluation.evaluation import ScoredRun, describe_scores, evaluate_and_record, score_table
from fcnlab.evaluation.splits import check_splits, warn_about_fewer_workers
from fcnlab.files.reading import display_path
from fcnlab.library_internals.lightning import is_restoring, synchronises_batch_norm
from fcnlab.library_internals.torch import BATCH_NORMS, DROPOUTS
from fcnlab.messages import log_info, log_warning
from fcnlab.runs.run_folder import RunFolder
from fcnlab.runs.run_record import RunRecord, record_run
from fcnlab.runs.selection import Facts
from fcnlab.signals import Interrupted, StopSignals
from fcnlab.sweeps.sweep_table import selection_score
from fcnlab.tasks.staged import train_in_stages
from fcnlab.tracking.artifacts import use_checkpoint, use_data
from fcnlab.tracking.downloads import CheckpointFile
from fcnlab.tracking.links import describe_run, tracked_run
from fcnlab.training.callbacks import CheckpointSelection, MetricsCsv, StopReason, Throughput, TimeLeft
from fcnlab.training.callbacks.stopping import is_reason
from fcnlab.training.checkpoints import checkpoint_record, read_checkpoint, selection_of
from fcnlab.training.components import build_network, open_data
from fcnlab.training.cost_estimate import CostMeter, compare_with_estimate, report_estimate
from fcnlab.training.finished_run import finished_run
from fcnlab.training.hardware import FASTEST, check_machine
from fcnlab.training.ineffective_settings import ineffective_in_training
from fcnlab.training.limits import check_training_plan
from fcnlab.training.lineage import describe_training, starting_point_facts
from fcnlab.training.loggers import open_loggers, restore_best, wandb_id
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
from fcnlab.training.trainer import build_trainer, check_output_paths, check_scored, training_callbacks

MAX_EFFECTIVE_STEP = 10.0  # see check_learning_rate
MIN_EFFECTIVE_STEP = 1e-4
MIN_CLIPPED_STEP = 1e-6  # lr / (1 - momentum) times the gradient norm after clipping


def train(cfg: DictConfig, run: RunFolder) -> float | None:
    """Train, score the best or the last checkpoint, write the run record and return the validation mIoU.

    A sweeper maximises the returned value, even where other images were scored as well. A finished run that is resumed
    with the same settings keeps its record.
    """
    folder, context = run.path, run.context
    check_machine(cfg, context)
    if cfg.stages:
        return train_in_stages(cfg, run)
    check_requirements(cfg, context.overrides)
    apply_recorded_config(cfg, context.overrides)
    validate_config(cfg)
    check_scored(cfg)
    check_output_paths(cfg, context)
    start = find_resume_point(cfg.checkpoint, context)
    check_more_to_train(start, folder, cfg.trainer.get("max_steps", -1))
    segments = segments_of(cfg, start, context.overrides)
    record = RunRecord(folder)
    if finished_run(cfg, start, segments, record.facts, folder):
        report_finished(cfg, start, record.facts.get("stopped_early"), folder)
        return selection_score(folder)
    warn_about_ineffective_settings(cfg, context)
    settle_precision(cfg, start)
    kept = as_recorded(cfg, start)
    known = {"segments": segments, "stopped_early": None} | starting_point_facts(start, folder, kept)
    with (
        StopSignals() as signals,
        record_run(kept, run, record, **known) as begin,
        report_how_to_resume(context),
        signals.reraise_as_interrupted(),
    ):
        if record.is_new and not start.checkpoint:
            begin()  # a new run is recorded even if it fails; a refused command leaves an existing record as it is
        unusable = unusable_checkpoints(folder / "checkpoints", start, has_new_segment(segments, start))
        segmenter, data = build(cfg, context, segments, settings_of(kept))
        check_images(data, start)
        log_info(describe_model(segmenter, data.split("val")))
        curves = MetricsCsv(folder / "metrics.csv")
        if cfg.trainer.precision == FASTEST:
            cfg.trainer.precision = kept.trainer.precision = choose_fastest(cfg, segmenter, data)
            segmenter.record["settings"] = settings_of(kept)
        trainer = build_trainer(cfg, folder, [curves], training_callbacks(cfg, curves, signals))
        check_training_plan(trainer, data, segmenter.classes, context)
        warn_about_fewer_workers(data, "train", "val", processes=trainer.num_devices)
        # After every check, since a W&B run cannot be deleted from here; before the record is written, since a refused
        # command must not change it.
        with open_loggers(kept, context, record.facts | known) as loggers, signals.reraise_as_interrupted():
            begin()
            record.write(
                images=images_of(data),
                devices=trainer.num_devices,
                wandb=wandb_id(loggers),
                wandb_run=tracked_run(loggers),
            )
            log_inputs(loggers, record.facts.get("id"), data, start)
            segmenter.record["trained"] = describe_training(kept, context, record.facts, trainer)
            rename_unusable(unusable)
            promote_to_last(start, folder)
            drop_rows_after_checkpoint(curves, start)
            restore_best(loggers, curves)
            trainer.loggers = [curves, *loggers]
            device = type(trainer.accelerator).__name__.removesuffix("Accelerator")
            shown = display_path(folder)
            log_info(f"Training on {trainer.num_devices} x {device}, precision {trainer.precision}, in {shown}")
            report_split_batches(segmenter, data, trainer, context.options["loss"])
            expected = report_estimate(segmenter, data, trainer, start.steps)
            if expected:
                time_left(trainer).expect(expected.step, expected.validation)
            took = CostMeter(trainer.strategy.root_device)
            with report_restore_errors(trainer, start):
                trainer.fit(segmenter, datamodule=data, ckpt_path=start.checkpoint, weights_only=True)
            training = took.facts(expected) | throughput(trainer).facts()
            record.write(stopped_early=early_stop_reason(trainer))
            if start.checkpoint and trainer.global_step == start.steps:
                report_nothing_left(cfg, start, early_stop_reason(trainer))
            elif early := early_stop_reason(trainer):
                log_info(describe_early_stop(early))
            scored, checkpoint = scored_checkpoint(trainer, folder, cfg.checkpointing.score)
            selected = load_scored_weights(checkpoint, segmenter, trainer, curves)
            keep = cfg.evaluation.keep_predictions
            scores = evaluate_and_record(
                trainer, segmenter, data, context, cfg.seed, record.facts, keep, training, selected
            )
    if scores is None:
        return None
    report_results(scores, segmenter, data, training, context, scored)
    return selection_score(folder)


def log_inputs(loggers: list[Logger], run_id: str | None, data: DataModule, start: ResumePoint) -> None:
    """Log in W&B which run this is, and the data and the downloaded checkpoint that it uses."""
    describe_run(loggers, run_id)
    use_data(loggers, data, "train", "val", "test")
    if start.checkpoint and start.artifact:
        use_checkpoint(loggers, CheckpointFile(Path(start.checkpoint), start.artifact))


def build(
    cfg: DictConfig, context: RunContext, segments: Sequence[dict[str, Any]] = (), settings: Settings | None = None
) -> tuple[Segmenter, DataModule]:
    """Build the segmenter (model, loss, optimiser, schedule) and the data, and check both before any long work.

    ``settings`` are recorded in every checkpoint; by default all settings of ``cfg``.
    """
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    net = build_network(cfg.model)
    data = open_data(cfg.data, cfg.sweep.recorded, context.folder)
    backbone_rate = cfg.optim.get("pretrained_lr_scale", 1.0)
    if not net.pretrained and (backbone_rate == 0 or context.sets("optim.pretrained_lr_scale")):
        log_warning("optim.pretrained_lr_scale has no effect: the model has no backbone with pretrained weights")
    freeze(net, backbone_rate)
    optimizer, schedule = instantiate(cfg.optim, _convert_="all"), instantiate(cfg.schedule, _convert_="all")
    check_optimizer_and_schedule(net, optimizer, schedule)
    check_splits(data, "train", "val", "test", min_size=net.min_size)
    if not cfg.trainer.sync_batchnorm:  # otherwise batch statistics cover all devices
        check_smallest_batch(net, data)
    loss: nn.Module = instantiate(cfg.loss, _convert_="all")
    check_loss(loss, net.num_classes, data)
    check_learning_rate(cfg, loss, data, context.options["loss"])
    segmenter = Segmenter(
        net,
        classes=data.split("val").classes,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        record=checkpoint_record(
            cfg,
            str(context.options["model"]),
            data.split("val"),
            settings=settings_of(cfg) if settings is None else settings,
            segments=list(segments),
            images=images_of(data),
        ),
        **training_speed(cfg, net),
    )
    if context.sets("speed.row_blocks") and cfg.speed.row_blocks and not segmenter.row_blocks:
        reason = f"loss={context.options['loss']}, which needs all pixels at once"
        if not net.scores_rows_alone:
            reason = f"model={context.options['model']}, which scores the whole image at once"
        log_warning(f"speed.row_blocks=true has no effect with {reason}")
    return segmenter, data


def check_learning_rate(cfg: DictConfig, loss: nn.Module, data: DataModule, loss_name: str | None) -> None:
    """Check that the learning rate fits the loss: a sum over pixels needs one about 100,000 times smaller than a mean.

    The check uses the effective step lr / (1 - momentum), per pixel of a mean loss. It is 1e-3 in CVPR's recipe and
    1.9e-3 in the heavy one; the staged 16s and 8s have a hundredth of it, enough only for a model that is trained
    already. Adam's step does not depend on the scale of the loss, so only SGD is checked.

    Raises
    ------
    UserError
        The learning rate would make a summed loss diverge within a few steps.
    """
    if cfg.optim._target_ != "fcnlab.training.optimizers.sgd":
        return
    summed = any(isinstance(part, CrossEntropySum) for part in loss.modules())
    pixels = data.training_pixels() if summed else 1
    momentum, starts_from = cfg.optim.get("momentum", MOMENTUM), cfg.model.get("weights", "none")
    rate, clip = cfg.optim.lr / (1 - momentum), cfg.trainer.gradient_clip_val
    if summed and clip is None and rate * pixels > MAX_EFFECTIVE_STEP:
        raise UserError(
            f"optim.lr={cfg.optim.lr:g} is a learning rate for mean losses, but loss={loss_name} sums"
            f" over {pixels} pixels: choose optim=sgd_heavy (1e-10) or loss=cross_entropy"
        )
    if summed and clip is not None and rate * clip < MIN_CLIPPED_STEP:
        log_warning(
            f"trainer.gradient_clip_val={clip:g} clips the gradients of a summed loss so much that the model does not"
            f" learn with optim.lr={cfg.optim.lr:g}: set trainer.gradient_clip_val=null, as trainer=paper does"
        )
    elif rate * pixels < MIN_EFFECTIVE_STEP and starts_from == "none":
        kind = f"a loss summed over {pixels} pixels" if summed else "a mean loss"
        log_warning(
            f"optim.lr={cfg.optim.lr:g} with {kind} is too small unless the model starts from a trained FCN: staged"
            " recipes start FCN-16s from FCN-32s and FCN-8s from FCN-16s with model.weights=PATH (as paper/staged does)"
        )


@contextmanager
def report_restore_errors(trainer: L.Trainer, start: ResumePoint) -> Iterator[None]:
    """Raise a UserError where Lightning or torch cannot restore the checkpoint."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged checkpoint can raise any error
        if not is_restoring(trainer):
            raise
        raise UserError(f"checkpoint={start.checkpoint} cannot be resumed: {first_line(error)}") from error


@contextmanager
def report_how_to_resume(context: RunContext) -> Iterator[None]:
    """Print how to resume the run when a signal stops it."""
    try:
        yield
    except Interrupted as stop:
        hint = context.how_to_resume("last") if (context.folder / "checkpoints" / "last.ckpt").is_file() else ""
        log_info(f"Stopped by {stop}. {hint}".rstrip())
        stop.reported = True
        raise


def warn_about_ineffective_settings(cfg: DictConfig, context: RunContext) -> None:
    """Warn about settings without an effect, and about defaults that do not suit the chosen options."""
    chosen = context.options
    if chosen.get("model/backbone") == "tiny" and chosen.get("data") != "shapes":
        others = sorted({path.stem for path in (CONF / "model" / "backbone").glob("*.yaml")} - {"tiny"})
        log_warning(
            f"model/backbone=tiny is meant for smoke tests: for real images choose model/backbone={' | '.join(others)}"
        )
    if cfg.speed.compile and chosen.get("augment") == "none":
        log_warning(
            "speed.compile=true with augment=none trains on whole images: each new image size may trigger a compilation"
        )
    for message in ineffective_in_training(cfg, context):
        log_warning(message)


def drop_rows_after_checkpoint(curves: MetricsCsv, start: ResumePoint) -> None:
    """Drop the rows after the checkpoint, since the run logs them again; warn where rows before it are missing."""
    if curves.count < start.rows:
        log_warning(
            f"{curves.path} has {curves.count} rows, but checkpoint={start.checkpoint} was written after {start.rows}:"
            " the earlier rows are lost, and training resumes without them"
        )
    curves.cut(start.rows)


def scored_checkpoint(trainer: L.Trainer, folder: Path, choice: str) -> tuple[Path | None, dict[str, Any] | None]:
    """Return the path and the content of the checkpoint to score; None and None to score the current weights."""
    last = folder / "checkpoints" / "last.ckpt"
    best = best_checkpoint(trainer) if choice == "best" else None
    if choice == "best" and not best:
        log_warning("there is no best checkpoint: the last weights are scored")
    for path in ([Path(best)] if best else []) + ([last] if last.is_file() else []):
        try:
            return path, read_checkpoint(path)
        except UserError as error:  # damaged after it was written; training is complete, so score something
            log_warning(f"{error} The last weights are scored instead")
    return None, None


def load_scored_weights(
    checkpoint: dict[str, Any] | None, segmenter: Segmenter, trainer: L.Trainer, curves: MetricsCsv
) -> Facts | None:
    """Load a checkpoint's weights and return how they were selected; None where the checkpoint has no selection."""
    if checkpoint is None:
        callbacks: list = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        return next(each for each in callbacks if isinstance(each, CheckpointSelection)).facts(trainer)
    # Not with test(ckpt_path=...): Lightning's weight averaging would restore the weights without EMA.
    segmenter.load_state_dict(checkpoint["state_dict"])
    selected = selection_of(checkpoint)
    return selected and {**selected, "among": curves.validations}  # count the validations after this checkpoint, too


def report_split_batches(segmenter: Segmenter, data: DataModule, trainer: L.Trainer, loss_name: str | None) -> None:
    """Report how a step in several parts (accumulated batches, devices) differs from one with all its images."""
    devices, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    parts, images = devices * accumulated, devices * accumulated * data.batch_size
    if parts == 1:
        return
    step = f"A step takes {images} images in {parts} parts (devices: {devices}, accumulated batches: {accumulated})"
    affected = layers_affected_by_split_batches(segmenter.net, trainer)
    affected += ["padding to the largest image (augment=none)"] * (data.augment is None)
    per_part = f". Still computed per part: {', '.join(affected)}" if affected else ""
    assert segmenter.loss is not None
    if is_sum_over_pixels(segmenter.loss):
        log_info(f"{step}. The loss equals that of one batch of {images} images{per_part}")
    else:
        log_warning(
            f"{step}. loss={loss_name} is averaged over the parts, which differs from the loss of one"
            f" batch of {images} images{per_part}"
        )


def layers_affected_by_split_batches(net: nn.Module, trainer: L.Trainer) -> list[str]:
    """Return the kinds of layers that compute or draw something per batch in training."""
    learning = [module for module in net.modules() if module.training]
    together = trainer.accumulate_grad_batches == 1 and synchronises_batch_norm(trainer)
    batch_norm = any(isinstance(module, BATCH_NORMS) for module in learning) and not together
    dropout = any(isinstance(module, DROPOUTS) and module.p > 0 for module in learning)
    return ["batch normalisation"] * batch_norm + ["dropout"] * dropout


def best_checkpoint(trainer: L.Trainer) -> str | None:
    """Return the path of the best checkpoint; None where no callback keeps one."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return next((callback.best_model_path for callback in callbacks if callback.monitor), "") or None


def time_left(trainer: L.Trainer) -> TimeLeft:
    """Return the callback that estimates the time left."""
    callbacks: list = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return next(callback for callback in callbacks if isinstance(callback, TimeLeft))


def throughput(trainer: L.Trainer) -> Throughput:
    """Return the callback that measures images per second and the wait for data."""
    callbacks: list = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return next(callback for callback in callbacks if isinstance(callback, Throughput))


def early_stop_reason(trainer: L.Trainer) -> dict[str, Any] | None:
    """Return why the run stopped early; None where it did not."""
    callbacks: list = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return next(callback for callback in callbacks if isinstance(callback, StopReason)).reason


def report_finished(cfg: DictConfig, start: ResumePoint, early: Any, folder: Path) -> None:
    """Report that a finished run is left as it is. ``early`` is its recorded reason for stopping early, unchecked."""
    scores = display_path(folder / "metrics.json")
    log_info(f"{display_path(folder)} is finished, so nothing is changed there. Its scores are in {scores}")
    report_nothing_left(cfg, start, early if is_reason(early) else None)


def report_nothing_left(cfg: DictConfig, start: ResumePoint, early: dict[str, Any] | None) -> None:
    """Report that a resumed run has no step left, and how to train further."""
    if early:
        log_info(f"Nothing is left to train. {describe_early_stop(early)}")
        return
    limits = {f"trainer.{key}": cfg.trainer.get(key) for key in ("max_steps", "max_epochs")}
    reached = " and ".join(f"{key}={limit}" for key, limit in limits.items() if limit not in (None, -1))
    log_info(
        f"Nothing is left to train. The run is at step {start.steps}, its last step ({reached}). Raise that limit to"
        " train further"
    )


def describe_early_stop(early: dict[str, Any]) -> str:
    """Describe why a run stopped before its last step, and how to train further."""
    stopped = f"The run stopped early at step {early['step']}"
    if "monitor" not in early:
        return f"{stopped}: a callback or trainer.max_time ended it"
    value = "none" if early["best"] is None else f"{early['best']:.4f}, at step {early['best_step']}"
    best = f"the best value of {early['monitor']} is {value}"
    hint = "To train further, resume with callbacks.early_stopping.enabled=false"
    if not early["out_of_patience"]:
        return f"{stopped}: {early['monitor']} was not finite or crossed a threshold, and {best}. {hint}"
    return (
        f"{stopped}: {best}, and callbacks.early_stopping.patience={early['patience']} validations did not improve it."
        f" {hint} or with a larger patience"
    )


def report_results(
    scores: ScoredRun,
    segmenter: Segmenter,
    data: DataModule,
    training: dict[str, float],
    context: RunContext,
    scored: Path | None,
) -> None:
    """Print the last lines: scores, cost, the run's folder and how to predict."""
    log_info(score_table(scores.scores, tuple(segmenter.classes)))
    log_info(compare_with_estimate(training))
    minutes = f"{training['training_minutes']:.1f} min"
    log_info(describe_scores(scores, segmenter.scored_as, data))
    log_info(f"Trained {segmenter.trainer.global_step} steps in {minutes}. Run folder: {display_path(context.folder)}")
    if scored:
        log_info(f"Next: {how_to_predict(display_path(scored), segmenter.record['model'], context)}")


def how_to_predict(checkpoint: str, model: Settings, context: RunContext) -> str:
    """Return the command, or in Python the call, that predicts images with a checkpoint."""
    packages = trusted_packages(model)
    if context.from_shell:
        trust = f" trust=[{','.join(packages)}]" if packages else ""
        return f"fcnlab predict {shell_override('checkpoint', checkpoint)}{trust} input=FILE|FOLDER output=FOLDER"
    trust = f", trust={packages}" if packages else ""
    return f"fcnlab.load({checkpoint!r}{trust}).predict(FILE)"
