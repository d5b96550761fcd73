"""Every job's configuration is composed and checked before the first one starts."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import pairwise
from pathlib import Path, PurePath

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from fcnlab.config.overrides import (
    command_options,
    plain_overrides,
    searchpath,
)
from fcnlab.config.validation import (
    ConfigError,
    EnvironmentVariableNotSet,
    check_requirements,
    validate_config,
)
from fcnlab.errors import CHDIR_REFUSED, UserError, unusable_file_message
from fcnlab.escaping import escape_terminal
from fcnlab.files.reading import display_path
from fcnlab.sweeps.job_names import TELL_APART
from fcnlab.sweeps.job_overrides import LONGEST_FILE, OF_ONE_SWEEP, OF_THE_FOLDER, user_overrides
from fcnlab.sweeps.stages import check_nothing_lost

COMPOSED = ".hydra/config.yaml"  # there, too: what it was composed of
ALONE = {  # trainer settings of which one process is sure; the last of each is told
    "devices": ("1", 1),
    "strategy": (None, "single_device", "auto"),
    "num_nodes": (None, 1),
}


def check_contains_no_run(folder: Path) -> None:
    """Refuse to put the jobs of a sweep among the files of a run."""
    found = [name for name in ("run.json", ".hydra", "checkpoints") if os.path.lexists(folder / name)]
    if found:
        raise UserError(f"{display_path(folder)} holds {found[0]} of a run: leave hydra.sweep.dir to a new folder")


def check_single_process(configs: Mapping[int, DictConfig]) -> None:
    """Raise a UserError where a job would start processes: Lightning does that with the words of the whole sweep."""
    for number, cfg in iter_job_configs(configs):
        for key, alone in ALONE.items():  # doctor and compare have no trainer
            if "trainer" in cfg and (value := cfg.trainer.get(key)) not in alone:
                raise UserError(
                    f"job {number} has trainer.{key}={value}, and hydra/launcher=basic runs all jobs in one process."
                    " Others that a job started would each run the whole sweep, and the next job would find the"
                    " process group of the last and train on a part of the data without a word. Leave"
                    f" hydra/launcher=basic out, or set trainer.{key}={alone[-1]}"
                )


def compose_jobs(
    context: HydraContext, config: DictConfig, jobs: Sequence[Sequence[str]], first: int
) -> dict[int, DictConfig]:
    """The configuration of each job by its number, as it would have it in a run of its own.

    Raises
    ------
    UserError
        Jobs set what is not there; of each such setting the nearest that is, and which jobs they are.
    """
    configs, wrong = {}, JobErrors()
    for number, words in enumerate(jobs, start=first):
        with wrong.of_job(number):
            configs[number] = cfg = context.config_loader.load_sweep_config(config, user_overrides(words))
            cfg.hydra.job.id = cfg.hydra.job.num = number
            HydraConfig.instance().set_config(cfg)
            with read_write(cfg.hydra), open_dict(cfg.hydra):
                cfg.hydra.sweep.subdir = str(cfg.hydra.sweep.subdir)  # by this job's number, whoever asks later
                cfg.hydra.runtime.output_dir = str(Path(config.hydra.sweep.dir).absolute() / cfg.hydra.sweep.subdir)
    wrong.tell()
    check_folders({number: cfg.hydra.sweep.subdir for number, cfg in configs.items()})
    return configs


def check_folders(subdirs: Mapping[int, str]) -> None:
    """Raise a UserError unless each job has a folder of its own inside the sweep's, where nothing else is put."""
    for number, subdir in subdirs.items():
        parts = PurePath(subdir).parts
        if not parts or ".." in parts or PurePath(subdir).is_absolute():
            raise UserError(f"job {number}: hydra.sweep.subdir={subdir} is no folder inside the sweep's{TELL_APART}")
        if parts[0] in OF_THE_FOLDER or parts[0].startswith("."):
            raise UserError(f"job {number}: hydra.sweep.subdir={subdir} is where a sweep keeps its own{TELL_APART}")
        if max(len(os.fsencode(part)) for part in parts) > LONGEST_FILE:
            raise UserError(f"job {number}: hydra.sweep.subdir={subdir} has a part of more than 255 bytes{TELL_APART}")
    in_order = sorted((PurePath(subdir).parts, number) for number, subdir in subdirs.items())
    for (outer, first), (inner, second) in pairwise(in_order):  # what is in a folder comes right behind it
        if inner[: len(outer)] == outer:
            both = sorted((first, second))
            raise UserError(
                f"jobs {both[0]} and {both[1]} would both work in {PurePath(*outer)} of the sweep's folder{TELL_APART}"
            )


