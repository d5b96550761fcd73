"""Train in stages, each from the scored checkpoint of the previous one: FCN-32s, then FCN-16s, then FCN-8s.

Each stage is a run of its own, in its own process and folder (``1-fcn32s/``, ...).
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from filecmp import cmp
from pathlib import Path

from omegaconf import DictConfig

from fcnlab.config.composition import compose_command, without_hydra
from fcnlab.config.overrides import format_override
from fcnlab.config.run_context import RunContext
from fcnlab.config.validation import ConfigError, check_requirements, validate_config
from fcnlab.errors import UserError
from fcnlab.files.reading import display_path, read_json_facts
from fcnlab.files.writing import atomic_write
from fcnlab.messages import log_info, log_warning
from fcnlab.runs.run_folder import RunFolder, has_scores
from fcnlab.runs.run_record import RunRecord, record_run
from fcnlab.runs.selection import recorded_selection
from fcnlab.signals import STOPPING, Interrupted, StopSignals
from fcnlab.sweeps.manifest import JobsLock
from fcnlab.sweeps.processes import describe_removed_environment, shared_sweep_environment, start_verb, wait_for_process
from fcnlab.sweeps.stages import check_settings_reach_stages, stage_overrides
from fcnlab.sweeps.sweep_table import selection_score
from fcnlab.training.checkpoints import read_checkpoint
from fcnlab.training.finished_run import has_free_changes
from fcnlab.training.segments import check_finished
from fcnlab.training.trainer import check_output_paths, check_scored, members

SCORE_FILES = ("confusions.npz", "metrics.json")


@dataclass(frozen=True)
class Stage:
    """One stage: an experiment, and the folder of its run."""

    experiment: str
    folder: Path

    @property
    def finished(self) -> bool:
        return RunRecord(self.folder).facts.get("status") == "finished" and has_scores(self.folder)

    @property
    def checkpoint(self) -> Path:
        """The checkpoint from which the next stage starts: the scored one, or the last one if that is unusable."""
        selection = recorded_selection(read_json_facts(self.folder, "metrics.json"))
        scored = "best" if selection is None else selection["checkpoint"]
        path, last = (self.folder / "checkpoints" / f"{name}.ckpt" for name in (scored, "last"))
        return path if not self.finished or _is_usable(path) else last

    @property
    def miou(self) -> float | None:
        return selection_score(self.folder)


def _is_usable(path: Path) -> bool:
    """Return whether the next stage can start from a checkpoint; warn where it exists but is damaged."""
    if not path.exists():
        return False
    try:
        read_checkpoint(path)
    except UserError as error:
        log_warning(f"{error} The next stage starts from last.ckpt instead")
        return False
    return True


def train_in_stages(cfg: DictConfig, run: RunFolder) -> float | None:
    """Run the stages that are not finished yet and return the validation mIoU of the last one.

    As in a plain run, a finished stage is scored again if settings that no weight depends on have changed, such as a
    logger. Otherwise a run whose stages are all finished keeps its record.

    Raises
    ------
    UserError
        The settings of a stage are invalid (checked before the first begins); a stage failed; the folder already
        contains such a run, which was not to be resumed; or another process uses the folder.
    """
    folder = run.path
    stages = [
        Stage(experiment, folder / f"{number}-{Path(experiment).name}")
        for number, experiment in enumerate(cfg.stages, start=1)
    ]
    to_run = _check(cfg, stages, run.context)
    record = RunRecord(folder)
    if record.facts.get("status") == "finished" and not to_run and _have_scores(stages[-1].folder, folder):
        scores = display_path(folder / "metrics.json")
        log_info(
            f"All stages in {display_path(folder)} are finished, so nothing is changed. The scores are in {scores}"
        )
        return stages[-1].miou
    ignored = describe_removed_environment()
    if ignored and "wandb" in cfg.logger:
        log_warning(ignored)
    with StopSignals() as signals, record_run(cfg, run, record) as begin:
        begin()
        lock = JobsLock(folder)
        lock.wait()
        for index, stage in enumerate(stages):
            if stage not in to_run:
                log_info(f"Stage {stage.folder.name} is finished already")
                continue
            log_info(f"Stage {stage.folder.name} ({index + 1} of {len(stages)})")
            overrides = _overrides(cfg, stages, index, run.context)
            process = start_verb(
                "train", overrides, run.context.config_dir, shared_sweep_environment(), held=[lock.inherited]
            )
            code = wait_for_process(process)
            _stop_unless_finished(stage, code, signals, run.context)
        _copy_scores(stages[-1].folder, folder)
    for stage in stages:
        log_info(f"{stage.folder.name:<24} val mIoU {'unknown' if stage.miou is None else f'{100 * stage.miou:.2f} %'}")
    log_info(f"Run folder: {display_path(folder)}")
    return stages[-1].miou


def _check(cfg: DictConfig, stages: list[Stage], context: RunContext) -> list[Stage]:
    """Check the settings and the folders of all stages before the first begins; return the stages to run."""
    if cfg.checkpoint not in (None, "none", "auto", "last"):
        raise UserError(
            f"checkpoint={cfg.checkpoint} is not valid for a staged run: resume it with checkpoint=auto, or start from"
            " a checkpoint with model.weights=PATH"
        )
    begun = [stage for stage in stages if stage.folder.is_dir()]
    whole = stages[0].folder.parent
    for stage in stages:
        if stage.folder.is_symlink():
            raise UserError(
                f"{stage.folder} is a symbolic link, which a stage must not be: choose another {context.folder_setting}"
            )
    if begun and cfg.checkpoint in (None, "none"):
        raise UserError(
            f"{whole} already contains a run: resume it with checkpoint=auto, or set"
            f" {context.folder_setting} to a new folder"
        )
    if not begun and any((whole / name).exists() for name in ("metrics.json", "confusions.npz", "checkpoints")):
        raise UserError(
            f"{whole} contains another run, whose scores would be replaced: set"
            f" {context.folder_setting} to a new folder"
        )
    if not begun and cfg.checkpoint == "last":
        raise UserError(f"checkpoint=last: {whole} contains no stage: add {context.folder_setting}=FOLDER")
    to_run = []
    for index, stage in enumerate(stages):
        recorded = _recorded(cfg, stage)
        if recorded and not (recorded / "run.json").is_file():
            raise UserError(
                f"from_run={cfg.from_run} does not contain {recorded.name}: that run ended before this stage"
            )
        try:
            overrides = [f"experiment={stage.experiment}", *_settings(cfg, stages, index, context.overrides)]
            command = compose_command("train", [*context.searchpath, *overrides], context.config_dir)
            composed = without_hydra(command)
            check_requirements(composed, overrides)
            validate_config(composed)
            check_scored(composed)
            check_output_paths(composed, context)
            if stage.finished and not cfg.from_run:
                check_finished(composed, stage.folder)
            if not stage.finished or has_free_changes(composed, stage.folder):
                to_run.append(stage)
        except UserError as error:
            raise ConfigError(f"stage {stage.folder.name}: {error}") from error
    check_settings_reach_stages(cfg, context.overrides, context.searchpath, context.config_dir)
    return to_run


def _overrides(cfg: DictConfig, stages: list[Stage], index: int, context: RunContext) -> list[str]:
    """Return the overrides of a stage's run."""
    stage = stages[index]
    recorded = _recorded(cfg, stage)
    overrides = [
        format_override("from_run", recorded) if recorded else f"experiment={stage.experiment}",
        *_settings(cfg, stages, index, context.overrides),
    ]
    begun = (stage.folder / "checkpoints").is_dir()
    return [
        *context.searchpath,
        *overrides,
        *([] if context.job_number is None else [f"hydra.job.num={context.job_number}"]),  # ${hydra:job.num}
        format_override("hydra.run.dir", stage.folder),
        *(["checkpoint=auto"] if begun else []),
    ]


