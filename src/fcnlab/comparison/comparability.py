"""Which runs' numbers mean the same: one protocol, one ground truth, the same images."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy import ndarray

from fcnlab.comparison.intervals import FEWEST_IMAGES
from fcnlab.comparison.runs import SAME, ExcludedRun, Run
from fcnlab.errors import UserError
from fcnlab.metrics.conventions import ClassAreas
from fcnlab.metrics.scores import scores_of_areas


def split_comparable(runs: Sequence[Run]) -> tuple[list[Run], list[ExcludedRun]]:
    """The runs whose numbers mean what those of most runs do, and the others with what is different.

    The classes, the protocol and the truth of each image must be the same; the images need not all be.
    """
    reference = _usual(runs)
    usual, alike, refused = _kind(reference), [], []
    for run in runs:
        difference = None if _kind(run) == usual else _difference(run, reference)
        if difference:
            refused.append(ExcludedRun(run.folder, f"not comparable: {difference}"))
        else:
            alike.append(run)
    return alike, refused


def _usual(runs: Sequence[Run]) -> Run:
    """The first run of the kind of which there are most."""
    kinds = [_kind(run) for run in runs]
    return runs[kinds.index(Counter(kinds).most_common(1)[0][0])]


def _kind(run: Run) -> tuple:
    return run.classes, *(str(run.protocol.get(key)) for key in SAME), run.names, run.target_digest


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
        return f"it has no image in common with {reference.folder}"
    targets = [_rows(one, common, one.areas.target) for one in (run, reference)]
    other = np.flatnonzero((targets[0] != targets[1]).any(axis=1))
    if len(other):
        return f"the labels of {len(other)} of its images, such as {common[other[0]]}, are others than {where}"
    return None


def _rows(run: Run, names: tuple[str, ...], areas: ndarray) -> ndarray:
    """The rows of some images."""
    if names == run.names:
        return areas
    places = {name: place for place, name in enumerate(run.names)}
    return areas[[places[name] for name in names]]


def restrict_to_common_images(runs: Sequence[Run]) -> tuple[list[Run], list[ExcludedRun]]:
    """Comparable runs with the areas and scores of the images that all of them have, and runs that are left out.

    It begins with the images of the usual kind of run. A run joins if at least ``FEWEST_IMAGES`` remain common to
    all (one, where there are fewer to begin with), those with most in common first: else one run on a handful of
    images would leave no image to the others.

    Raises
    ------
    UserError
        The common images have no pixel that counts.
    """
    runs, refused = split_comparable(runs)
    usual = _usual(runs).names
    common, least = set(usual), FEWEST_IMAGES if len(usual) >= FEWEST_IMAGES else 1
    joined = set()
    for run in sorted(runs, key=lambda run: -len(set(usual).intersection(run.names))):
        both = common.intersection(run.names)
        if len(both) >= least:
            common = both
            joined.add(run.folder)
        else:
            refused.append(ExcludedRun(run.folder, _too_few(len(both), len(common))))
    names = tuple(name for name in usual if name in common)
    return [_on(run, names) for run in runs if run.folder in joined], refused


def _too_few(both: int, others: int) -> str:
    return (
        f"has {both} of the {others} images that the others have in common, and a comparison needs {FEWEST_IMAGES}:"
        " compare it by itself, with runs= of its kind"
    )


def _on(run: Run, names: tuple[str, ...]) -> Run:
    """A run as if it had been scored on some of its images."""
    if names == run.names:
        return run
    areas = ClassAreas(*(_rows(run, names, area) for area in run.areas))
    if not areas.target.any():
        raise UserError(f"the {len(names)} images that all runs have in common have no pixel that counts")
    return replace(run, names=names, areas=areas, scores=scores_of_areas(*(area.sum(axis=0) for area in areas)))
