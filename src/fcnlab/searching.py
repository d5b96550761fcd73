"""``hydra/sweeper=optuna``: jobs whose settings follow from the scores of those before them."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Transformer, ValueType
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fcnlab.cores import visible_cores
from fcnlab.errors import UserError, first_line
from fcnlab.in_place import check_own
from fcnlab.launching.grid import params_as_written, read_words, restore_deferred, settings_text, write_multirun
from fcnlab.launching.launchers import OF_THE_SWEEP, check_jobs, check_unchanged, told_plainly
from fcnlab.launching.manifest import difference, facts_of, resuming, shown
from fcnlab.launching.places import slots_for, visible_gpus
from fcnlab.launching.processes import as_typed, options, typed
from fcnlab.results.settings import OF_THE_JOB, in_few_digits

log = logging.getLogger("fcnlab")
STORAGE, RESULTS = "search.db", "search.json"  # in the sweep's folder
NAME = "fcnlab"  # of the one study in the storage
KEPT = ("n_trials", "n_jobs", "direction", "seed")  # settings that a search goes on with, unless they are typed


class Search(Sweeper):
    """Draws settings by Optuna's TPE and hands them to the launcher, ``n_jobs`` at a time.

    Optuna's trials bear the numbers of their jobs. A trial whose job was stopped stays open in the storage: where the
    search goes on, it is the first to be launched again, with the settings that it had.

    Parameters
    ----------
    n_trials
        How many in all, failed ones among them.
    n_jobs
        A number, or "auto": as many as the launcher runs at a time.
    direction
        "maximize" or "minimize" what the jobs return.
    seed
        Of the draws; the next ones depend on it and on what the storage holds.
    params
        A search space by key, beside the command line's.
    """

    def __init__(self, n_trials: Any, n_jobs: Any, direction: Any, seed: Any, params: Mapping[str, Any] | None = None):
        self.n_trials, self.n_jobs, self.direction, self.seed = n_trials, n_jobs, direction, seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.whole, self.hydra = hydra_context, config, config.hydra
        self.verb, self.params = str(config.hydra.job.config_name), params_as_written(config)
        restore_deferred(config)
        with told_plainly(self.verb):
            need_optuna()
            self._check_settings()
            self.folder = Path(config.hydra.sweep.dir).absolute()
            goes_on = bool(OmegaConf.select(config, "sweep.resume"))
            if goes_on != (self.folder / STORAGE).exists():
                raise UserError(self._why_not(goes_on))
        self.chosen_launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def _check_settings(self) -> None:
        for name in ("n_trials", "n_jobs", "seed"):
            value, least = getattr(self, name), int(name != "seed")
            if (name, value) != ("n_jobs", "auto") and (type(value) is not int or value < least):
                raise UserError(f"hydra.sweeper.{name}={value}: give a whole number of at least {least}")
        if self.direction not in ("maximize", "minimize"):
            raise UserError(f"hydra.sweeper.direction={self.direction}: give maximize or minimize")

    def _why_not(self, goes_on: bool) -> str:
        if goes_on:
            return f"sweep.resume={shown(self.folder)}: no search is there: leave hydra/sweeper=optuna out"
        return (
            f"{shown(self.folder)} holds a search already: go on with it by {typed([resuming(self.folder)])}, or leave"
            " hydra.sweep.dir to a new folder"
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Launch batch after batch; raise what the first failed job says once all are done."""
        with told_plainly(self.verb):
            space, self.fixed = space_of(read_words(self.context, self.params, arguments, self.chosen_launcher))
            self.space = {name: space_word(name, values) for name, values in space.items()}
            self._check_same_space()
            self.by_number = any(map(OF_THE_JOB.search, self.fixed))  # no two jobs are equal, whatever is drawn
            self._check_ends(space)
            study = self._open()
            check_trials(study, space, shown(self.folder / STORAGE))
            begun = {trial.number: [*self.fixed, *words_of(params_of(trial))] for trial in study.trials}
            check_unchanged(self.context, self.whole, begun, self.chosen_launcher)
            write_multirun(self.whole)
            self._write(study)
            returned: list[JobReturn] = []
            batch = still_open(study, space)
            while batch or len(study.trials) < self.n_trials:
                batch = batch or self._draw(study, space)
                returned += self._work_off(study, batch)
                batch = {}
            self._conclude(study)
        failed = [job for job in returned if job.status != JobStatus.COMPLETED]
        if failed:
            _ = failed[0].return_value  # which raises
        return returned

    def _check_same_space(self) -> None:
        """Refuse to go on with another search space, before a trial is drawn from it."""
        before = facts_of(self.folder, RESULTS).get("space")
        if isinstance(before, dict) and before != self.space:
            raise UserError(
                f"{shown(self.folder)}: that search has another space"
                f"{difference(list(map(str, before.values())), list(self.space.values()))}\n"
                "Give the same, or begin a new search in another hydra.sweep.dir"
            )

    def _check_ends(self, space: Mapping[str, Any]) -> None:
        """Have each choice, and both ends of each range, checked as a job would be: before the first trial."""
        for params in ends_of(space):
            words, elsewhere = words_of(params), getattr(self.chosen_launcher, "elsewhere", True)
            try:
                configs = check_jobs(self.context, self.whole, [[*self.fixed, *words]], 0, elsewhere)
            except UserError as error:
                raise UserError(f"{' '.join(words)}: {str(error).removeprefix('job 0: ')}") from error
            self.by_number |= any(bool(OF_THE_JOB.search(settings_text(cfg))) for cfg in configs.values())

    def _open(self) -> Any:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.folder.mkdir(parents=True, exist_ok=True)
        for ending in ("", "-journal", "-wal", "-shm"):  # SQLite writes to these in place
            check_own(self.folder / f"{STORAGE}{ending}")
        try:
            study = optuna.create_study(
                storage=f"sqlite:///{self.folder / STORAGE}",
                study_name=NAME,
                direction=self.direction,
                load_if_exists=True,
            )
            _ = study.trials  # which a damaged file may lack
        except Exception as error:  # SQLAlchemy's, alembic's and Optuna's, of a dozen kinds
            raise UserError(
                f"{shown(self.folder / STORAGE)} is no storage of a search that could be read ({first_line(error)}):"
                " restore it, or begin a new search in another hydra.sweep.dir"
            ) from error
        if study.direction.name.lower() != self.direction:
            raise UserError(
                f"hydra.sweeper.direction={self.direction}: the search in {shown(self.folder)} has another one; leave"
                " it out"
            )
        return study

    def _draw(self, study: Any, space: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        """The next trials' parameters by their numbers; each batch has a seed of its own, whatever came before."""
        import optuna

        begun = len(study.trials)
        study.sampler = optuna.samplers.TPESampler(seed=seed_of(self.seed, begun))
        count = min(self._at_a_time(), self.n_trials - begun)
        trials = [study.ask(fixed_distributions=dict(space)) for _ in range(count)]
        return {trial.number: params_of(trial) for trial in trials}

    def _at_a_time(self) -> int:
        if self.n_jobs != "auto":
            return self.n_jobs
        slots = self.hydra.launcher.get("slots")
        return slots if isinstance(slots, int) else len(visible_gpus(os.environ)) or slots_for(visible_cores())

    def _work_off(self, study: Any, batch: Mapping[int, Mapping[str, Any]]) -> list[JobReturn]:
        """Launch the trials whose settings are new; equal settings give equal runs, so the others have their scores."""
        repeats = {} if self.by_number else repeats_in(study, batch)
        self._write(study)
        returned: list[JobReturn] = []
        for numbers in in_a_row([number for number in batch if number not in repeats]):
            words = [[*self.fixed, *words_of(batch[number])] for number in numbers]
            # The search itself says when it has ended.
            self.chosen_launcher.more_to_come = True  # pyright: ignore[reportAttributeAccessIssue]
            jobs = self.chosen_launcher.launch(words, initial_job_idx=numbers[0])
            for number, job in zip(numbers, jobs, strict=True):
                tell(study, number, job)
            returned += jobs
        for number, before in repeats.items():
            log.info("Trial %d has the settings of job %d, and so its score", number, before)
            repeat(study, number, before)
        self._write(study)
        return returned

    def _write(self, study: Any) -> None:
        """search.json: the settings to go on with, the trials, and the best of them."""
        from fcnlab.results.record import as_json, aside  # numpy comes with it

        trials = [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "value": trial.value,
                "params": params_of(trial),
            }
            for trial in study.trials
        ]
        facts = {"settings": {name: getattr(self, name) for name in KEPT}, "best": best_of(study), "trials": trials}
        facts["space"] = self.space
        with aside(self.folder / RESULTS) as part:
            part.write_text(as_json(facts), encoding="utf-8")

    def _conclude(self, study: Any) -> None:
        best = best_of(study)
        if best is None:
            log.info("No trial has a score. The search: %s", shown(self.folder))
            return
        of_hydra = [word for word in as_typed(self.hydra.overrides.hydra) if not OF_THE_SWEEP.match(word)]
        number = f"hydra.job.num={best['number']}"  # which ${hydra:job.num} means
        words = dict.fromkeys([*options(self.hydra), *of_hydra, number, *self.fixed, *words_of(best["params"])])
        log.info(
            "Best of %d trials: %.6g (job %d) with %s\n  To repeat it: %s\n  The search: %s",
            len(study.trials),
            best["value"],
            best["number"],
            " ".join(words_of(best["params"])),
            typed(["fcnlab", self.verb, *(word for word in words if not word.startswith("sweep."))]),
            shown(self.folder),
        )


