"""``hydra/sweeper=basic``, the default of ``-m``: a grid search over all combinations of the listed values.

A job has the typed overrides, in their order, each list replaced by one of its values. (Hydra's own sweeper keeps only
the last override of each key, so that the first of two dictionaries is lost, and rewrites the values.)
"""

import itertools
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, RangeSweep, Sweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import ConfigCompositionException, HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fcnlab.config.overrides import combinations_override, plain_overrides, shell_join
from fcnlab.errors import UserError, first_line
from fcnlab.files.writing import atomic_write
from fcnlab.library_internals.hydra import composed_through, copy_below_its_parent, folder_name, value_of, value_text
from fcnlab.runs.settings import JOB_INTERPOLATION, in_few_digits
from fcnlab.sweeps.confirmation import check_confirmed
from fcnlab.sweeps.job_checks import check_jobs, report_user_errors
from fcnlab.sweeps.job_overrides import user_overrides
from fcnlab.sweeps.manifest import Manifest, describe_difference
from fcnlab.sweeps.more_seeds import check_seeds_are_new, jobs_with_seeds, parse_seeds
from fcnlab.sweeps.refusals import folder_restored_on_refusal
from fcnlab.sweeps.resumed_settings import check_unchanged, nothing_left_to_run

log = logging.getLogger("fcnlab")
MAX_JOBS = 10_000
MAX_RANGE_VALUES = 1_000_000  # of a range, also in a search
DEFERRED_MARK = "as_typed"
FCNLAB_PLUGINS = "hydra_plugins.fcnlab_"
REFUSED_KEY = re.compile(r"Could not (?:override|append to config\. An item is already at) '(.+)'")
DEFERRED_OVERRIDE = re.compile(rf"^([^=]+)=choice\(\{{{DEFERRED_MARK}:(.*)\}}\)$", re.DOTALL)


