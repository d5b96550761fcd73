"""``hydra/sweeper=basic``, which ``-m`` alone means: a job for each combination of the values that are listed.

A job's words are those of its single run: all that was typed, in that order, each list replaced by one of its values.
(Hydra's own sweeper keeps the last word of each key, so that the first of two dictionaries is lost, and writes values
anew.)
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

from fcnlab.config.overrides import plain_overrides, shell_join
from fcnlab.errors import UserError, first_line
from fcnlab.library_internals.hydra import composed_through, copy_below_its_parent, folder_name, value_of, value_text
from fcnlab.runs.settings import JOB_INTERPOLATION, in_few_digits
from fcnlab.sweeps.job_checks import check_jobs, report_user_errors
from fcnlab.sweeps.job_overrides import user_overrides
from fcnlab.sweeps.manifest import Manifest, describe_difference
from fcnlab.sweeps.resumed_settings import check_unchanged

log = logging.getLogger("fcnlab")
MOST_JOBS = 10_000
MOST_VALUES = 1_000_000  # of a range; those of a search are no jobs each
MARK = "as_typed"
OUR_PLUGINS = "hydra_plugins.fcnlab_"
REFUSED = re.compile(r"Could not (?:override|append to config\. An item is already at) '(.+)'")
WAITING = re.compile(rf"^([^=]+)=choice\(\{{{MARK}:(.*)\}}\)$", re.DOTALL)


class GridSweeper(Sweeper):
    """Composes and checks all jobs before the launcher gets the first one.

    Parameters
    ----------
    max_batch_size
        How many jobs the launcher gets at once; None: all.
    params
        Lists of values by key, beside the command line's.
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
                raise UserError(f"hydra.sweeper.max_batch_size={size}: give a whole number of at least 1, or null")
        self.chosen_launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launch batch after batch; raise what the first failed job says once all are done."""
        with report_user_errors(self.verb):
            overrides = parse_overrides(self.context, self.params, arguments, self.chosen_launcher)
            jobs = expand_jobs(overrides)
            if any(getattr(value_of(override), "shuffle", False) for override in overrides):
                jobs = restore_recorded_order(jobs, getattr(self.chosen_launcher, "manifest", None))
            with lists_explained(overrides):
                elsewhere = getattr(self.chosen_launcher, "elsewhere", True)
                configs = check_jobs(self.context, self.whole, jobs, 0, elsewhere)
            check_jobs_differ(overrides, jobs, configs)
            check_unchanged(self.context, self.whole, dict(enumerate(jobs)), self.chosen_launcher)
            write_multirun(self.whole)
        size, returned = self.max_batch_size or len(jobs), []
        for first in range(0, len(jobs), size):
            self.chosen_launcher.more_to_come = first + size < len(jobs)  # pyright: ignore[reportAttributeAccessIssue]
            returned.append(self.chosen_launcher.launch(jobs[first : first + size], initial_job_idx=first))
        for job in itertools.chain.from_iterable(returned):
            _ = job.return_value  # which raises
        return returned


def restore_recorded_order(jobs: Sequence[list[str]], manifest: Manifest | None) -> list[list[str]]:
    """The jobs of shuffled lists in the order of a sweep that goes on; those that it has not planned come last."""
    planned = [job.overrides for _, job in sorted(manifest.jobs.items())] if manifest else []
    place = {tuple(words): place for place, words in enumerate(planned)}
    return sorted(jobs, key=lambda words: place.get(tuple(user_overrides(words)), len(place)))


def write_multirun(config: DictConfig) -> None:
    """Hydra's own record of a sweep, in its folder; through no link."""
    from fcnlab.files.writing import atomic_write  # numpy comes with it

    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "multirun.yaml") as part:
        part.write_text(OmegaConf.to_yaml(config), encoding="utf-8", errors="backslashreplace")


def parse_overrides(
    context: HydraContext, params: Mapping[str, Any], arguments: Sequence[str], launcher: Any
) -> list[Override]:
    """What the words of a sweep say, those of a file's ``hydra.sweeper.params`` before those that were typed.

    The launcher's record of the sweep, where it has one, holds the former from now on.

    Raises
    ------
    UserError
        A later word takes the effect of a list before it; a sweep that goes on had others in its file.
    """
    parser = OverridesParser.create(config_loader=context.config_loader)
    typed, of_file = parser.parse_overrides(list(arguments)), parser.parse_overrides(params_as_overrides(params))
    kept, ours = beside(of_file, typed), {path for override in typed for path in keys_set_by(override)}
    for override in of_file:
        check_no_list_inside(override)
        if override.is_hydra_override():
            raise UserError(
                f"hydra.sweeper.params: {override.input_line} is one setting for the whole sweep: give it beside them"
            )
        if gone := _given_way(override, ours):
            log.info("%s of hydra.sweeper.params gives way to what was typed", gone)
    if manifest := getattr(launcher, "manifest", None):
        check_params(manifest, typed, of_file, parser)
    overrides = [*kept, *typed]
    for override in overrides:
        if (count := _count(override)) > MOST_VALUES:  # which would be listed one by one
            raise UserError(
                f"{override.input_line}: {count} values, and a range has at most {MOST_VALUES}: see its end"
            )
    check_overrides_have_effect(overrides, lambda key: bool(context.config_loader.get_group_options(key)))
    return overrides