def need_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(f"hydra/sweeper=optuna needs Optuna ({error}): pip install 'fcnlab[search]'") from error


def space_of(overrides: Sequence[Override]) -> tuple[dict[str, Any], list[str]]:
    """What is searched, as Optuna's distributions by the words before the "=", and the words of the rest.

    Raises
    ------
    UserError
        Nothing is searched, or a word does not say what.
    """
    space, fixed = {}, []
    for override in overrides:
        if override.is_sweep_override():
            if override.key_or_group.rpartition(".")[2] == "seed":
                raise UserError(
                    f"{override.input_line}: a search would choose the luckiest seed. Give one; then train the best"
                    " settings with several, by -m seed=1,2,3 without hydra/sweeper=optuna"
                )
            space[override.get_key_element()] = distribution_of(override)
        else:
            fixed.append(str(override.input_line))
    if not space:
        raise UserError("hydra/sweeper=optuna has nothing to search: add, say, optim.lr='tag(log,interval(1e-4,1e-2))'")
    return space, fixed


def distribution_of(override: Override) -> Any:
    """An interval is continuous, an ``int(interval(...))`` is not; a range has Hydra's values; the rest is a choice.

    Raises
    ------
    UserError
        The word is tagged by anything but ``log``, or that belongs to another kind of word; an interval is empty.
    """
    sweep: Any = override.value()
    if getattr(sweep, "shuffle", False):  # the order of choices means nothing, and must be the same when it goes on
        sweep = replace(sweep, shuffle=False)
        sweep = ChoiceSweep(list=listed(replace(override, _value=sweep)))
        override = replace(override, _value=sweep, value_type=ValueType.CHOICE_SWEEP)
    tags = set(getattr(sweep, "tags", ()))
    if tags - {"log"} or (tags and not isinstance(sweep, IntervalSweep)):
        raise UserError(f"{override.input_line}: the one tag that a search knows is tag(log,interval(LOW,HIGH))")
    try:
        return _distribution(override, sweep, log="log" in tags)
    except ValueError as error:  # Optuna's own words about the numbers
        raise UserError(f"{override.input_line}: {error}") from error


