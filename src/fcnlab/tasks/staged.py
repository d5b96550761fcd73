"""A training in stages, each from the scored checkpoint of the one before: FCN-32s, then 16s, then 8s.

Each stage is a run of its own, in a process and a folder of its own (``1-fcn32s/``, ...).
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fcnlab.config.overrides import config_dir, format_override, plain_overrides, searchpath, shell_override
from fcnlab.config.validation import ConfigError, check_requirements, validate_config
from fcnlab.errors import UserError
from fcnlab.files.reading import read_json_facts
from fcnlab.files.writing import atomic_write
from fcnlab.messages import log_info, log_warning
from fcnlab.runs.run_folder import RunFolder
from fcnlab.runs.run_record import RunRecord, record_run
from fcnlab.runs.selection import recorded_selection
from fcnlab.signals import STOPPING, Interrupted, StopSignals
from fcnlab.sweeps.manifest import JobsLock
from fcnlab.sweeps.processes import describe_removed_environment, shared_sweep_environment, start_verb, wait_for_process
from fcnlab.sweeps.stages import check_settings_reach_stages, stage_overrides
from fcnlab.sweeps.sweep_table import selection_score
from fcnlab.training.checkpoints import read_checkpoint
from fcnlab.training.loggers import check_output_paths
from fcnlab.training.segments import check_finished
from fcnlab.training.trainer import check_scored, enabled_members


@dataclass(frozen=True)
class Stage:
    """One run of several: an experiment, and the folder that it leaves."""

    experiment: str
    folder: Path

    @property
    def finished(self) -> bool:
        return RunRecord(self.folder).facts.get("status") == "finished"

    @property
    def checkpoint(self) -> Path:
        """What the next stage starts from: the one that was scored, or the last where that was not kept, or damaged."""
        selection = recorded_selection(read_json_facts(self.folder, "metrics.json"))
        scored = "best" if selection is None else selection["checkpoint"]
        path, last = (self.folder / "checkpoints" / f"{name}.ckpt" for name in (scored, "last"))
        return path if not self.finished or _is_usable(path) else last

    @property
    def miou(self) -> float | None:
        return selection_score(self.folder)


def _is_usable(path: Path) -> bool:
    """Whether a finished stage's checkpoint can be started from; reported where one is there and cannot."""
    if not path.exists():
        return False
    try:
        read_checkpoint(path)
    except UserError as error:
        log_warning(f"{error} The next stage starts from last.ckpt")
        return False
    return True


def train_in_stages(cfg: DictConfig, run: RunFolder) -> float | None:
    """Run the stages that are not finished yet; the last one's scores are the whole run's.

    Raises
    ------
    UserError
        A stage's settings cannot work, which is told before the first begins; a stage failed; the folder holds such a
        run already, and it was not asked to go on; another process works there.
    """
    folder = run.path
    stages = [
        Stage(experiment, folder / f"{place}-{Path(experiment).name}")
        for place, experiment in enumerate(cfg.stages, start=1)
    ]
    _check(cfg, stages)
    ignored = describe_removed_environment()
    if ignored and "wandb" in cfg.logger:
        log_warning(ignored)
    with StopSignals() as signals, record_run(cfg, run, RunRecord(folder)) as begin:
        begin()
        lock = JobsLock(folder)
        lock.wait()
        for place, stage in enumerate(stages):
            if stage.finished:
                log_info(f"Stage {stage.folder.name} is finished")
                continue
            log_info(f"Stage {stage.folder.name}: {place + 1} of {len(stages)}")
            words = _words(cfg, stages, place)
            part = start_verb(
                "train", words, config_dir(HydraConfig.get()), shared_sweep_environment(), held=[lock.inherited]
            )
            code = wait_for_process(part)
            _stop_unless_finished(stage, code, signals)
        _hand_up(stages[-1].folder, folder)
    for stage in stages:
        log_info(f"{stage.folder.name:<24} val mIoU {'unknown' if stage.miou is None else f'{100 * stage.miou:.2f} %'}")
    log_info(f"The run: {folder}")
    return stages[-1].miou


