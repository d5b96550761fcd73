"""``sweep.extend=FOLDER seed=4,5``: the settings of a sweep with new seeds, as further jobs of the same sweep."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from fcnlab.config.overrides import override_key
from fcnlab.config.ranges import Seed, is_valid
from fcnlab.errors import UserError, first_line
from fcnlab.sweeps.job_checks import hydra_config_restored, iter_job_configs
from fcnlab.sweeps.manifest import Manifest

MOST_SEEDS = 1000  # in one command


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of ``seed=TEXT``, such as ``4,5`` or ``range(4,9)``.

    Raises
    ------
    UserError
        They are not different seeds, or too many.
    """
    try:
        override = OverridesParser.create().parse_override(f"seed={text}")
        values = list(islice(override.sweep_iterator(), MOST_SEEDS + 1)) if override.is_sweep_override() else [text]
        seeds = [int(str(value)) for value in values]
    except (HydraException, ValueError) as error:
        raise UserError(f"seed={text} must list whole numbers, such as seed=4,5 ({first_line(error)})") from error
    if not seeds or not all(is_valid(seed, Seed) for seed in seeds):
        raise UserError(f"seed={text} must list whole numbers from 0 to 2^32 - 1, such as seed=4,5")
    if len(seeds) > MOST_SEEDS:
        raise UserError(f"seed={text} has more than {MOST_SEEDS} seeds. List fewer")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seed={text} lists a seed twice. List it once")
    return seeds


def without_seed(overrides: Iterable[str]) -> tuple[str, ...]:
    """Return the overrides of a job that are equal for all of its seeds."""
    return tuple(word for word in overrides if override_key(word) != "seed")


def jobs_with_seeds(jobs: Sequence[Sequence[str]], seeds: Iterable[int]) -> list[list[str]]:
    """Return a job for each seed and each different setting of some jobs; the settings change fastest.

    Seeds that are added later thus become the last jobs, and no job changes its number.
    """
    settings = dict.fromkeys(map(without_seed, jobs))
    return [[*setting, f"seed={seed}"] for seed in seeds for setting in settings]


def check_seeds_are_new(manifest: Manifest, configs: Mapping[int, DictConfig], seeds: Sequence[int]) -> None:
    """Raise a UserError if a job of ``configs``, those of the sweep so far, has one of the new seeds."""
    with hydra_config_restored():
        job_of = {int(cfg.seed): number for number, cfg in reversed(list(iter_job_configs(configs)))}
    for seed in seeds:
        if seed in job_of:
            free = ",".join(str(max(job_of) + more) for more in range(1, len(seeds) + 1))
            raise UserError(
                f"{manifest.request} seed={seed}: the sweep already has this seed (job {job_of[seed]}). Type seeds that"
                f" it does not have, such as seed={free}. To rerun its missing jobs, type {manifest.resume_command}"
            )