class JobErrors:
    """What is wrong with the jobs of a sweep, each mistake once, with the jobs that have it."""

    def __init__(self):
        self.jobs: dict[str, list[int]] = {}

    @contextmanager
    def of_job(self, number: int) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            self.note([str(error)], number)

    def note(self, found: Sequence[str], number: int) -> None:
        if found:
            self.jobs.setdefault("; ".join(found), []).append(number)

    def __str__(self) -> str:
        return "\n".join(f"job {', '.join(map(str, jobs))}: {what}" for what, jobs in self.jobs.items())

    def tell(self) -> None:
        """Raise a UserError unless nothing was wrong."""
        if self.jobs:
            raise UserError(str(self))


def iter_job_configs(configs: Mapping[int, DictConfig]) -> Iterator[tuple[int, DictConfig]]:
    """Each job's number and configuration, while ``${hydra:...}`` means that job's."""
    for number, cfg in configs.items():
        HydraConfig.instance().set_config(cfg)
        yield number, cfg


def check_jobs(
    context: HydraContext, config: DictConfig, jobs: Sequence[Sequence[str]], first: int, elsewhere: bool
) -> dict[int, DictConfig]:
    """Tell the mistakes in any job before the first begins; give each job's configuration by its number.

    ``elsewhere``: the jobs may have variables in their environment that this process has not.

    Raises
    ------
    UserError
        It names each mistake once, and the jobs that have it.
    """
    wrong = JobErrors()
    with hydra_config_restored():
        configs = compose_jobs(context, config, jobs, first)
        for number, cfg in iter_job_configs(configs):
            with wrong.of_job(number), suppress(EnvironmentVariableNotSet) if elsewhere else nullcontext():
                _check_of_all(cfg, config)
                _check(without_hydra(cfg), plain_overrides(cfg.hydra.overrides.task))
    wrong.tell()
    return configs


def _check(task: DictConfig, words: Sequence[str]) -> None:
    if task.get("stages"):  # those are checked by the run that begins them
        check_nothing_lost(task, words, searchpath(HydraConfig.get()))
        return
    if task.get("needs"):
        check_requirements(task, words)
    if task.get("data") is not None or task.get("model") is None:  # else fcnlab eval says what is missing
        validate_config(task)


def _check_of_all(cfg: DictConfig, config: DictConfig) -> None:
    """Raise a ConfigError where a job's options set what is one for the whole sweep, and would have no effect there."""
    if cfg.hydra.job.chdir:
        raise ConfigError(CHDIR_REFUSED)
    for key in ("launcher", "sweeper"):
        of_job, of_all = (OmegaConf.to_container(tree.hydra[key], resolve=False) for tree in (cfg, config))
        if of_job != of_all:
            raise ConfigError(
                f"an option of its own sets hydra.{key}, which is one for the whole sweep: leave that to the command"
                f" line, as hydra/{key}=OPTION and hydra.{key}.KEY=VALUE"
            )


def without_hydra(cfg: DictConfig) -> DictConfig:
    """What a verb gets: with its root's schema, which a masked copy would lose."""
    task = copy.deepcopy(cfg)
    with open_dict(task):
        del task["hydra"]
    return task


def launcher_choice(hydra: DictConfig) -> list[str]:
    """The options of a command, and its words for Hydra: what a sweep needs beside the words of its jobs."""
    of_hydra = [
        word for word in plain_overrides(hydra.overrides.hydra) if not OF_ONE_SWEEP.match(word.partition("=")[0])
    ]
    return [*command_options(hydra), *of_hydra]


@contextmanager
def report_user_errors(verb: str) -> Iterator[None]:
    """Let Hydra show a mistake of the user's, and a place that cannot be written to, without a traceback."""
    try:
        yield
    except UserError as error:
        raise CompactHydraException(escape_terminal(f"fcnlab {verb}: {error}")) from error
    except OSError as error:
        if not error.filename:
            raise
        raise CompactHydraException(escape_terminal(f"fcnlab {verb}: {unusable_file_message(error)}")) from error


@contextmanager
def hydra_config_restored() -> Iterator[None]:
    """While entered, ``${hydra:...}`` may be made to mean a job's."""
    before = HydraConfig.instance().cfg
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before
