"""``hydra/sweeper=optuna``: a hyperparameter search with Optuna."""

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Transformer, ValueType
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fcnlab.config.overrides import (
    command_options,
    format_path,
    plain_overrides,
    resume_override,
    shell_join,
    typed_value,
)
from fcnlab.cores import visible_cores
from fcnlab.errors import UserError
from fcnlab.files.reading import display_path, read_json_facts
from fcnlab.files.writing import as_json, atomic_write
from fcnlab.library_internals.hydra import value_of
from fcnlab.runs.settings import JOB_INTERPOLATION, in_few_digits
from fcnlab.sweeps.grid_sweeper import (
    keys_set_by,
    list_hints,
    list_hints_added,
    parse_overrides,
    restore_deferred_settings,
    settings_text,
    unresolved_params,
    write_multirun,
)
from fcnlab.sweeps.job_checks import check_jobs, report_user_errors
from fcnlab.sweeps.job_overrides import SWEEP_KEYS, resuming_option
from fcnlab.sweeps.manifest import NAME as MANIFEST
from fcnlab.sweeps.manifest import describe_difference
from fcnlab.sweeps.refusals import folder_restored_on_refusal
from fcnlab.sweeps.resources import slots_for, visible_gpus
from fcnlab.sweeps.resumed_settings import check_unchanged
from fcnlab.sweeps.search_storage import MOST_TRIALS, STORAGE, open_study

log = logging.getLogger("fcnlab")
RESULTS = "search.json"  # in the sweep's folder
NEW_SEEDS = ("sweep.best=3", "seed=101,102,103")  # of a confirmation, as an example
RECORDED_SETTINGS = ("n_trials", "n_jobs", "direction", "seed")  # a resumed search uses them again unless typed


