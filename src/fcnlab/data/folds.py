"""Folds for cross-validation and subsets of a list of images, by a hash of their names.

The hash depends on the name alone, so folds and subsets are the same on every machine, and a new image moves no other
one. Only stratified folds depend on all images of the list.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from fcnlab.cores import visible_cores
from fcnlab.data.dataset import SegmentationDataset
from fcnlab.data.image_files import DataError
from fcnlab.data.patterns import shortest_name_in

GROUP = "{group}"


def hash_of_name(name: str, purpose: str) -> int:
    """Return a number of 64 bits; numbers for two purposes are independent."""
    digest = blake2b(name.encode(errors="surrogateescape"), digest_size=8, key=purpose.encode()).digest()
    return int.from_bytes(digest, "big")


@dataclass(frozen=True)
class Folds:
    """Which images of a list are held out for validation, and which of the others are trained on.

    Attributes
    ----------
    count, fold
        Number of folds, and the one that is held out, from 0; None for no folds.
    group
        A pattern of names with ``{group}``: images of one group stay together. ``{group}`` is the text up to the first
        place where the rest of the pattern fits: patient1 in patient1_slice_3 for ``{group}_*``. None: each image is a
        group.
    stratify
        Whether each class is in about equally many images of each fold.
    fraction
        The share of the training images that is used; None: all.

    Raises
    ------
    DataError
        The settings contradict each other.
    """

    count: int | None = None
    fold: int | None = None
    group: str | None = None
    stratify: bool = False
    fraction: float | None = None

    def __post_init__(self) -> None:
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise DataError(f"data.fraction={self.fraction} must be above 0, and at most 1")
        if self.group is not None and self.group.count(GROUP) != 1:
            raise DataError(
                f"data.fold_group={self.group} must contain {GROUP} once, in place of the part of the name that images"
                f" of one group share, such as {GROUP}_*"
            )
        if self.count is None:
            if self.fold is not None:
                raise DataError(f"data.fold={self.fold} needs the number of folds: add data.folds=5")
            return
        if self.count < 2:
            raise DataError(f"data.folds={self.count} must be at least 2, or null")
        if self.fold is None:
            raise DataError(
                f"data.folds={self.count} needs the fold to hold out: set data.fold to 0 to {self.count - 1}, or train"
                f" all of them with -m data.fold={','.join(map(str, range(min(self.count, 10))))}"
            )
        if not 0 <= self.fold < self.count:
            raise DataError(f"data.fold={self.fold} must be 0 to {self.count - 1}, because data.folds={self.count}")

    @property
    def held_out(self) -> str:
        """Name of the held-out part of a list, for titles."""
        return f"fold {self.fold} of {self.count}"

    @property
    def trained(self) -> str:
        """Name of the part of a list that is trained on, for titles; "" for the whole list."""
        parts = [] if self.count is None else [f"without {self.held_out}"]
        return ", ".join(parts if self.fraction is None else [*parts, f"fraction {self.fraction:g}"])

    def assign(self, dataset: SegmentationDataset) -> Int64[ndarray, " images"]:
        """Return the fold of each image.

        Raises
        ------
        DataError
            There are fewer images or groups than folds, a fold is empty, a name has no group, or, with ``stratify``, a
            mask cannot be read.
        """
        assert self.count is not None
        groups = self.groups(dataset)
        if len(groups) < self.count:
            what = "images" if self.group is None else f"groups of data.fold_group={self.group}"
            raise DataError(
                f"data.folds={self.count} needs {self.count} {what} or more, but {dataset.title} has {len(groups)}: set"
                " fewer folds"
            )
        by_group = _stratified(dataset, groups, self.count) if self.stratify else _hashed(groups, self.count)
        folds = np.empty(len(dataset), np.int64)
        for name, images in groups.items():
            folds[images] = by_group[name]
        empty = np.flatnonzero(np.bincount(folds, minlength=self.count) == 0)
        if len(empty):
            raise DataError(
                f"fold {empty[0]} of data.folds={self.count} contains none of the {len(dataset)} images of"
                f" {dataset.title}. Set fewer folds, or data.stratify=true, which makes folds of about equal size"
            )
        return folds

    def subset(self, dataset: SegmentationDataset, images: Sequence[int]) -> list[int]:
        """Return the share ``fraction`` of some images of a list, without breaking groups; one group at least.

        Groups are taken in the order of their hashes, so a smaller fraction is a part of a larger one.
        """
        if self.fraction is None:
            return list(images)
        groups, chosen = self.groups(dataset, images), []
        for name in sorted(groups, key=lambda name: (hash_of_name(name, "fraction"), name)):
            if chosen and len(chosen) + len(groups[name]) > round(self.fraction * len(images)):
                break
            chosen += groups[name]
        return sorted(chosen)

    def groups(self, dataset: SegmentationDataset, images: Sequence[int] | None = None) -> Mapping[str, list[int]]:
        """Return the indices of the images of each group."""
        groups: dict[str, list[int]] = defaultdict(list)
        for index in range(len(dataset)) if images is None else images:
            groups[self._group_of(dataset.names[index], dataset.title)].append(index)
        return groups

    def _group_of(self, name: str, title: str) -> str:
        if self.group is None:
            return name
        group = shortest_name_in(self.group.replace(GROUP, "{name}"), name)
        if group is None:
            raise DataError(
                f"data.fold_group={self.group} does not match the image {name} of {title}: each name needs a group."
                f" {GROUP} is the shortest text that fits, and * any text without a slash"
            )
        return group


def part(dataset: SegmentationDataset, images: Sequence[int], name: str) -> SegmentationDataset:
    """Return some images of a data set; ``name`` is added to its title."""
    return replace(
        dataset,
        title=f"{dataset.title}, {name}",
        names=tuple(dataset.names[index] for index in images),
        images=tuple(dataset.images[index] for index in images),
        masks=tuple(dataset.masks[index] for index in images) if dataset.masks else (),
    )


def _hashed(groups: Mapping[str, Sequence[int]], count: int) -> dict[str, int]:
    return {name: hash_of_name(name, "folds") * count >> 64 for name in groups}


def _stratified(dataset: SegmentationDataset, groups: Mapping[str, Sequence[int]], count: int) -> dict[str, int]:
    """Return the fold of each group by iterative stratification (Sechidis, Tsoumakas & Vlahavas, ECML 2011).

    The class in the fewest remaining images is distributed first: each of its groups goes to the fold that lacks most
    images of this class, and among these to the fold that lacks most images.
    """
    present = _classes_present(dataset)
    names = sorted(groups, key=lambda name: (hash_of_name(name, "folds"), name))
    sizes = np.array([len(groups[name]) for name in names])
    counts = np.array([present[groups[name]].sum(axis=0) for name in names])  # images by group and class
    lacking = np.tile(counts.sum(axis=0) / count, (count, 1))
    room = np.full(count, sizes.sum() / count)
    waiting, by_group = np.ones(len(names), bool), {}
    while waiting.any():
        remaining = counts[waiting].sum(axis=0)
        rarest = min(np.flatnonzero(remaining), key=remaining.__getitem__, default=None)
        chosen = waiting if rarest is None else waiting & (counts[:, rarest] > 0)
        for place in np.flatnonzero(chosen):
            wanted = room if rarest is None else lacking[:, rarest]
            fold = int(np.lexsort((-room, -wanted))[0])
            by_group[names[place]] = fold
            lacking[fold] -= counts[place]
            room[fold] -= sizes[place]
            waiting[place] = False
    return by_group


def _classes_present(dataset: SegmentationDataset) -> Bool[ndarray, "images classes"]:
    """Read all masks, and return which classes each contains."""

    def present(index: int) -> Bool[ndarray, " classes"]:
        return np.bincount(dataset.mask(index).ravel(), minlength=256)[: len(dataset.classes)] > 0

    with ThreadPoolExecutor(visible_cores()) as pool:
        return np.stack(list(pool.map(present, range(len(dataset)))))