def _check(cfg: DictConfig, stages: list[Stage]) -> None:
    """All that can be known of every stage before the first begins."""
    if cfg.checkpoint not in (None, "none", "auto", "last"):
        raise UserError(
            f"checkpoint={cfg.checkpoint} is one stage's: a staged run goes on by checkpoint=auto, and starts from a"
            " checkpoint by model.weights=PATH"
        )
    begun = [stage for stage in stages if stage.folder.is_dir()]
    whole = stages[0].folder.parent
    for stage in stages:
        if stage.folder.is_symlink():
            raise UserError(f"{stage.folder} is a link, and no stage is written through it: name another hydra.run.dir")
    if begun and cfg.checkpoint in (None, "none"):
        raise UserError(
            f"{whole} holds a run already: go on with it by checkpoint=auto, or leave hydra.run.dir to a new"
        )
    if not begun and any((whole / name).exists() for name in ("metrics.json", "confusions.npz", "checkpoints")):
        raise UserError(
            f"{whole} holds another run, whose scores would be replaced: leave hydra.run.dir to a new folder"
        )
    if not begun and cfg.checkpoint == "last":
        raise UserError(f"checkpoint=last: there is no stage in {whole}: add hydra.run.dir=FOLDER")
    where = searchpath(HydraConfig.get())
    for place, stage in enumerate(stages):
        old = _recorded(cfg, stage)
        if old and not (old / "run.json").is_file():
            raise UserError(f"from_run={cfg.from_run} holds no {old.name}: that run did not come so far")
        try:
            words = [f"experiment={stage.experiment}", *_settings(cfg, stages, place)]
            composed = compose("train", [*where, *words])
            check_requirements(composed, words)
            validate_config(composed)
            check_scored(composed)
            check_output_paths(composed)
            if stage.finished and not cfg.from_run:
                check_finished(composed, stage.folder)
        except UserError as error:
            raise ConfigError(f"stage {stage.folder.name}: {error}") from error
    check_settings_reach_stages(cfg, plain_overrides(HydraConfig.get().overrides.task), where)


def _words(cfg: DictConfig, stages: list[Stage], place: int) -> list[str]:
    """What to type for a stage's run."""
    stage = stages[place]
    old = _recorded(cfg, stage)
    words = [
        format_override("from_run", old) if old else f"experiment={stage.experiment}",
        *_settings(cfg, stages, place),
    ]
    begun = (stage.folder / "checkpoints").is_dir()
    return [
        *searchpath(HydraConfig.get()),
        *words,
        *_number(HydraConfig.get()),
        format_override("hydra.run.dir", stage.folder),
        *(["checkpoint=auto"] if begun else []),
    ]


def _number(hydra: Any) -> list[str]:
    """The number that ``${hydra:job.num}`` means; a run that is no job of a sweep has none."""
    number = OmegaConf.select(hydra, "job.num")
    return [] if number is None else [f"hydra.job.num={number}"]


def _recorded(cfg: DictConfig, stage: Stage) -> Path | None:
    """The same stage of the run that ``from_run`` repeats."""
    return Path(cfg.from_run) / stage.folder.name if cfg.from_run else None


def _settings(cfg: DictConfig, stages: list[Stage], place: int) -> list[str]:
    """What was typed for the whole, and the weights of the stage before."""
    settings = stage_overrides(plain_overrides(HydraConfig.get().overrides.task))
    if place:
        settings.append(format_override("model.weights", stages[place - 1].checkpoint))
        settings.append(
            "model.reset_heads=false"
        )  # for other classes, the first stage's weights alone lose their heads
    if cfg.sweep.folder:
        settings.append(format_override("sweep.name", f"{cfg.sweep.name} {stages[place].folder.name}".strip()))
    elif (
        "wandb" in enabled_members(cfg.logger)
        and cfg.logger.wandb.group is None
        and "WANDB_RUN_GROUP" not in os.environ
    ):
        settings.append(format_override("logger.wandb.group", stages[0].folder.parent.name))
    return settings


def _stop_unless_finished(stage: Stage, code: int, signals: StopSignals) -> None:
    whole = stage.folder.parent
    how = f"Go on with the same command and checkpoint=auto {shell_override('hydra.run.dir', whole)}"
    stopped = signals.asked or (code - 128 if code - 128 in STOPPING else None)
    if stopped:
        log_info(f"Stopped in stage {stage.folder.name}. {how}")
        stop = Interrupted(stopped)
        stop.reported = True
        raise stop
    if code:
        raise UserError(f"stage {stage.folder.name} ended with code {code}: see {stage.folder / 'train.log'}. {how}")


def _hand_up(last: Path, whole: Path) -> None:
    """What others read of a run: the last stage's scores are the whole's."""
    for name in ("confusions.npz", "metrics.json"):
        with atomic_write(whole / name) as part:
            shutil.copyfile(last / name, part)
