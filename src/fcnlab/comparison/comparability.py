"""Select runs with comparable scores: same protocol, same ground truth, common images."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy import ndarray

from fcnlab.comparison.intervals import FEWEST_IMAGES
from fcnlab.comparison.runs import COMPARABLE_PROTOCOL, ExcludedRun, Run
from fcnlab.errors import UserError
from fcnlab.metrics.conventions import ClassAreas
from fcnlab.metrics.scores import scores_of_areas


def split_comparable(runs: Sequence[Run]) -> tuple[list[Run], list[ExcludedRun]]:
    """Return the runs that are comparable with most runs, and the others with the difference.

    The classes, the protocol and the ground truth of each image must agree; the sets of images may differ.
    """
    reference = _reference_run(runs)
    usual_kind, comparable, excluded = _kind(reference), [], []
    for run in runs:
        difference = None if _kind(run) == usual_kind else _difference(run, reference)
        if difference:
            excluded.append(ExcludedRun(run.folder, f"not comparable: {difference}"))
        else:
            comparable.append(run)
    return comparable, excluded


def _reference_run(runs: Sequence[Run]) -> Run:
    """Return the first run of the most frequent kind."""
    kinds = [_kind(run) for run in runs]
    return runs[kinds.index(Counter(kinds).most_common(1)[0][0])]


def _kind(run: Run) -> tuple:
    return run.classes, *(str(run.protocol.get(key)) for key in COMPARABLE_PROTOCOL), run.names, run.target_digest


def _difference(run: Run, reference: Run) -> str | None:
    where = f"in {reference.folder}"
    for key in COMPARABLE_PROTOCOL:
        value, usual_value = str(run.protocol.get(key)), str(reference.protocol.get(key))
        if value != usual_value:
            return f"its {key} is {value!r}, but {usual_value!r} {where}"
    if run.classes != reference.classes:
        lacking = set(reference.classes) ^ set(run.classes)
        difference = f"they differ in {', '.join(sorted(lacking)[:4])}" if lacking else "their order differs"
        return f"it has {len(run.classes)} classes, but there are {len(reference.classes)} {where}: {difference}"
    usual_names = set(reference.names)
    common = tuple(name for name in run.names if name in usual_names)
    if not common:
        return f"it has no image in common with {reference.folder}"
    targets = [_rows(each, common, each.areas.target) for each in (run, reference)]
    differing = np.flatnonzero((targets[0] != targets[1]).any(axis=1))
    if len(differing):
        example = common[differing[0]]
        return f"the ground truth of {len(differing)} of its images, such as {example}, differs from that {where}"
    return None


def _rows(run: Run, names: tuple[str, ...], areas: ndarray) -> ndarray:
    """Return the rows of some images."""
    if names == run.names:
        return areas
    indices = {name: index for index, name in enumerate(run.names)}
    return areas[[indices[name] for name in names]]


def restrict_to_common_images(runs: Sequence[Run]) -> tuple[list[Run], list[ExcludedRun]]:
    """Return comparable runs restricted to their common images, and the excluded runs.

    Start with the images of the most frequent kind of run. Add runs, those with most images in common first, while at
    least ``FEWEST_IMAGES`` images remain common to all (one, if there are fewer at the start). Otherwise one run on few
    images would leave no images to the others.

    Raises
    ------
    UserError
        All pixels of the common images are ignored.
    """
    runs, excluded = split_comparable(runs)
    usual = _reference_run(runs).names
    common, least = set(usual), FEWEST_IMAGES if len(usual) >= FEWEST_IMAGES else 1
    joined = set()
    for run in sorted(runs, key=lambda run: -len(set(usual).intersection(run.names))):
        shared = common.intersection(run.names)
        if len(shared) >= least:
            common = shared
            joined.add(run.folder)
        else:
            excluded.append(ExcludedRun(run.folder, _too_few(len(shared), len(common))))
    names = tuple(name for name in usual if name in common)
    return [_on(run, names) for run in runs if run.folder in joined], excluded


def _too_few(shared: int, common: int) -> str:
    return (
        f"it has {shared} of the {common} images that the other runs share, but a comparison needs {FEWEST_IMAGES}:"
        " compare it separately, with runs on the same images"
    )


def _on(run: Run, names: tuple[str, ...]) -> Run:
    """Return a run with the areas and scores of some of its images."""
    if names == run.names:
        return run
    areas = ClassAreas(*(_rows(run, names, area) for area in run.areas))
    if not areas.target.any():
        raise UserError(
            f"all pixels of the {len(names)} images that all runs share are ignored: there is nothing to compare"
        )
    return replace(run, names=names, areas=areas, scores=scores_of_areas(*(area.sum(axis=0) for area in areas)))
