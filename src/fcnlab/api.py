# pyright: strict
"""Commands for Python and notebooks: ``fcnlab.compose``, ``fcnlab.train`` and ``fcnlab.compare``.

They use no global state of Hydra: they work in a notebook, in any thread, and inside another Hydra app.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from fcnlab.config.composition import compose_command, is_completed_later, without_hydra
from fcnlab.config.hydra_values import fill_in_hydra_values, hydra_values_of
from fcnlab.config.overrides import (
    absolute_searchpath,
    format_mapping,
    format_override,
    format_value,
    searchpath_folders,
    shell_join,
)
from fcnlab.config.recorded_overrides import apply_from_run
from fcnlab.config.run_context import RunContext, run_context
from fcnlab.config.typed_overrides import check_experiment, check_grammar, check_groups, without_null
from fcnlab.config.validation import validate_config
from fcnlab.errors import CHDIR_REFUSED, UserError, unwritable_reason
from fcnlab.escaping import escape_log_record
from fcnlab.files.reading import display_path, read_json_facts
from fcnlab.hydra_registration import register_plugins, register_schemas
from fcnlab.metrics.scores import SCORES, Scores
from fcnlab.runs.run_folder import RunFolder
from fcnlab.runs.selection import recorded_selection
from fcnlab.signals import Interrupted
from fcnlab.verbs import VERBS

if TYPE_CHECKING:
    import torch

    from fcnlab.comparison.report import ComparisonReport
    from fcnlab.evaluation.trained_model import TrainedModel

_training = threading.Lock()  # seeds, and torch's flags, are those of the whole process


def compose(overrides: Sequence[str] = (), verb: str = "train", config_dir: str | Path | None = None) -> DictConfig:
    """Return the configuration of a command, checked as the command checks it.

    ``hydra.utils.instantiate`` builds objects from its parts: ``instantiate(cfg.model)`` returns the network,
    ``instantiate(cfg.data)`` the DataModule. Nothing global is changed, and no folder is created.

    Parameters
    ----------
    overrides
        As they are typed behind ``fcnlab VERB``, such as ``["model=fcn16s", "optim.lr=0.001"]``.
    verb
        train, eval, predict, doctor, compare or bench.
    config_dir
        A folder with your own config files, as with ``--config-dir``.

    Raises
    ------
    UserError
        Overrides are invalid; the message lists all mistakes.
    """
    cfg = _composed(verb, _checked_words(verb, overrides, config_dir), config_dir)
    task = without_hydra(cfg)
    with hydra_values_of(cfg):
        if not is_completed_later(task):
            validate_config(task)
        fill_in_hydra_values(task)
    return task


@dataclass(frozen=True)
class TrainedRun:
    """A finished training run.

    Attributes
    ----------
    folder
        The run's folder, with all files of ``fcnlab train``.
    checkpoint
        The scored checkpoint, best.ckpt or last.ckpt.
    scores
        Scores in 0..1 of this checkpoint on the images of ``data.test_list``.
    classes
        Names of the classes, in the order of ``scores.iou``.
    val_miou
        The validation mIoU of the checkpoint, in 0..1; None if it was not validated.
    """

    folder: Path
    checkpoint: Path
    scores: Scores
    classes: tuple[str, ...]
    val_miou: float | None

    def __repr__(self) -> str:
        return f"<TrainedRun: {display_path(self.folder)}, {self.checkpoint.name}, mIoU {100 * self.scores.miou:.2f} %>"

    def load(self, device: "str | torch.device | None" = None) -> "TrainedModel":
        """Return the model of the scored checkpoint; see :func:`fcnlab.load`."""
        from fcnlab.evaluation.trained_model import load

        return load(self.checkpoint, device)


def train(
    overrides: Sequence[str] = (), folder: str | Path | None = None, config_dir: str | Path | None = None
) -> TrainedRun:
    """Train a network and score its best or last checkpoint, as ``fcnlab train`` does, in this process.

    The run's folder has the same files, and ``command`` in its run.json repeats the run in a shell. On Ctrl-C, or when
    a notebook's cell is interrupted, the run finishes its step, saves last.ckpt and raises KeyboardInterrupt; the same
    call with ``"checkpoint=last"`` and ``folder=`` resumes it. This works in the main thread only, where Python handles
    signals.

    During the run, messages are logged by the logger "fcnlab" to standard output (unless the root logger has handlers)
    and to train.log; stop signals have handlers; seeds, torch's flags for determinism, cuDNN and TF32, the number of
    threads, filters of warnings, Lightning's loggers and environment variables are those of the run. All of this is
    restored afterwards. Importing Lightning and torch for the first time is not undone.

    Parameters
    ----------
    overrides
        As they are typed behind ``fcnlab train``, such as ``["model=fcn16s", "seed=2"]``.
    folder
        The run's folder. None: ``outputs/train/DATE/TIME``.
    config_dir
        A folder with your own config files, as with ``--config-dir``.

    Raises
    ------
    UserError
        Settings are invalid, start a sweep or need several processes; another run is being trained in this process.
    KeyboardInterrupt
        The run was interrupted.
    """
    began = time.time()
    words = _checked_words("train", overrides, config_dir)
    cfg = _composed("train", words, config_dir, folder)
    if cfg.hydra.job.chdir:
        raise UserError(CHDIR_REFUSED)
    _check_single_process(cfg, words)
    context = run_context(OmegaConf.masked_copy(cfg, "hydra"), from_shell=False)
    if reason := unwritable_reason(context.folder):
        raise UserError(f"folder={context.folder}: {reason}. Choose another folder")
    if not _training.acquire(blocking=False):
        raise UserError("another fcnlab.train is running in this process. Wait for it, or start runs in a shell")
    try:
        _train(cfg, context, began)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise UserError(str(error.__cause__)) from error
        raise
    except Interrupted as stop:
        if stop.signal != signal.SIGINT:
            raise
        raise KeyboardInterrupt(_interruption(context, cfg.stages)) from None
    finally:
        _training.release()
    return _trained_run(context.folder, cfg.stages)


def _train(cfg: DictConfig, context: RunContext, began: float) -> None:
    from fcnlab.tasks.train import train as train_verb  # not inside the restored state: imports filter warnings
    from fcnlab.training.process_state import process_state_restored

    context.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(process_state_restored())
        os.environ.update(cfg.hydra.job.env_set)
        stack.enter_context(hydra_values_of(cfg))
        stack.enter_context(_logged(context.folder / "train.log"))
        run = stack.enter_context(RunFolder(context, began))
        train_verb(without_hydra(cfg), run)


def compare(
    folders: "str | Path | TrainedRun | Sequence[str | Path | TrainedRun]",
    baseline: str | None = None,
    *,
    resamples: int | None = None,
    confidence: float = 0.95,
    equivalence: float | None = None,
    split_by: Sequence[str] = (),
    merge_over: Sequence[str] = (),
    names: Mapping[str, str] | str | Path | None = None,
) -> "ComparisonReport":
    """Compare the runs in these folders and their subfolders, as ``fcnlab compare`` does.

    Parameters
    ----------
    folders
        One folder, or several; or what :func:`train` returned.
    baseline
        The name of a group, or an option of it such as "fcn8s", with which the others are compared. None: up to five
        groups are compared with each other, more groups with the group of the first run.
    resamples
        Resamples of the bootstrap over images. None: the default of ``fcnlab compare``.
    confidence
        Level of the intervals, in 0..1.
    equivalence
        The largest difference in mIoU that does not matter, in points. None: equivalence is not tested.
    split_by
        Facts that make a group of their own, such as ["commit", "torch", "device"].
    merge_over
        Settings that do not, such as ["data.root"].
    names
        Names for groups, by what ``baseline`` takes, too: {"fcn8s": "FCN-8s"}; or a YAML file with such lines.

    Raises
    ------
    UserError
        A folder does not exist, has no finished run, or an argument is invalid.
    """
    from fcnlab.tasks.compare import comparison_report

    several = [folders] if isinstance(folders, str | Path | TrainedRun) else folders
    paths = [str(each.folder if isinstance(each, TrainedRun) else each) for each in several]
    lists = {"runs": paths, "split_by": split_by, "merge_over": merge_over}
    overrides = [f"{key}=[{','.join(map(format_value, values))}]" for key, values in lists.items() if values]
    overrides += [] if baseline is None else [format_override("baseline", baseline)]
    overrides += [] if resamples is None else [f"resamples={resamples}"]
    overrides.append(f"confidence={confidence}")
    overrides += [] if equivalence is None else [f"equivalence={equivalence}"]
    cfg = compose(overrides, "compare")
    if names is not None:
        overrides.append(f"names={format_mapping(names) if isinstance(names, Mapping) else format_value(names)}")
    command = shell_join(["fcnlab", "compare", *overrides])
    return comparison_report(cfg, command, "folders", names if isinstance(names, Mapping | None) else str(names))


def _checked_words(verb: str, overrides: Sequence[str], config_dir: str | Path | None) -> list[str]:
    """Return the overrides of a single run; those of ``from_run=FOLDER`` are added."""
    if verb not in VERBS:
        raise UserError(f"verb={verb!r} is not a command of fcnlab: choose from {', '.join(VERBS)}")
    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"config_dir={config_dir} is not a folder: choose a folder with your own config files")
    typed = [overrides] if isinstance(overrides, str) else list(overrides)
    options = [word for word in typed if word.startswith("-")]
    if options:
        raise UserError(f"{options[0]} is an option of the command line: give overrides only, such as 'seed=2'")
    words = [absolute_searchpath(word) for word in without_null(verb, typed)]
    check_grammar(words, is_sweep=False)
    check_groups(verb, words)
    check_experiment(verb, words)
    _refuse_sweep(verb, words)
    if verb == "train":
        argv = ["fcnlab", *([f"--config-dir={config_dir}"] if config_dir is not None else []), *words]
        apply_from_run(argv, verb)
        words = [word for word in argv[1:] if not word.startswith("--config-dir=")]
    return words


def _refuse_sweep(verb: str, words: Sequence[str]) -> None:
    for override in OverridesParser.create().parse_overrides(list(words)):
        if override.is_sweep_override() or override.key_or_group in ("sweep.resume", "sweep.extend", "sweep.confirm"):
            line = shell_join(["fcnlab", verb, "-m", *words])
            raise UserError(
                f"{override.input_line} starts a sweep, and this is a single run. Start the sweep in a shell: {line}"
            )


def _composed(
    verb: str, words: Sequence[str], config_dir: str | Path | None, folder: str | Path | None = None
) -> DictConfig:
    """Return the configuration with its ``hydra`` node, whose output folder is set as for a run."""
    register_schemas()
    typed = [] if config_dir is None else [Path(config_dir)]
    register_plugins([*typed, *searchpath_folders(words)])
    place = [] if folder is None else [format_override("hydra.run.dir", folder)]
    cfg = compose_command(verb, [*words, *place], None if config_dir is None else str(Path(config_dir).absolute()))
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.runtime.output_dir = os.path.abspath(str(cfg.hydra.run.dir))  # noqa: PTH100  (without ..)
    return cfg


def _check_single_process(cfg: DictConfig, words: Sequence[str]) -> None:
    """Refuse several devices: each further process would run the whole program of the caller again."""
    from fcnlab.training.hardware import device_count

    if not cfg.stages and device_count(cfg.trainer) * int(cfg.trainer.get("num_nodes", 1)) > 1:
        raise UserError(
            f"trainer.devices={cfg.trainer.devices} needs several processes, and fcnlab.train runs in this one. Set"
            f" trainer.devices=1, or start the run in a shell: {shell_join(['fcnlab', 'train', *words])}"
        )


@contextmanager
def _logged(path: Path) -> Generator[None]:
    """Log fcnlab's messages to a file, and to standard output unless the caller's root logger has handlers."""
    root, logger = logging.getLogger(), logging.getLogger("fcnlab")
    file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace", delay=True)
    handlers: list[logging.Handler] = [file, *([] if root.handlers else [logging.StreamHandler(sys.stdout)])]
    level = logger.level
    for handler in handlers:
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.addFilter(escape_log_record)
    try:
        yield
    finally:
        logger.removeFilter(escape_log_record)
        logger.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def _interruption(context: RunContext, stages: Sequence[str]) -> str:
    if stages:
        return f"the run was interrupted. {context.how_to_resume('auto')}"
    if not (context.folder / "checkpoints" / "last.ckpt").is_file():
        return "the run was interrupted before its first checkpoint"
    return f"the run was interrupted. {context.how_to_resume('last')}"


def _trained_run(folder: Path, stages: Sequence[str]) -> TrainedRun:
    record = read_json_facts(folder, "metrics.json")
    selection = recorded_selection(record)
    run = folder / f"{len(stages)}-{Path(stages[-1]).name}" if stages else folder
    best, last = (run / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    iou: dict[str, float | None] = record["iou"]
    values: dict[str, Any] = {name: _number(record[name]) for name in SCORES}
    return TrainedRun(
        folder=folder,
        checkpoint=best if (selection is None or selection["checkpoint"] == "best") and best.is_file() else last,
        scores=Scores(**values, iou=np.array([_number(value) for value in iou.values()])),
        classes=tuple(iou),
        val_miou=None if selection is None else selection["val_miou"],
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