def _distribution(override: Override, sweep: Any, log: bool) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(sweep, IntervalSweep):
        numbers: list[Any] = [sweep.start, sweep.end]
        further: dict[str, Any] = {"log": log}
    else:
        values = listed(override)
        if not values:
            raise ValueError("it has no value")
        if not isinstance(sweep, RangeSweep):
            return CategoricalDistribution(values)
        numbers, further = [min(values), max(values)], {"step": abs(sweep.step)}
    whole = all(isinstance(number, int) for number in (*numbers, further.get("step", 1)))
    return (IntDistribution if whole else FloatDistribution)(*numbers, **further)


def listed(override: Override) -> list[Any]:
    """The values of a list or range, as jobs of a sweep would have them."""
    values = override.sweep_iterator(Transformer.encode)
    return list(map(in_few_digits, values) if isinstance(override._value, RangeSweep) else values)


def space_word(name: str, values: Any) -> str:
    """What is searched, as it would be typed."""
    from optuna.distributions import CategoricalDistribution

    if isinstance(values, CategoricalDistribution):
        return f"{name}=choice({','.join(map(_typed_value, values.choices))})"
    ends = f"{_typed_value(values.low)},{_typed_value(values.high)}"
    step = f", every {values.step:g}" if values.step not in (None, 1) else ""
    return f"{name}={'tag(log,' * values.log}interval({ends}){')' * values.log}{step}"