def beside(overrides: Sequence[Override], others: Sequence[Override]) -> list[Override]:
    """What the words set that others do not; of a dictionary the settings that are left, a word each."""
    ours = {path for override in others for path in keys_set_by(override)}
    return [part for override in overrides for part in _without(ours, override)]


def _given_way(override: Override, paths: set[str]) -> str:
    """What of a word has no effect where others set these paths."""
    gone = keys_set_by(override) & paths
    return str(override.input_line) if gone and not _without(paths, override) else ", ".join(sorted(gone))


def _without(paths: set[str], override: Override) -> list[Override]:
    own = keys_set_by(override)
    if own.isdisjoint(paths):
        return [override]
    if own <= paths or override.is_sweep_override():
        return []
    key, group = override.get_key_element(), override.key_or_group
    left = {path: value for path, value in _leaves(value_of(override), group) if path not in paths}
    words = [f"{key}{path.removeprefix(group)}={_as_word(value)}" for path, value in left.items()]
    return OverridesParser.create().parse_overrides(words)


def check_params(
    manifest: Manifest, typed: Sequence[Override], of_file: Sequence[Override], parser: OverridesParser
) -> None:
    """Let the record of a sweep hold the words of a file, or raise a UserError where it holds others.

    What is typed may be all words of the record, as ``sweep.resume=`` alone brings them back: those of the file give
    way to them, which would hide that the file has changed.
    """
    before = manifest.params
    if before is None:
        manifest.params = _lines(beside(of_file, typed))
        return
    here = beside(of_file, parser.parse_overrides(manifest.overrides))
    if user_overrides(_lines(typed)) == manifest.words:
        new = [override for override in here if override.input_line not in before]
        here = [*beside(parser.parse_overrides(before), new), *new]
    if _lines(here) != before:
        raise manifest.others(describe_difference(before, _lines(here)))


def _lines(overrides: Sequence[Override]) -> list[str]:
    return [str(override.input_line) for override in overrides]


def unresolved_params(config: DictConfig) -> dict[str, Any]:
    """``hydra.sweeper.params`` with their interpolations, which Hydra would resolve for all jobs at once.

    Raises
    ------
    UserError
        They are no dictionary.
    """
    params = OmegaConf.select(config, "hydra.sweeper.params")
    if params is None:
        return {}
    if not isinstance(params, DictConfig):
        raise UserError(f"hydra.sweeper.params={params}: give lists of values by setting, as {{seed:'1,2'}}")
    return OmegaConf.to_container(params, resolve=False)  # pyright: ignore[reportReturnType]


def params_as_overrides(params: Mapping[str, Any]) -> list[str]:
    """A file's search space as it would be typed: text is a word of Hydra's, all else a plain value."""
    return [f"{key}={value if isinstance(value, str) else value_text(value)}" for key, value in params.items()]


def keys_set_by(override: Override) -> set[str]:
    """The settings that a word sets: of a dictionary, or a list of them, those inside; of a group its own name."""
    values = value_of(override).list if isinstance(value_of(override), ChoiceSweep) else [value_of(override)]
    return {path for each in values for path, _ in _leaves(each, override.key_or_group)}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _leaves(child, f"{path}.{key.text if isinstance(key, QuotedString) else key}")
    else:
        yield path, value


def check_overrides_have_effect(overrides: Sequence[Override], is_group: Callable[[str], bool]) -> None:
    """Raise a UserError where a later word takes the effect of a list before it, or of a part of that."""
    for place, sweep in enumerate(overrides):
        for later in overrides[place + 1 :] if sweep.is_sweep_override() else ():
            if not keys_set_by(sweep).isdisjoint(keys_set_by(later)) or _replaces(later, keys_set_by(sweep), is_group):
                raise UserError(
                    f"{sweep.input_line} has no effect: {later.input_line} behind it sets the same; leave one out"
                )