class GridSweeper(Sweeper):
    """Compose and check all jobs, then pass them to the launcher.

    Parameters
    ----------
    max_batch_size
        Number of jobs that the launcher gets at once; None: all.
    params
        Lists of values by key, in addition to the command line.
    """

    def __init__(self, max_batch_size: Any = None, params: Mapping[str, Any] | None = None):
        self.max_batch_size = max_batch_size

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.whole = hydra_context, config
        self.verb, self.params = str(config.hydra.job.config_name), unresolved_params(config)
        restore_deferred_settings(config)
        with report_user_errors(self.verb):
            size = self.max_batch_size
            if size is not None and (type(size) is not int or size < 1):
                raise UserError(f"hydra.sweeper.max_batch_size={size} must be null or a whole number of at least 1")
        self.chosen_launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launch all batches; then raise the error of the first failed job, if any."""
        with folder_restored_on_refusal(self.chosen_launcher):
            return self._sweep(arguments)

    def _sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        with report_user_errors(self.verb):
            self.combinations = self._combinations()
            params = {} if self.combinations else self.params  # the combinations have their values
            overrides = parse_overrides(self.context, params, arguments, self.chosen_launcher)
            jobs = self._jobs(overrides)
            if not nothing_left_to_run(dict(enumerate(jobs)), self.manifest):
                self._check(overrides, jobs)
            write_multirun(self.whole)
        size, results = self.max_batch_size or len(jobs), []
        for first in range(0, len(jobs), size):
            self.chosen_launcher.more_batches = first + size < len(jobs)  # pyright: ignore[reportAttributeAccessIssue]
            results.append(self.chosen_launcher.launch(jobs[first : first + size], initial_job_idx=first))
        for job in itertools.chain.from_iterable(results):
            _ = job.return_value  # raises the error of a failed job
        return results

    @property
    def manifest(self) -> Manifest | None:
        """The launcher's record of the sweep; None if it has none."""
        return getattr(self.chosen_launcher, "manifest", None)

    def _jobs(self, overrides: Sequence[Override]) -> list[list[str]]:
        """Return the overrides of all jobs: the grid, and behind it the jobs of the seeds added to a recorded sweep."""
        jobs = combined(expand_jobs(overrides), self.combinations)
        if any(getattr(value_of(override), "shuffle", False) for override in overrides):
            jobs = restore_recorded_order(jobs, self.manifest)
        text = OmegaConf.select(self.whole, "sweep.added_seeds")
        self.new_seeds = parse_seeds(text) if text else []
        if self.new_seeds and self.manifest is None:
            raise UserError(
                f"sweep.added_seeds={text} works only with hydra/launcher=slots or submitit_slurm. Leave"
                " hydra/launcher=basic out"
            )
        if self.manifest is not None:
            self.manifest.added_seeds += self.new_seeds
            jobs += jobs_with_seeds(jobs, self.manifest.added_seeds)
        check_number_of_jobs(overrides, len(jobs))
        return jobs

    def _combinations(self) -> list[list[str]]:
        """Return the overrides with which each job of the grid is run, and record them.

        Raises
        ------
        UserError
            The resumed sweep has others.
        """
        typed: Any = OmegaConf.select(self.whole, "sweep.combinations")
        combinations: Any = OmegaConf.to_container(typed, resolve=False) if typed else []
        recorded = self.manifest.combinations if self.manifest is not None else []
        resumes = self.manifest is not None and getattr(self.chosen_launcher, "resumes", False)
        if self.manifest is not None and resumes and combinations and combinations != recorded:
            lists = [[combinations_override(each)] if each else [] for each in (recorded, combinations)]
            raise self.manifest.settings_error(describe_difference(*lists))
        if self.manifest is not None and not recorded:
            self.manifest.combinations = combinations
        return recorded or combinations

    def _check(self, overrides: Sequence[Override], jobs: Sequence[list[str]]) -> None:
        with list_hints_added(overrides):
            remote = getattr(self.chosen_launcher, "remote", True)
            configs = check_jobs(self.context, self.whole, jobs, remote)
        if self.manifest is not None and self.new_seeds:
            recorded = len(jobs) - len(jobs_with_seeds(jobs, self.new_seeds))
            earlier = {number: cfg for number, cfg in configs.items() if number < recorded}
            check_seeds_are_new(self.manifest, earlier, self.new_seeds)
        check_jobs_differ(overrides, jobs, configs)
        check_confirmed(self.context, self.whole, jobs)
        check_unchanged(self.context, self.whole, dict(enumerate(jobs)), self.manifest)


def restore_recorded_order(jobs: Sequence[list[str]], manifest: Manifest | None) -> list[list[str]]:
    """Sort jobs of shuffled lists as the resumed sweep has them; jobs that it has not planned come last."""
    planned = [job.overrides for _, job in sorted(manifest.jobs.items())] if manifest else []
    position = {tuple(overrides): index for index, overrides in enumerate(planned)}
    return sorted(jobs, key=lambda overrides: position.get(tuple(user_overrides(overrides)), len(position)))


def write_multirun(config: DictConfig) -> None:
    """Write Hydra's record of a sweep into its folder, replacing a link instead of following it."""
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "multirun.yaml") as part:
        part.write_text(OmegaConf.to_yaml(config), encoding="utf-8", errors="backslashreplace")


