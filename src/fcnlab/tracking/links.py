"""Links between a training run and its evaluations in W&B: one group, and each has the other's address."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from lightning.pytorch.loggers import Logger

from fcnlab.runs.score_record import ID
from fcnlab.tracking.accepted_values import FORBIDDEN_IN_PROJECT, MAX_NAME, MAX_PROJECT
from fcnlab.tracking.bounded_calls import within
from fcnlab.tracking.mirror import Mirror, attempt, errors_as_warnings

TIMEOUT = 10.0  # seconds, of all requests that add a link


class TrackedRun(NamedTuple):
    """A run in W&B. ``entity`` is None if an offline run does not know it; ``group`` if the run is in no group."""

    id: str
    project: str
    entity: str | None = None
    group: str | None = None

    @property
    def address(self) -> str:
        """``ENTITY/PROJECT/ID``, without an unknown entity."""
        return "/".join(part for part in (self.entity, self.project, self.id) if part)


def mirrors(loggers: Iterable[Logger]) -> Iterator[Mirror]:
    """Yield the W&B loggers; on other processes than the first, there are none."""
    yield from (logger for logger in loggers if isinstance(logger, Mirror))


def tracked_run(loggers: Iterable[Logger]) -> dict[str, Any] | None:
    """Return the facts of this run in W&B for its records; None if it is not logged there."""
    for logger in mirrors(loggers):
        run = logger.experiment
        if run.disabled:
            return None
        return TrackedRun(run.id, run.project, run.entity or None, run.group or None)._asdict()
    return None


def recorded_run(record: Any) -> TrackedRun | None:
    """Return the run in W&B that a checkpoint or a record names; None unless it has the form that fcnlab writes."""
    if not isinstance(record, Mapping):
        return None
    values: list[Any] = [record.get(name) for name in TrackedRun._fields]
    run = TrackedRun(*values)
    places = [run.project, *([] if run.entity is None else [run.entity])]
    is_valid = (
        isinstance(run.id, str)
        and ID.fullmatch(run.id)
        and all(isinstance(place, str) and _is_name(place, MAX_PROJECT) for place in places)
        and (run.group is None or (isinstance(run.group, str) and 0 < len(run.group) <= MAX_NAME))
    )
    return run if is_valid else None


def _is_name(text: str, most: int) -> bool:
    return 0 < len(text) <= most and text.isprintable() and not FORBIDDEN_IN_PROJECT.search(text)


def common_group(runs: Sequence[TrackedRun]) -> str | None:
    """Return the group for an evaluation of these runs: theirs, or the id of a run without one; None if they differ."""
    groups = {run.group or run.id for run in runs}
    return groups.pop() if len(groups) == 1 else None


def scored_runs(trained: Iterable[Mapping[str, Any]]) -> dict[str, TrackedRun]:
    """Return the training runs in W&B of some checkpoints, by the ids of their records.

    ``trained`` are the descriptions in the checkpoints, which the record of an evaluation repeats
    (:mod:`fcnlab.runs.lineage`).
    """
    found = ((each.get("run"), recorded_run(each.get("wandb_run"))) for each in trained)
    return {run_id: run for run_id, run in found if isinstance(run_id, str) and run}


def scored_run_config(scored: Sequence[TrackedRun]) -> dict[str, str]:
    """Return what the config of an evaluation says of the runs that it scores: their addresses."""
    return {"scored_run": ", ".join(run.address for run in scored)} if scored else {}


def run_config(run_id: str | None) -> dict[str, str | None]:
    """Return what the config of a training run says of its record: the id."""
    return {"run": run_id}


def describe_run(loggers: Iterable[Logger], run_id: str | None) -> None:
    """Log the id of a run's record, by which :func:`add_links` recognises the run.

    Other processes than the first may not know the id, and log nothing.
    """
    for logger in mirrors(loggers):
        attempt("facts", partial(logger.experiment.config.update, run_config(run_id), allow_val_change=True))


def add_links(loggers: Iterable[Logger], scored: Mapping[str, TrackedRun]) -> None:
    """Add the address of this evaluation to the training runs that it scores, by the id of their records.

    A run without a group gets the one of the evaluation, its own id. Offline, nothing is asked. A checkpoint may come
    from someone else, so only runs in the project of this evaluation are changed, and only if they have the id of the
    checkpoint's record.
    """
    for logger in mirrors(loggers):
        own = logger.experiment
        for run_id, run in scored.items():
            if own.offline or own.disabled or run.project != own.project or run.entity not in (None, own.entity):
                continue
            with errors_as_warnings("links"):
                within(TIMEOUT, _add_link, own, run, run_id)


def _add_link(evaluation: Any, scored: TrackedRun, run_id: str) -> None:
    import wandb

    training = wandb.Api(timeout=int(TIMEOUT)).run(f"{evaluation.entity}/{evaluation.project}/{scored.id}")
    if training.config.get("run") != run_id:
        raise ValueError(f"the run {scored.id} is not the one that the checkpoint comes from")
    address = TrackedRun(evaluation.id, evaluation.project, evaluation.entity).address
    training.summary[f"evaluations/{evaluation.id}"] = address
    if training.group or evaluation.group != scored.id:
        training.summary.update()
    else:
        training.group = scored.id  # pyright: ignore[reportAttributeAccessIssue]  update() sends it
        training.update()  # the summary, too