def _replaces(override: Override, paths: Iterable[str], is_group: Callable[[str], bool]) -> bool:
    """Whether a word puts something in place of a parent of some settings: a dictionary is added to what is there."""
    if override.is_sweep_override() and not isinstance(value_of(override), ChoiceSweep):
        return False
    parents = tuple(f"{path}." for path, value in _leaves(value_of(override), override.key_or_group) if value != {})
    if not any(path.startswith(parents) for path in paths):
        return False
    return override.is_delete() or not is_group(override.key_or_group) or isinstance(value_of(override), dict)


def check_jobs_differ(
    overrides: Sequence[Override], jobs: Sequence[Sequence[str]], configs: Mapping[int, DictConfig]
) -> None:
    """Raise a UserError where two jobs are the same run, so that a list has no effect, whatever takes it.

    Two that ask for something of their own, such as ``${hydra:job.num}``, are not.
    """
    first_of: dict[str, int] = {}
    for number, cfg in configs.items():
        settings = settings_text(cfg)
        first = number if JOB_INTERPOLATION.search(settings) else first_of.setdefault(settings, number)
        if first != number:
            lists = [override for override in overrides if override.is_sweep_override()]
            differing = [
                override
                for override, *words in zip(overrides, jobs[first], jobs[number], strict=True)
                if len(set(words)) > 1
            ]
            raise UserError(_same_run(first, number, differing, lists))


def _same_run(first: int, number: int, differing: Sequence[Override], lists: Sequence[Override]) -> str:
    jobs = f"jobs {first} and {number} would be the same run"
    if not differing:
        return f"{' '.join(_lines(lists))}: {jobs}, since a value is listed twice; list it once"
    return (
        f"{' '.join(_lines(differing))} has no effect: {jobs}, since its values are equal or another word sets the"
        " same; leave one out"
    )


def settings_text(cfg: DictConfig) -> str:
    """What a run depends on, as far as it was composed; equal for 1 and 1.0."""
    tree: Any = OmegaConf.to_container(cfg, resolve=False)
    return json.dumps(_in_one_form({key: value for key, value in tree.items() if key not in ("hydra", "sweep")}))