def parse_overrides(
    context: HydraContext, params: Mapping[str, Any], arguments: Sequence[str], launcher: Any
) -> list[Override]:
    """Parse the overrides of a sweep: those of ``hydra.sweeper.params`` first, then the typed ones.

    The former are also written to the launcher's record of the sweep, if it has one.

    Raises
    ------
    UserError
        A later override replaces a list before it; the resumed sweep had other ``hydra.sweeper.params``.
    """
    parser = OverridesParser.create(config_loader=context.config_loader)
    typed, from_params = parser.parse_overrides(list(arguments)), parser.parse_overrides(params_as_overrides(params))
    remaining = without_keys_of(from_params, typed)
    manifest = getattr(launcher, "manifest", None)
    from_record = bool(manifest and launcher.resumes and _are_recorded(typed, manifest))
    typed_keys = set() if from_record else {path for override in typed for path in keys_set_by(override)}
    for override in from_params:
        check_no_nested_list(override)
        if override.is_hydra_override():
            raise UserError(
                f"hydra.sweeper.params: {override.input_line} applies to the whole sweep. Set it outside of"
                " hydra.sweeper.params"
            )
        if replaced := _overridden_part(override, typed_keys):
            log.info("The command line overrides %s of hydra.sweeper.params", replaced)
    if manifest:
        if launcher.resumes:
            check_params(manifest, typed, from_params, parser)
        else:
            manifest.params = _lines(remaining)
    overrides = [*remaining, *typed]
    for override in overrides:
        if (count := _count(override)) > MAX_RANGE_VALUES:  # they would all be listed in memory
            raise UserError(
                f"{override.input_line} has {count} values; a range may have at most {MAX_RANGE_VALUES}. Check its end"
            )
    check_overrides_have_effect(overrides, lambda key: bool(context.config_loader.get_group_options(key)))
    return overrides


def without_keys_of(overrides: Sequence[Override], winning: Sequence[Override]) -> list[Override]:
    """Return the overrides without the settings of the winning ones; a dictionary is split into one per setting."""
    paths = {path for override in winning for path in keys_set_by(override)}
    return [part for override in overrides for part in _without_keys(paths, override)]


def _overridden_part(override: Override, paths: set[str]) -> str:
    """Return the part of an override that has no effect because other overrides set these paths."""
    replaced = keys_set_by(override) & paths
    return str(override.input_line) if replaced and not _without_keys(paths, override) else ", ".join(sorted(replaced))


def _without_keys(paths: set[str], override: Override) -> list[Override]:
    keys = keys_set_by(override)
    if keys.isdisjoint(paths):
        return [override]
    if keys <= paths or override.is_sweep_override():
        return []
    key, group = override.get_key_element(), override.key_or_group
    remaining = {path: value for path, value in _leaves(value_of(override), group) if path not in paths}
    words = [f"{key}{path.removeprefix(group)}={_override_value(value)}" for path, value in remaining.items()]
    return OverridesParser.create().parse_overrides(words)


def check_params(
    manifest: Manifest, typed: Sequence[Override], from_params: Sequence[Override], parser: OverridesParser
) -> None:
    """Raise a UserError if the record of a resumed sweep holds another ``hydra.sweeper.params``.

    ``sweep.resume=`` alone types all recorded overrides, which win over those of the file. The comparison undoes that,
    so that a change of the file is noticed.
    """
    recorded = manifest.params
    current = without_keys_of(from_params, parser.parse_overrides(manifest.overrides))
    if _are_recorded(typed, manifest):
        new = [override for override in current if override.input_line not in recorded]
        current = [*without_keys_of(parser.parse_overrides(recorded), new), *new]
    if _lines(current) != recorded:
        raise UserError(
            f"{manifest.request}: hydra.sweeper.params, {manifest.params_source}, has changed"
            f" since the sweep was started{describe_difference(recorded, _lines(current))}\n"
            f"Restore its old values to resume the sweep, or start a new sweep: {manifest.command}"
        )


def _are_recorded(overrides: Sequence[Override], manifest: Manifest) -> bool:
    """Return whether these are all overrides of a record, which ``sweep.resume=`` alone adds to the command line."""
    return user_overrides(_lines(overrides)) == manifest.all_overrides


def _lines(overrides: Sequence[Override]) -> list[str]:
    return [str(override.input_line) for override in overrides]


