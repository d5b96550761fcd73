"""Which runs' numbers mean the same: one protocol, one ground truth, the same pictures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy import ndarray

from fcnlab.errors import UserError
from fcnlab.results.intervals import FEWEST_PICTURES
from fcnlab.results.passport import Areas
from fcnlab.results.runs import SAME, LeftOut, Run
from fcnlab.results.scores import scores_of_areas


def only_comparable(runs: Sequence[Run]) -> tuple[list[Run], list[LeftOut]]:
    """The runs whose numbers mean what those of most runs do, and the others with what is different.

    The classes, the protocol and the truth of each picture must be the same; the pictures need not all be.
    """
    reference = _usual(runs)
    usual, alike, refused = _kind(reference), [], []
    for run in runs:
        difference = None if _kind(run) == usual else _difference(run, reference)
        if difference:
            refused.append(LeftOut(run.folder, f"not comparable: {difference}"))
        else:
            alike.append(run)
    return alike, refused


def _usual(runs: Sequence[Run]) -> Run:
    """The first run of the kind of which there are most."""
    kinds = [_kind(run) for run in runs]
    return runs[kinds.index(Counter(kinds).most_common(1)[0][0])]


def _kind(run: Run) -> tuple:
    return run.classes, *(str(run.protocol.get(key)) for key in SAME), run.names, run.truth_digest


def _difference(run: Run, reference: Run) -> str | None:
    where = f"in {reference.folder}"
    for key in SAME:
        ours, usual = str(run.protocol.get(key)), str(reference.protocol.get(key))
        if ours != usual:
            return f"its {key.replace('_', ' ')} is {ours!r}, {usual!r} {where}"
    if run.classes != reference.classes:
        lacking = set(reference.classes) ^ set(run.classes)
        what = f"they differ in {', '.join(sorted(lacking)[:4])}" if lacking else "their order differs"
        return f"it has {len(run.classes)} classes, {len(reference.classes)} {where}: {what}"
    usual_names = set(reference.names)
    common = tuple(name for name in run.names if name in usual_names)
    if not common:
        return f"it has no picture in common with {reference.folder}"
    truths = [_rows(one, common, one.areas.truth) for one in (run, reference)]
    other = np.flatnonzero((truths[0] != truths[1]).any(axis=1))
    if len(other):
        return f"the labels of {len(other)} of its pictures, such as {common[other[0]]}, are others than {where}"
    return None


def _rows(run: Run, names: tuple[str, ...], areas: ndarray) -> ndarray:
    """The rows of some pictures."""
    if names == run.names:
        return areas
    places = {name: place for place, name in enumerate(run.names)}
    return areas[[places[name] for name in names]]


def on_common_pictures(runs: Sequence[Run]) -> tuple[list[Run], list[LeftOut]]:
    """Comparable runs with the areas and scores of the pictures that all of them have, and runs that are left out.

    It begins with the pictures of the usual kind of run. A run joins if at least ``FEWEST_PICTURES`` remain common to
    all (one, where there are fewer to begin with), those with most in common first: else one run on a handful of
    pictures would leave no picture to the others.

    Raises
    ------
    UserError
        The common pictures have no pixel that counts.
    """
    runs, refused = only_comparable(runs)
    usual = _usual(runs).names
    common, least = set(usual), FEWEST_PICTURES if len(usual) >= FEWEST_PICTURES else 1
    joined = set()
    for run in sorted(runs, key=lambda run: -len(set(usual).intersection(run.names))):
        both = common.intersection(run.names)
        if len(both) >= least:
            common = both
            joined.add(run.folder)
        else:
            refused.append(LeftOut(run.folder, _too_few(len(both), len(common))))
    names = tuple(name for name in usual if name in common)
    return [_on(run, names) for run in runs if run.folder in joined], refused


def _too_few(both: int, others: int) -> str:
    return (
        f"has {both} of the {others} pictures that the others have in common, and a comparison needs {FEWEST_PICTURES}:"
        " compare it by itself, with runs= of its kind"
    )


def _on(run: Run, names: tuple[str, ...]) -> Run:
    """A run as if it had been scored on some of its pictures."""
    if names == run.names:
        return run
    areas = Areas(*(_rows(run, names, area) for area in run.areas))
    if not areas.truth.any():
        raise UserError(f"the {len(names)} pictures that all runs have in common have no pixel that counts")
    return replace(run, names=names, areas=areas, scores=scores_of_areas(*(area.sum(axis=0) for area in areas)))