def _recorded(cfg: DictConfig, stage: Stage) -> Path | None:
    """Return the folder of the same stage in the run that ``from_run`` repeats."""
    return Path(cfg.from_run) / stage.folder.name if cfg.from_run else None


def _settings(cfg: DictConfig, stages: list[Stage], index: int, overrides: Sequence[str]) -> list[str]:
    """Return the overrides of the whole run, and the weights of the previous stage."""
    settings = stage_overrides(overrides)
    if index:
        settings.append(format_override("model.weights", stages[index - 1].checkpoint))
        settings.append("model.reset_heads=false")  # heads are reset for other classes in the first stage only
    if cfg.sweep.folder:
        settings.append(format_override("sweep.name", f"{cfg.sweep.name} {stages[index].folder.name}".strip()))
    elif "wandb" in members(cfg.logger) and cfg.logger.wandb.group is None and "WANDB_RUN_GROUP" not in os.environ:
        settings.append(format_override("logger.wandb.group", stages[0].folder.parent.name))
    return settings


def _stop_unless_finished(stage: Stage, code: int, signals: StopSignals, context: RunContext) -> None:
    hint = context.how_to_resume("auto")
    stopped = signals.asked or (code - 128 if code - 128 in STOPPING else None)
    if stopped:
        log_info(f"Stopped in stage {stage.folder.name}. {hint}")
        stop = Interrupted(stopped)
        stop.reported = True
        raise stop
    if code:
        raise UserError(f"stage {stage.folder.name} failed with code {code}: see {stage.folder / 'train.log'}. {hint}")


def _copy_scores(last: Path, whole: Path) -> None:
    """Copy the scores of the last stage to the folder of the whole run."""
    for name in SCORE_FILES:
        with atomic_write(whole / name) as part:
            shutil.copyfile(last / name, part)


def _have_scores(last: Path, whole: Path) -> bool:
    """Return whether the whole run's folder has the scores of its last stage."""
    return all((whole / name).is_file() and cmp(last / name, whole / name, shallow=False) for name in SCORE_FILES)
