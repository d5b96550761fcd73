"""Compose and check the configuration of every job of a sweep before the first one starts."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import pairwise
from pathlib import Path, PurePath

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from fcnlab.config.composition import without_hydra
from fcnlab.config.overrides import command_options, config_dir, plain_overrides, searchpath
from fcnlab.config.validation import ConfigError, EnvironmentVariableNotSet, check_requirements, validate_config
from fcnlab.errors import CHDIR_REFUSED, UserError, unusable_file_message
from fcnlab.escaping import escape_terminal
from fcnlab.files.reading import display_path
from fcnlab.sweeps.job_names import DISTINCT_SUBDIR_HINT
from fcnlab.sweeps.job_overrides import MAX_FILE_NAME_BYTES, NOT_REPEATED, RESERVED_NAMES, user_overrides
from fcnlab.sweeps.manifest import is_subfolder
from fcnlab.sweeps.stages import check_settings_reach_stages

COMPOSED_CONFIG = ".hydra/config.yaml"  # in a job's folder: its composed settings
SINGLE_PROCESS_SETTINGS = {  # values of trainer settings that start no processes; messages suggest the last
    "devices": ("1", 1),
    "strategy": (None, "single_device", "auto"),
    "num_nodes": (None, 1),
}


def check_contains_no_run(folder: Path) -> None:
    """Raise a UserError if the folder of a sweep contains a run."""
    run_files = [name for name in ("run.json", ".hydra", "checkpoints") if os.path.lexists(folder / name)]
    if run_files:
        raise UserError(f"{display_path(folder)} contains {run_files[0]} of a run. Set hydra.sweep.dir to a new folder")


def check_single_process(configs: Mapping[int, DictConfig]) -> None:
    """Raise a UserError if a job would start more processes, since each of them would run the whole sweep."""
    for number, cfg in iter_job_configs(configs):
        for key, allowed in SINGLE_PROCESS_SETTINGS.items():  # doctor and compare have no trainer
            if "trainer" in cfg and (value := cfg.trainer.get(key)) not in allowed:
                raise UserError(
                    f"job {number}: trainer.{key}={value} does not work with hydra/launcher=basic, which runs all jobs"
                    " in one process. Each further process would run the whole sweep, and the next job would reuse"
                    " the process group and train on only a part of the data. Leave hydra/launcher=basic out, or set"
                    f" trainer.{key}={allowed[-1]}"
                )


def compose_jobs(
    context: HydraContext, config: DictConfig, jobs: Sequence[Sequence[str]], first: int
) -> dict[int, DictConfig]:
    """Return the configuration of each job by its number, as a single run would have it.

    Raises
    ------
    UserError
        Jobs set keys that do not exist; the message names the jobs and the most similar keys.
    """
    configs, errors = {}, JobErrors()
    for number, overrides in enumerate(jobs, start=first):
        with errors.of_job(number):
            configs[number] = cfg = context.config_loader.load_sweep_config(config, user_overrides(overrides))
            cfg.hydra.job.id = cfg.hydra.job.num = number
            HydraConfig.instance().set_config(cfg)
            with read_write(cfg.hydra), open_dict(cfg.hydra):
                cfg.hydra.sweep.subdir = str(cfg.hydra.sweep.subdir)  # resolved now, with this job's number
                cfg.hydra.runtime.output_dir = str(Path(config.hydra.sweep.dir).absolute() / cfg.hydra.sweep.subdir)
    errors.raise_if_any()
    check_folders({number: cfg.hydra.sweep.subdir for number, cfg in configs.items()})
    return configs


def check_folders(subdirs: Mapping[int, str]) -> None:
    """Check that each job has its own folder inside the sweep's folder, under no reserved name."""
    for number, subdir in subdirs.items():
        parts = PurePath(subdir).parts
        if not is_subfolder(subdir):
            problem = "is not a folder inside the sweep's folder"
        elif parts[0] in RESERVED_NAMES or parts[0].startswith("."):
            problem = "is reserved for files of the sweep"
        elif max(len(os.fsencode(part)) for part in parts) > MAX_FILE_NAME_BYTES:
            problem = f"has a part of more than {MAX_FILE_NAME_BYTES} bytes"
        else:
            continue
        raise UserError(f"job {number}: hydra.sweep.subdir={subdir} {problem}{DISTINCT_SUBDIR_HINT}")
    in_order = sorted((PurePath(subdir).parts, number) for number, subdir in subdirs.items())
    for (outer, first), (inner, second) in pairwise(in_order):  # sorting puts a subfolder right behind its parent
        if inner[: len(outer)] == outer:
            both = sorted((first, second))
            raise UserError(
                f"jobs {both[0]} and {both[1]} would both use {PurePath(*outer)} in the sweep's folder"
                f"{DISTINCT_SUBDIR_HINT}"
            )