def _in_one_form(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _in_one_form(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list):
        return [_in_one_form(child) for child in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() else in_few_digits(value)
    return value if value is None or isinstance(value, (bool, int)) else str(value)


@contextmanager
def lists_explained(overrides: Sequence[Override]) -> Iterator[None]:
    """Let a UserError that names a value say how to sweep over what is in it, where that may have been meant."""
    try:
        yield
    except UserError as error:
        hints = [hint for path, hint in how_to_list(overrides).items() if f" {path}=" in str(error)]
        if not hints:
            raise
        raise UserError("\n".join([str(error), *hints])) from error


def how_to_list(overrides: Sequence[Override]) -> dict[str, str]:
    """By setting, how to sweep over the values that are one value as they stand: in brackets, or in quotes."""
    leaves = [leaf for override in overrides for leaf in _leaves(value_of(override), override.key_or_group)]
    return {
        path: f"To sweep over the values of {path}, type {shell_join([f'{path}={values}'])} (in a file's"
        f" hydra.sweeper.params: {{{path}: '{values}'}})"
        for path, value in leaves
        if (values := _values_inside(value))
    }


def _values_inside(value: Any) -> str | None:
    """The list of values that a plain value looks like, as a sweep has it."""
    if isinstance(value, list):
        return ",".join(map(_as_word, value))
    text = value.text if isinstance(value, QuotedString) else value
    override = _parsed(f"x={text}") if isinstance(text, str) else None
    return str(text) if override is not None and override.is_sweep_override() else None


def expand_jobs(overrides: Sequence[Override]) -> list[list[str]]:
    """Each job's words; the values of the last list change fastest.

    Raises
    ------
    UserError
        A list is empty, or an interval, which has no values to list; there are more jobs than anybody means.
    """
    count = math.prod(map(_count, overrides))
    if count > MOST_JOBS:
        raise UserError(
            f"{' '.join(_lines(overrides))}: {count} jobs, and a sweep has at most {MOST_JOBS}: list fewer values"
        )
    return [list(words) for words in itertools.product(*map(_words_of, overrides))]


def _count(override: Override) -> int:
    """How many values a word gives, about: a range is not gone through."""
    sweep: Any = value_of(override)
    if isinstance(value_of(override), RangeSweep):
        try:
            return max(0, math.ceil((sweep.stop - sweep.start) / sweep.step))
        except (ArithmeticError, ValueError) as error:
            raise UserError(f"{override.input_line}: {first_line(error)}; give range(START,STOP,STEP)") from error
    return len(sweep.list) if isinstance(sweep, ChoiceSweep) else 1


def _words_of(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise UserError(f"{override.input_line}: an interval is for hydra/sweeper=optuna; list values, or give a range")
    values = override.sweep_iterator()
    if isinstance(value_of(override), RangeSweep):
        values = map(in_few_digits, values)
    words = [f"{override.get_key_element()}={_as_word(value)}" for value in values]
    if not words:
        raise UserError(f"{override.input_line} has no value, so that there is no job to run")
    return words


def _as_word(value: Any) -> str:
    """A value as it is typed for a single run; Hydra would write ``$\\{seed\\}`` for ``${seed}``."""
    written = value_text(value)
    plain = re.sub(r"\\(.)", r"\1", written)
    parsed = _parsed(f"x={plain}") if "${" in plain and plain != written else None
    return plain if parsed is not None and value_of(parsed) == value else written


# Hydra composes a sweep's own configuration with the default option of each swept group, and refuses the settings of
# others. A list of one value is left to the jobs: as such a word is handed to Hydra, and is again what was typed when
# the sweeper gets it. Which groups are swept is known behind that alone, since a file may say so.


@contextmanager
def left_to_jobs() -> Iterator[None]:
    """While entered, Hydra leaves to the jobs of a sweep what is theirs.

    That is what its own configuration cannot take, and what ``hydra.sweeper.params`` looks up: Hydra would resolve that
    before the first job, by no job's settings.
    """

    def compose(load: Callable[..., DictConfig], given: dict[str, Any]) -> DictConfig:
        while True:
            try:
                return load(**given)
            except ConfigCompositionException as error:
                words = list(given["overrides"])
                waiting = defer_group_settings(words, str(error)) if given["run_mode"] == RunMode.MULTIRUN else words
                if waiting == words:
                    raise
                given["overrides"] = waiting

    with composed_through(compose, _without_params):
        yield


def _without_params(config: DictConfig) -> DictConfig:
    """The settings of a plugin, without the search space of ours, which read it as it is written."""
    if not str(config.get("_target_")).startswith(OUR_PLUGINS) or "params" not in config:
        return config
    bare = copy_below_its_parent(config)
    bare.params = None
    return bare


def defer_group_settings(words: Sequence[str], refused: str) -> list[str]:
    """The words of a sweep, with those that Hydra has refused by this error as lists of one value."""
    key = REFUSED.match(refused)
    parsed = map(_parsed, words)
    return [
        _as_choice(word) if key and override and override.key_or_group == key[1] and _can_wait(override) else word
        for word, override in zip(words, parsed, strict=True)
    ]


def check_no_lists_inside(words: Iterable[str]) -> None:
    """Raise a UserError where a list is inside another one, of which Hydra makes neither."""
    for override in map(_parsed, words):
        if override is not None:
            check_no_list_inside(override)


def check_no_list_inside(override: Override) -> None:
    if _holds_list(value_of(override)):
        raise UserError(f"{override.input_line}: a list of values inside another value; give it as KEY=A,B of its own")


def _holds_list(value: Any) -> bool:
    inside = value.list if isinstance(value, ChoiceSweep) else value
    children = inside.values() if isinstance(inside, dict) else inside if isinstance(inside, list) else ()
    return any(isinstance(child, Sweep) or _holds_list(child) for child in children)


def _can_wait(override: Override) -> bool:
    """Whether a word sets something inside a group; those of the sweep itself are needed before its jobs."""
    if override.is_sweep_override() or override.is_hydra_override() or override.is_delete():
        return False
    key, inside = override.key_or_group, isinstance(value_of(override), dict)
    return ("." in key or inside) and key.partition(".")[0] != "sweep"


def _as_choice(word: str) -> str:
    key, _, value = word.partition("=")
    waiting = f"{key}=choice({{{MARK}:{value}}})"  # a bare choice(null) is refused, and choice(1) may have been typed
    return waiting if value and _parsed(waiting) else word


def restore_deferred_settings(config: DictConfig) -> None:
    """Let the overrides of a sweep, and the name that they make for a folder, be those that were typed."""
    waiting = plain_overrides(config.hydra.overrides.task)
    config.hydra.overrides.task = [_as_single(word) for word in plain_overrides(config.hydra.overrides.task)]
    words = plain_overrides(config.hydra.overrides.task)
    if words != waiting:
        naming, overrides = config.hydra.job.config.override_dirname, OverridesParser.create().parse_overrides(words)
        config.hydra.job.override_dirname = folder_name(
            overrides, list(naming.exclude_keys), naming.item_sep, naming.kv_sep
        )


def _as_single(word: str) -> str:
    return WAITING.sub(r"\1=\2", word)


def _parsed(word: str) -> Override | None:
    """None for what Hydra cannot read: it says so itself."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None