def unresolved_params(config: DictConfig) -> dict[str, Any]:
    """Return ``hydra.sweeper.params`` with interpolations unresolved: each job resolves them itself.

    Raises
    ------
    UserError
        They are not a dictionary.
    """
    params = OmegaConf.select(config, "hydra.sweeper.params")
    if params is None:
        return {}
    if not isinstance(params, DictConfig):
        raise UserError(f"hydra.sweeper.params={params} must map settings to values, such as {{seed:'1,2'}}")
    return OmegaConf.to_container(params, resolve=False)  # pyright: ignore[reportReturnType]


def params_as_overrides(params: Mapping[str, Any]) -> list[str]:
    """Return ``hydra.sweeper.params`` as overrides; text is in Hydra's override syntax, other values are plain."""
    return [f"{key}={value if isinstance(value, str) else value_text(value)}" for key, value in params.items()]


def keys_set_by(override: Override) -> set[str]:
    """Return the paths that an override sets: for dictionaries, or lists of them, the paths of the inner keys."""
    values = value_of(override).list if isinstance(value_of(override), ChoiceSweep) else [value_of(override)]
    return {path for each in values for path, _ in _leaves(each, override.key_or_group)}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _leaves(child, f"{path}.{key.text if isinstance(key, QuotedString) else key}")
    else:
        yield path, value


def check_overrides_have_effect(overrides: Sequence[Override], is_group: Callable[[str], bool]) -> None:
    """Raise a UserError if a later override replaces a list before it, or a part of its values."""
    for index, sweep in enumerate(overrides):
        for later in overrides[index + 1 :] if sweep.is_sweep_override() else ():
            if not keys_set_by(sweep).isdisjoint(keys_set_by(later)) or _replaces(later, keys_set_by(sweep), is_group):
                raise UserError(
                    f"{sweep.input_line} has no effect, since {later.input_line} after it sets the same. Leave one out"
                )


def _replaces(override: Override, paths: Iterable[str], is_group: Callable[[str], bool]) -> bool:
    """Return whether an override replaces a parent of some settings; a dictionary is merged and replaces nothing."""
    if override.is_sweep_override() and not isinstance(value_of(override), ChoiceSweep):
        return False
    parents = tuple(f"{path}." for path, value in _leaves(value_of(override), override.key_or_group) if value != {})
    if not any(path.startswith(parents) for path in paths):
        return False
    return override.is_delete() or not is_group(override.key_or_group) or isinstance(value_of(override), dict)


def check_jobs_differ(
    overrides: Sequence[Override], jobs: Sequence[Sequence[str]], configs: Mapping[int, DictConfig]
) -> None:
    """Raise a UserError if two jobs have the same settings, so that some list has no effect.

    Jobs with ``${hydra:job.num}`` or the like in their settings are never the same.
    """
    first_of: dict[str, int] = {}
    for number, cfg in configs.items():
        settings = settings_text(cfg)
        first = number if JOB_INTERPOLATION.search(settings) else first_of.setdefault(settings, number)
        if first != number:
            lists = [override for override in overrides if override.is_sweep_override()]
            differing = [
                override
                for override, *pair in zip(overrides, jobs[first], jobs[number], strict=False)
                if len(set(pair)) > 1
            ]
            raise UserError(_same_run_message(first, number, differing, lists))


def _same_run_message(first: int, number: int, differing: Sequence[Override], lists: Sequence[Override]) -> str:
    jobs = f"jobs {first} and {number} would be the same run"
    if not differing:
        return f"{' '.join(_lines(lists))}: {jobs}, since a value is listed twice. List it once"
    return (
        f"{' '.join(_lines(differing))} has no effect: {jobs}, since the values are equal or another override sets the"
        " same. Leave one out"
    )


def settings_text(cfg: DictConfig) -> str:
    """Return the composed settings of a run as a text to compare; 1 and 1.0 are equal."""
    tree: Any = OmegaConf.to_container(cfg, resolve=False)
    return json.dumps(_normalized({key: value for key, value in tree.items() if key not in ("hydra", "sweep")}))