class OptunaSweeper(Sweeper):
    """Sample settings with Optuna's TPE sampler and pass them to the launcher, ``n_jobs`` trials at a time.

    A trial has the number of its job. If a job is interrupted, its trial stays open in the storage; a resumed search
    runs open trials first, with the same settings.

    Parameters
    ----------
    n_trials
        Number of trials in all, including failed ones.
    n_jobs
        Number of trials sampled at a time. "auto": ``hydra.launcher.slots``, else one per GPU of this machine, else as
        many as its cores allow; set a number with ``submitit_slurm`` or ``gpus_per_job``.
    direction
        "maximize" or "minimize" the score of the jobs.
    seed
        Seed of the sampler; each batch also depends on the number of trials before it.
    params
        A search space by key, in addition to the command line.
    """

    def __init__(self, n_trials: Any, n_jobs: Any, direction: Any, seed: Any, params: Mapping[str, Any] | None = None):
        self.n_trials, self.n_jobs, self.direction, self.seed = n_trials, n_jobs, direction, seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.whole, self.hydra = hydra_context, config, config.hydra
        self.verb, self.params = str(config.hydra.job.config_name), unresolved_params(config)
        restore_deferred_settings(config)
        with report_user_errors(self.verb):
            require_optuna()
            self._check_settings()
            check_not_of_a_grid(config)
            self.folder = Path(config.hydra.sweep.dir).absolute()
            resumes = resuming_option(config) is not None
            if resumes != (self.folder / STORAGE).exists():
                raise UserError(self._folder_error(resumes))
        self.chosen_launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if not hasattr(self.chosen_launcher, "manifest"):
            log.warning(
                "Warning: this search cannot be resumed if it is interrupted, since hydra/launcher=basic writes no %s."
                " Leave hydra/launcher=basic out to be able to resume it",
                MANIFEST,
            )

    def _check_settings(self) -> None:
        limits = {"n_trials": (1, MOST_TRIALS), "n_jobs": (1, MOST_TRIALS), "seed": (0, math.inf)}
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if (name, value) != ("n_jobs", "auto") and (type(value) is not int or not least <= value <= most):
                allowed = f"of at least {least}" if most == math.inf else f"from {least} to {most:,}"
                raise UserError(f"hydra.sweeper.{name}={value} must be a whole number {allowed}")
        if self.direction not in ("maximize", "minimize"):
            raise UserError(f"hydra.sweeper.direction={self.direction} must be maximize or minimize")

    def _folder_error(self, resumes: bool) -> str:
        if resumes:
            return (
                f"sweep.resume={display_path(self.folder)}: the folder contains no search."
                " Leave hydra/sweeper=optuna out"
            )
        if not (self.folder / MANIFEST).exists():
            return (
                f"{display_path(self.folder)} contains a search without a {MANIFEST}, which cannot be resumed. Set"
                " hydra.sweep.dir to a new folder"
            )
        return (
            f"{display_path(self.folder)} already contains a search. Resume it with"
            f" {shell_join([resume_override(self.folder)])}, or set hydra.sweep.dir to a new folder"
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Run all trials; then raise the error of the first failed job, if any."""
        with folder_restored_on_refusal(self.chosen_launcher):
            return self._sweep(arguments)

    def _sweep(self, arguments: list[str]) -> list[JobReturn]:
        with report_user_errors(self.verb):
            overrides = parse_overrides(self.context, self.params, arguments, self.chosen_launcher)
            space, self.fixed = search_space(overrides)
            self.space = {name: format_distribution(name, values) for name, values in space.items()}
            self._check_same_space()
            self.by_number = any(map(JOB_INTERPOLATION.search, self.fixed))  # then no two jobs are equal
            with list_hints_added(overrides):
                self._check_boundaries(space)
            study = self._open()
            check_trials(study, space, display_path(self.folder / STORAGE))
            started = {trial.number: [*self.fixed, *param_overrides(params_of(trial))] for trial in study.trials}
            if len(study.trials) < self.n_trials or not all(trial.state.is_finished() for trial in study.trials):
                check_unchanged(self.context, self.whole, started, getattr(self.chosen_launcher, "manifest", None))
            write_multirun(self.whole)
            self._write(study)
            results: list[JobReturn] = []
            batch = open_trials(study, space)
            while batch or len(study.trials) < self.n_trials:
                batch = batch or self._sample(study, space)
                results += self._run_batch(study, batch)
                batch = {}
            self._report_best(study)
        failed = [job for job in results if job.status != JobStatus.COMPLETED]
        if failed:
            _ = failed[0].return_value  # raises the job's error
        return results

    def _check_same_space(self) -> None:
        """Raise a UserError if a resumed search had another search space."""
        recorded = read_json_facts(self.folder, RESULTS).get("space")
        if isinstance(recorded, dict) and recorded != self.space:
            raise UserError(
                f"{display_path(self.folder)}: the search space differs from that of the recorded search"
                f"{describe_difference(list(map(str, recorded.values())), list(self.space.values()))}\n"
                "Use the same search space, or start a new search in another hydra.sweep.dir"
            )

    def _check_boundaries(self, space: Mapping[str, Any]) -> None:
        """Check each choice and both ends of each range as a job's settings, before the first trial."""
        for params in boundary_params(space):
            overrides, remote = param_overrides(params), getattr(self.chosen_launcher, "remote", True)
            try:
                configs = check_jobs(self.context, self.whole, [[*self.fixed, *overrides]], remote)
            except UserError as error:
                raise UserError(f"{' '.join(overrides)}: {str(error).removeprefix('job 0: ')}") from error
            self.by_number |= any(bool(JOB_INTERPOLATION.search(settings_text(cfg))) for cfg in configs.values())

    def _open(self) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        study = open_study(self.folder / STORAGE, self.direction)
        if study.direction.name.lower() != self.direction:
            raise UserError(
                f"hydra.sweeper.direction={self.direction}: the search in {display_path(self.folder)} has the other"
                " direction. Leave hydra.sweeper.direction out"
            )
        return study

    def _sample(self, study: Any, space: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        """Sample the next batch; return its parameters by trial number."""
        import optuna

        done = len(study.trials)
        study.sampler = optuna.samplers.TPESampler(seed=batch_seed(self.seed, done))
        count = min(self._batch_size(), self.n_trials - done)
        trials = [study.ask(fixed_distributions=dict(space)) for _ in range(count)]
        return {trial.number: params_of(trial) for trial in trials}

    def _batch_size(self) -> int:
        if self.n_jobs != "auto":
            return self.n_jobs
        slots = self.hydra.launcher.get("slots")
        return slots if isinstance(slots, int) else len(visible_gpus(os.environ)) or slots_for(visible_cores())

    def _run_batch(self, study: Any, batch: Mapping[int, Mapping[str, Any]]) -> list[JobReturn]:
        """Launch the trials with new settings; a trial that repeats another gets its score without a run."""
        repeats = {} if self.by_number else find_repeats(study, batch)
        self._write(study)
        results: list[JobReturn] = []
        for numbers in consecutive_groups([number for number in batch if number not in repeats]):
            overrides = [[*self.fixed, *param_overrides(batch[number])] for number in numbers]
            # The search itself reports its end.
            self.chosen_launcher.more_batches = True  # pyright: ignore[reportAttributeAccessIssue]
            jobs = self.chosen_launcher.launch(overrides, initial_job_idx=numbers[0])
            for number, job in zip(numbers, jobs, strict=True):
                record_result(study, number, job)
            results += jobs
        for number, earlier in repeats.items():
            log.info("Trial %d has the same settings as job %d and gets its score", number, earlier)
            copy_result(study, number, earlier)
        self._write(study)
        return results

    def _write(self, study: Any) -> None:
        """Write search.json: the search's settings, its trials, and the best trial."""
        trials = [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "value": trial.value,
                "params": params_of(trial),
            }
            for trial in study.trials
        ]
        facts = {
            "settings": {name: getattr(self, name) for name in RECORDED_SETTINGS},
            "best": best_trial(study),
            "trials": trials,
            "space": self.space,
        }
        with atomic_write(self.folder / RESULTS) as part:
            part.write_text(as_json(facts), encoding="utf-8")

    def _report_best(self, study: Any) -> None:
        best = best_trial(study)
        if best is None:
            log.info("No trial has a score. Sweep folder: %s", display_path(self.folder))
            return
        hydra_overrides = [word for word in plain_overrides(self.hydra.overrides.hydra) if not SWEEP_KEYS.match(word)]
        number = f"hydra.job.num={best['number']}"  # for settings with ${hydra:job.num}
        params = param_overrides(best["params"])
        words = dict.fromkeys([*command_options(self.hydra), *hydra_overrides, number, *self.fixed, *params])
        log.info(
            "Best of %d trials: %.6g (job %d) with %s\n  To rerun the best trial: %s\n  To train the best settings with"
            " new seeds: %s\n  Sweep folder: %s",
            len(study.trials),
            best["value"],
            best["number"],
            " ".join(params),
            shell_join(["fcnlab", self.verb, *(word for word in words if not word.startswith("sweep."))]),
            shell_join(["fcnlab", self.verb, "-m", f"sweep.confirm={format_path(self.folder)}", *NEW_SEEDS]),
            display_path(self.folder),
        )


def check_not_of_a_grid(config: DictConfig) -> None:
    """Check that no setting of a grid search is set: a search would ignore it, and train other settings.

    Raises
    ------
    UserError
        The settings to train are chosen already, as with ``sweep.confirm=`` or ``sweep.extend=``.
    """
    keys = ("sweep.extend", "sweep.confirm", "sweep.added_seeds", "sweep.combinations")
    if chosen := {key: value for key in keys if (value := OmegaConf.select(config, key))}:
        key, value = next(iter(chosen.items()))
        raise UserError(
            f"{key}={value} trains settings that are chosen already, and hydra/sweeper=optuna searches for others."
            " Leave hydra/sweeper=optuna out"
        )


def require_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(f"hydra/sweeper=optuna needs Optuna ({error}): pip install 'fcnlab[search]'") from error


def search_space(overrides: Sequence[Override]) -> tuple[dict[str, Any], list[str]]:
    """Return Optuna's distributions by override key, and the overrides with fixed values.

    Raises
    ------
    UserError
        No setting is searched, a seed or fold is searched, or a distribution is not valid.
    """
    space, fixed = {}, []
    for override in overrides:
        if override.is_sweep_override():
            if override.key_or_group.rpartition(".")[2] == "seed":
                raise UserError(
                    f"{override.input_line}: seeds are not searched, since the search would pick the luckiest one. Use"
                    " one seed, and train the best settings with several seeds afterwards: -m sweep.confirm=FOLDER"
                    " sweep.best=3 seed=101,102,103"
                )
            if "data.fold" in keys_set_by(override):
                raise UserError(
                    f"{override.input_line}: folds are not searched, since the search would pick the easiest one. Use"
                    " one fold, and train the best settings with all folds and new seeds afterwards: -m data.fold=0,1,2"
                    " seed=101,102,103"
                )
            space[override.get_key_element()] = distribution_of(override)
        else:
            fixed.append(str(override.input_line))
    if not space:
        message = (
            "hydra/sweeper=optuna has nothing to search. Add, for example, optim.lr='tag(log,interval(1e-4,1e-2))'"
        )
        raise UserError("\n".join([message, *list_hints(overrides).values()]))
    return space, fixed


def distribution_of(override: Override) -> Any:
    """Return the distribution of an override: of floats, integers (``int(interval(...))``, ranges) or choices.

    Raises
    ------
    UserError
        The override has a tag other than ``log``, or one that is not on an interval; the interval is empty.
    """
    sweep: Any = override.value()
    if getattr(sweep, "shuffle", False):  # a resumed search needs the same order of choices
        sweep = replace(sweep, shuffle=False)
        sweep = ChoiceSweep(list=list_values(replace(override, _value=sweep)))
        override = replace(override, _value=sweep, value_type=ValueType.CHOICE_SWEEP)
    tags = set(getattr(sweep, "tags", ()))
    if tags - {"log"} or (tags and not isinstance(sweep, IntervalSweep)):
        raise UserError(f"{override.input_line}: the only tag allowed in a search is tag(log,interval(LOW,HIGH))")
    try:
        return _distribution(override, sweep, log="log" in tags)
    except ValueError as error:  # Optuna's message about the numbers
        raise UserError(f"{override.input_line}: {error}") from error


def _distribution(override: Override, sweep: Any, log: bool) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(sweep, IntervalSweep):
        numbers: list[Any] = interval_ends(override, sweep)
        options: dict[str, Any] = {"log": log}
    else:
        values = list_values(override)
        if not values:
            raise ValueError("it has no values")
        if not isinstance(sweep, RangeSweep):
            return CategoricalDistribution(values)
        numbers, options = [min(values), max(values)], {"step": abs(sweep.step)}
    whole = all(isinstance(number, int) for number in (*numbers, options.get("step", 1)))
    return (IntDistribution if whole else FloatDistribution)(*numbers, **options)


def interval_ends(override: Override, sweep: IntervalSweep) -> list[Any]:
    """Return the ends of an interval; for ``int(interval(...))`` the least and greatest whole number inside.

    Hydra's ``int()`` truncates the ends, so that ``int(interval(1.5,1.7))`` would contain 1.

    Raises
    ------
    ValueError
        There is no whole number inside.
    """
    if not isinstance(sweep.start, int):
        return [sweep.start, sweep.end]
    text = re.sub(r"\bint\(", "float(", str(override.input_line))
    interval: Any = OverridesParser.create().parse_override(text).value()
    low, high = math.ceil(interval.start), math.floor(interval.end)
    if low > high:
        raise ValueError("there is no whole number in this interval")
    return [low, high]


def list_values(override: Override) -> list[Any]:
    """Return the values of a list or range, as a grid search would use them."""
    values = override.sweep_iterator(Transformer.encode)
    return list(map(in_few_digits, values) if isinstance(value_of(override), RangeSweep) else values)


def format_distribution(name: str, values: Any) -> str:
    """Return a distribution in the syntax of an override, for records and messages."""
    from optuna.distributions import CategoricalDistribution

    if isinstance(values, CategoricalDistribution):
        return f"{name}=choice({','.join(map(_typed_value, values.choices))})"
    ends = f"{_typed_value(values.low)},{_typed_value(values.high)}"
    step = f", every {values.step:g}" if values.step not in (None, 1) else ""
    return f"{name}={'tag(log,' * values.log}interval({ends}){')' * values.log}{step}"


def boundary_params(space: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return parameter sets that contain each choice, and the least and largest value of each range."""
    values = {
        name: list(distribution.choices) if hasattr(distribution, "choices") else [distribution.low, distribution.high]
        for name, distribution in space.items()
    }
    count = max(map(len, values.values()))
    return [{name: ends[min(index, len(ends) - 1)] for name, ends in values.items()} for index in range(count)]


def find_repeats(study: Any, batch: Mapping[int, Mapping[str, Any]]) -> dict[int, int]:
    """Map trials of a batch to an earlier trial with equal settings, which has a score or is in the same batch."""
    from optuna.trial import TrialState

    scored = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    known = {_key(params_of(trial)): trial.number for trial in reversed(scored)}
    return {
        number: first for number, params in batch.items() if (first := known.setdefault(_key(params), number)) != number
    }


def _key(params: Mapping[str, Any]) -> tuple:
    return tuple(sorted(param_overrides(params)))


def consecutive_groups(numbers: Sequence[int]) -> list[list[int]]:
    """Split ascending numbers at gaps, since a launcher numbers its jobs consecutively."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and groups[-1][-1] == number - 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def copy_result(study: Any, number: int, earlier: int) -> None:
    """Give a trial the score and state of an earlier one."""
    trial = study.trials[earlier]
    study.tell(number, trial.value, state=trial.state)


def params_of(trial: Any) -> dict[str, Any]:
    """Return a trial's parameters; values of a range are rounded, since Optuna adds up its steps."""
    steps = {name: getattr(distribution, "step", None) for name, distribution in trial.distributions.items()}
    return {name: in_few_digits(value) if steps[name] else value for name, value in trial.params.items()}


def param_overrides(params: Mapping[str, Any]) -> list[str]:
    """Return a trial's parameters as overrides."""
    return [f"{key}={_typed_value(value)}" for key, value in params.items()]


def _typed_value(value: Any) -> str:
    return value if isinstance(value, str) else typed_value(value)


def batch_seed(seed: int, done: int) -> int:
    """Return the sampler's seed after this number of trials, so that a resumed search does not repeat the first."""
    from numpy.random import SeedSequence

    return int(SeedSequence([seed, done]).generate_state(1)[0])


def check_trials(study: Any, space: Mapping[str, Any], storage: str) -> None:
    """Raise a UserError if a trial of the storage has values outside of the search space.

    The storage may be someone else's file, and its values become overrides. An incomplete trial, whose sampling was
    interrupted, is accepted.
    """
    for trial in study.trials:
        if any(space.get(name) != distribution for name, distribution in trial.distributions.items()):
            raise UserError(
                f"{storage} contains trials of another search space. Start a new search in another hydra.sweep.dir"
            )


def open_trials(study: Any, space: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the parameters of trials without a result; mark incompletely sampled trials as failed."""
    from optuna.trial import TrialState

    params = {}
    for trial in study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING)):
        if set(trial.params) == set(space):
            params[trial.number] = params_of(trial)
        else:
            log.warning("Trial %d was not completely sampled when the search ended; it counts as failed", trial.number)
            study.tell(trial.number, state=TrialState.FAIL)
    return params


def record_result(study: Any, number: int, job: JobReturn) -> None:
    """Record a job's score in its trial; without a finite score the trial has failed."""
    from optuna.trial import TrialState

    value = job.return_value if job.status == JobStatus.COMPLETED else None
    if isinstance(value, (int, float)) and math.isfinite(value):
        study.tell(number, float(value))
    else:
        study.tell(number, state=TrialState.FAIL)


def best_trial(study: Any) -> dict[str, Any] | None:
    """Return the number, score and parameters of the best trial; None if no trial has a score."""
    from optuna.trial import TrialState

    if not study.get_trials(states=(TrialState.COMPLETE,)):
        return None
    best = study.best_trial
    return {"number": best.number, "value": best.value, "params": params_of(best)}