def ends_of(space: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Settings in which each choice, and the least and the largest of each range, occurs once at least."""
    values = {
        name: list(found.choices) if hasattr(found, "choices") else [found.low, found.high]
        for name, found in space.items()
    }
    most = max(map(len, values.values()))
    return [{name: found[min(place, len(found) - 1)] for name, found in values.items()} for place in range(most)]


def repeats_in(study: Any, batch: Mapping[int, Mapping[str, Any]]) -> dict[int, int]:
    """The trials of a batch that have the settings of a trial before them, which has a score or is in the batch."""
    from optuna.trial import TrialState

    scored = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    known = {_key(params_of(trial)): trial.number for trial in reversed(scored)}
    return {
        number: first for number, params in batch.items() if (first := known.setdefault(_key(params), number)) != number
    }


def _key(params: Mapping[str, Any]) -> tuple:
    return tuple(sorted(words_of(params)))


def in_a_row(numbers: Sequence[int]) -> list[list[int]]:
    """Numbers in runs without a gap: a launcher counts its jobs on from the first."""
    rows: list[list[int]] = []
    for number in numbers:
        if rows and rows[-1][-1] == number - 1:
            rows[-1].append(number)
        else:
            rows.append([number])
    return rows


def repeat(study: Any, number: int, before: int) -> None:
    """End a trial as the one before it ended."""
    first = study.trials[before]
    study.tell(number, first.value, state=first.state)


def params_of(trial: Any) -> dict[str, Any]:
    """A trial's parameters; of a range, whose steps Optuna adds up, the values that a list of them has."""
    steps = {name: getattr(values, "step", None) for name, values in trial.distributions.items()}
    return {name: in_few_digits(value) if steps[name] else value for name, value in trial.params.items()}


def words_of(params: Mapping[str, Any]) -> list[str]:
    """A trial's parameters as they are typed."""
    return [f"{key}={_typed_value(value)}" for key, value in params.items()]


def _typed_value(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def seed_of(seed: int, begun: int) -> int:
    """A seed for the draws after so many trials: going on must not draw the first ones again."""
    from numpy.random import SeedSequence

    return int(SeedSequence([seed, begun]).generate_state(1)[0])


def check_trials(study: Any, space: Mapping[str, Any], storage: str) -> None:
    """Refuse a storage whose trials name other values than may be chosen: it may be anybody's, and they become words.

    Raises
    ------
    UserError
        There is such a trial; one that was being drawn when all ended lacks some settings, and is none.
    """
    for trial in study.trials:
        if any(space.get(name) != drawn_from for name, drawn_from in trial.distributions.items()):
            raise UserError(f"{storage} holds trials of other settings than this search has: it is refused")


def still_open(study: Any, space: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The trials that were drawn and whose end is not known; one that was being drawn when all ended is given up."""
    from optuna.trial import TrialState

    found = {}
    for trial in study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING)):
        if set(trial.params) == set(space):
            found[trial.number] = params_of(trial)
        else:
            log.warning("Trial %d was being drawn when the search ended, and never ran: it is given up", trial.number)
            study.tell(trial.number, state=TrialState.FAIL)
    return found


def tell(study: Any, number: int, job: JobReturn) -> None:
    """Hand a job's score to its trial; it has failed where there is none."""
    from optuna.trial import TrialState

    value = job.return_value if job.status == JobStatus.COMPLETED else None
    if isinstance(value, (int, float)) and math.isfinite(value):
        study.tell(number, float(value))
    else:
        study.tell(number, state=TrialState.FAIL)


def best_of(study: Any) -> dict[str, Any] | None:
    """The number, score and parameters of the best trial, if any has ended well."""
    from optuna.trial import TrialState

    if not study.get_trials(states=(TrialState.COMPLETE,)):
        return None
    best = study.best_trial
    return {"number": best.number, "value": best.value, "params": params_of(best)}