def _normalized(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _normalized(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list):
        return [_normalized(child) for child in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() else in_few_digits(value)
    return value if value is None or isinstance(value, (bool, int)) else str(value)


@contextmanager
def list_hints_added(overrides: Sequence[Override]) -> Iterator[None]:
    """Add a hint to a UserError about a value that looks like a list: how to sweep over its values."""
    try:
        yield
    except UserError as error:
        hints = [hint for path, hint in list_hints(overrides).items() if f" {path} must be " in str(error)]
        if not hints:
            raise
        raise UserError("\n".join([str(error), *hints])) from error


def list_hints(overrides: Sequence[Override]) -> dict[str, str]:
    """Return, by setting, how to sweep over values that are in brackets or quotes and thus a single value."""
    leaves = [leaf for override in overrides for leaf in _leaves(value_of(override), override.key_or_group)]
    return {
        path: f"To sweep over the values of {path}, type {shell_join([f'{path}={values}'])} (in a file:"
        f" hydra.sweeper.params: {{{path}: '{values}'}})"
        for path, value in leaves
        if (values := _listed_values(value))
    }


def _listed_values(value: Any) -> str | None:
    """Return the values of a list in brackets or quotes in the syntax of a sweep; None if it is not a list."""
    if isinstance(value, list):
        return ",".join(map(_override_value, value))
    text = value.text if isinstance(value, QuotedString) else value
    override = _parsed(f"x={text}") if isinstance(text, str) else None
    return str(text) if override is not None and override.is_sweep_override() else None


def expand_jobs(overrides: Sequence[Override]) -> list[list[str]]:
    """Return the overrides of each job; the values of the last list change fastest.

    Raises
    ------
    UserError
        A list is empty; an override is an interval; there are more than ``MAX_JOBS`` jobs.
    """
    check_number_of_jobs(overrides, math.prod(map(_count, overrides)))
    return [list(job) for job in itertools.product(*map(_job_overrides, overrides))]


def check_number_of_jobs(overrides: Sequence[Override], count: int) -> None:
    """Raise a UserError for more than ``MAX_JOBS`` jobs."""
    if count > MAX_JOBS:
        raise UserError(
            f"{' '.join(_lines(overrides))} gives {count} jobs; a sweep may have at most {MAX_JOBS}. List fewer values"
        )


def combined(jobs: Sequence[list[str]], combinations: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return each job with each combination of overrides; the jobs alone if there are no combinations."""
    return [[*job, *words] for words in combinations or [[]] for job in jobs]


def _count(override: Override) -> int:
    """Return the number of values of an override; for a range it is computed from its ends."""
    sweep: Any = value_of(override)
    if isinstance(value_of(override), RangeSweep):
        try:
            return max(0, math.ceil((sweep.stop - sweep.start) / sweep.step))
        except (ArithmeticError, ValueError) as error:
            raise UserError(f"{override.input_line}: {first_line(error)}. Use range(START,STOP,STEP)") from error
    return len(sweep.list) if isinstance(sweep, ChoiceSweep) else 1


def _job_overrides(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise UserError(
            f"{override.input_line}: an interval works only with hydra/sweeper=optuna. List values, or use a range"
        )
    values = override.sweep_iterator()
    if isinstance(value_of(override), RangeSweep):
        values = map(in_few_digits, values)
    single = [f"{override.get_key_element()}={_override_value(value)}" for value in values]
    if not single:
        raise UserError(f"{override.input_line} has no values, so there is no job to run")
    return single


def _override_value(value: Any) -> str:
    """Return a value as it is typed for a single run; Hydra would write ``$\\{seed\\}`` for ``${seed}``."""
    written = value_text(value)
    plain = re.sub(r"\\(.)", r"\1", written)
    parsed = _parsed(f"x={plain}") if "${" in plain and plain != written else None
    return plain if parsed is not None and value_of(parsed) == value else written


# Hydra composes a configuration of the whole sweep with the default option of each swept group, and refuses overrides
# that only the other options have. It leaves lists to the jobs, so such an override is passed to Hydra as a list of
# one value, and restored before the sweeper gets it. Only after composing it is known which groups are swept, since a
# file may say so.


@contextmanager
def group_settings_deferred() -> Iterator[None]:
    """While entered, Hydra leaves to the jobs of a sweep the overrides that only some swept options have.

    It also leaves ``hydra.sweeper.params`` unresolved, which would otherwise be resolved before there is any job.
    """

    def compose(load: Callable[..., DictConfig], arguments: dict[str, Any]) -> DictConfig:
        while True:
            try:
                return load(**arguments)
            except ConfigCompositionException as error:
                overrides = list(arguments["overrides"])
                is_sweep = arguments["run_mode"] == RunMode.MULTIRUN
                deferred = defer_group_settings(overrides, str(error)) if is_sweep else overrides
                if deferred == overrides:
                    raise
                arguments["overrides"] = deferred

    with composed_through(compose, _without_params):
        yield


def _without_params(config: DictConfig) -> DictConfig:
    """Return a plugin's settings without ``params``, if it is one of fcnlab's sweepers, which read them unresolved."""
    if not str(config.get("_target_")).startswith(FCNLAB_PLUGINS) or "params" not in config:
        return config
    bare = copy_below_its_parent(config)
    bare.params = None
    return bare


def defer_group_settings(overrides: Sequence[str], message: str) -> list[str]:
    """Turn the overrides that Hydra has refused with this message into lists of one value."""
    key = REFUSED_KEY.match(message)
    return [
        _deferred(text) if key and parsed and parsed.key_or_group == key[1] and _can_be_deferred(parsed) else text
        for text, parsed in zip(overrides, map(_parsed, overrides), strict=True)
    ]


def check_no_nested_lists(overrides: Iterable[str]) -> None:
    """Raise a UserError if a list of values is inside another value: Hydra would sweep over neither."""
    for override in map(_parsed, overrides):
        if override is not None:
            check_no_nested_list(override)


def check_no_nested_list(override: Override) -> None:
    if _contains_list(value_of(override)):
        raise UserError(
            f"{override.input_line}: a list of values cannot be inside another value. Use a separate KEY=A,B"
        )


def _contains_list(value: Any) -> bool:
    inside = value.list if isinstance(value, ChoiceSweep) else value
    children = inside.values() if isinstance(inside, dict) else inside if isinstance(inside, list) else ()
    return any(isinstance(child, Sweep) or _contains_list(child) for child in children)


def _can_be_deferred(override: Override) -> bool:
    """Return whether an override sets a key inside a group; ``sweep.`` overrides are needed before there are jobs."""
    if override.is_sweep_override() or override.is_hydra_override() or override.is_delete():
        return False
    key, inside = override.key_or_group, isinstance(value_of(override), dict)
    return ("." in key or inside) and key.partition(".")[0] != "sweep"


def _deferred(word: str) -> str:
    key, _, value = word.partition("=")
    # A plain choice(VALUE) is ambiguous, since it may have been typed, and Hydra refuses choice(null).
    deferred = f"{key}=choice({{{DEFERRED_MARK}:{value}}})"
    return deferred if value and _parsed(deferred) else word


def restore_deferred_settings(config: DictConfig) -> None:
    """Restore the typed overrides of a sweep, and the folder name that Hydra makes of them."""
    deferred = plain_overrides(config.hydra.overrides.task)
    restored = [_restored(override) for override in deferred]
    if restored != deferred:
        config.hydra.overrides["task"] = restored
        naming, parsed = config.hydra.job.config.override_dirname, OverridesParser.create().parse_overrides(restored)
        config.hydra.job.override_dirname = folder_name(
            parsed, list(naming.exclude_keys), naming.item_sep, naming.kv_sep
        )


def _restored(word: str) -> str:
    return DEFERRED_OVERRIDE.sub(r"\1=\2", word)


def _parsed(word: str) -> Override | None:
    """Parse an override; return None if Hydra cannot, which reports the error itself."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None