class JobErrors:
    """The errors in the jobs of a sweep: each error once, with the numbers of its jobs."""

    def __init__(self):
        self.jobs: dict[str, list[int]] = {}

    @contextmanager
    def of_job(self, number: int) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            self.add([str(error)], number)

    def add(self, messages: Sequence[str], number: int) -> None:
        if messages:
            self.jobs.setdefault("; ".join(messages), []).append(number)

    def __str__(self) -> str:
        return "\n".join(f"job {', '.join(map(str, jobs))}: {message}" for message, jobs in self.jobs.items())

    def raise_if_any(self) -> None:
        """Raise a UserError if there are errors."""
        if self.jobs:
            raise UserError(str(self))


def iter_job_configs(configs: Mapping[int, DictConfig]) -> Iterator[tuple[int, DictConfig]]:
    """Yield each job's number and configuration; meanwhile ``${hydra:...}`` refers to that job."""
    for number, cfg in configs.items():
        HydraConfig.instance().set_config(cfg)
        yield number, cfg


def check_jobs(
    context: HydraContext, config: DictConfig, jobs: Sequence[Sequence[str]], remote: bool
) -> dict[int, DictConfig]:
    """Check the settings of all jobs; return each job's configuration by its number.

    ``remote``: the jobs may have environment variables that this process has not.

    Raises
    ------
    UserError
        It names each error once, with the numbers of its jobs.
    """
    errors = JobErrors()
    with hydra_config_restored():
        configs = compose_jobs(context, config, jobs, first=0)
        for number, cfg in iter_job_configs(configs):
            with errors.of_job(number), suppress(EnvironmentVariableNotSet) if remote else nullcontext():
                _check_sweep_wide_settings(cfg, config)
                _check(without_hydra(cfg), plain_overrides(cfg.hydra.overrides.task))
    errors.raise_if_any()
    return configs


def _check(task: DictConfig, overrides: Sequence[str]) -> None:
    if task.get("stages"):  # the job checks its stages when it starts
        hydra = HydraConfig.get()
        check_settings_reach_stages(task, overrides, searchpath(hydra), config_dir(hydra))
        return
    if task.get("needs"):
        check_requirements(task, overrides)
    if task.get("data") is not None or task.get("model") is None:  # else fcnlab eval reports what is missing
        validate_config(task)


def _check_sweep_wide_settings(cfg: DictConfig, config: DictConfig) -> None:
    """Raise a ConfigError if a job's options set the launcher or sweeper, which apply to the whole sweep."""
    if cfg.hydra.job.chdir:
        raise ConfigError(CHDIR_REFUSED)
    for key in ("launcher", "sweeper"):
        of_job, of_all = (OmegaConf.to_container(tree.hydra[key], resolve=False) for tree in (cfg, config))
        if of_job != of_all:
            raise ConfigError(
                f"one of its options sets hydra.{key}, which applies to the whole sweep. Set it on the command line,"
                f" with hydra/{key}=OPTION and hydra.{key}.KEY=VALUE"
            )


def launcher_choice(hydra: DictConfig) -> list[str]:
    """Return the command's options and its overrides of Hydra's settings: all but the overrides of the jobs."""
    hydra_overrides = [
        word for word in plain_overrides(hydra.overrides.hydra) if not NOT_REPEATED.match(word.partition("=")[0])
    ]
    return [*command_options(hydra), *hydra_overrides]


@contextmanager
def report_user_errors(verb: str) -> Iterator[None]:
    """Let Hydra show a UserError, or an OSError that names a file, without a traceback."""
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
    """Restore on exit the configuration that ``${hydra:...}`` refers to."""
    before = HydraConfig.instance().cfg
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before
