"""Count the pixels of each label in the masks of a split, cache the counts in a file, and detect contradictions.

The file is a small JSON in the cache folder: the counts, contradictions between masks, and the state of the mask files
at that time.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from fcnlab.data.cache import identity, state_of
from fcnlab.data.dataset import LabelPixels, MaskContents, SegmentationDataset
from fcnlab.data.image_files import DataError
from fcnlab.data.masks import Colour
from fcnlab.files.reading import bytes_of
from fcnlab.files.writing import own_part, remove_own_parts
from fcnlab.metrics.scores import IGNORE_INDEX

MOST_BYTES = 64 << 10  # limit on the file; 256 counts and two hashes have about 3 kB


@dataclass(frozen=True)
class LabelCounts:
    """The contents of all masks of a split: pixels of each label, and a message for each contradiction."""

    pixels: LabelPixels
    conflicts: tuple[str, ...] = ()


def check(dataset: SegmentationDataset, min_size: int, folder: Path) -> LabelCounts:
    """Run :meth:`SegmentationDataset.check`, but read complete masks only if files changed since an earlier run.

    A read-only ``folder`` or a damaged file in it costs only time.

    Raises
    ------
    DataError
        As :meth:`SegmentationDataset.check`.
    """
    title = re.sub(r"[^\w.-]+", "-", dataset.title)
    file = folder / f"{title}-{identity(dataset)}.labels.json"
    state = _state(dataset)
    known = _read_cached(file, state)
    masks = dataset.check(min_size, whole_masks=known is None)
    if known is not None:
        return known
    pixels = sum((mask.pixels for mask in masks), np.zeros(IGNORE_INDEX + 1, np.int64))
    counts = LabelCounts(pixels, tuple(conflicts(dataset, masks)))
    if state is not None and state == _state(dataset):
        _write_cached(file, state, counts)
    return counts


def _state(dataset: SegmentationDataset) -> str | None:
    """Return the state of the files; None if a file is missing, which the check reports."""
    try:
        return state_of(dataset)
    except DataError:
        return None


def _read_cached(file: Path, state: str | None) -> LabelCounts | None:
    """Return the cached counts; None if the file is missing, damaged, or of other masks."""
    try:
        record = json.loads(bytes_of(file, MOST_BYTES))
        pixels, messages = [int(count) for count in record["pixels"]], tuple(map(str, record["conflicts"]))
        is_valid = record["digest"] == _digest(record["state"], pixels, messages) and len(pixels) == IGNORE_INDEX + 1
        return LabelCounts(np.array(pixels, np.int64), messages) if is_valid and record["state"] == state else None
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):  # for any content of the file
        return None


def _write_cached(file: Path, state: str, counts: LabelCounts) -> None:
    """Write the cache file atomically; several processes may do so at once."""
    pixels, part = counts.pixels.tolist(), own_part(file.parent)
    digest = _digest(state, pixels, counts.conflicts)
    record = {"state": state, "pixels": pixels, "conflicts": counts.conflicts, "digest": digest}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_own_parts(file.parent)
        part.unlink(missing_ok=True)
        part.write_text(json.dumps(record))
        part.replace(file)
    except OSError:  # the next run counts again
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _digest(state: str, pixels: Sequence[int], messages: Sequence[str]) -> str:
    return blake2b(repr((state, pixels, messages)).encode(errors="surrogatepass"), digest_size=8).hexdigest()


def conflicts(dataset: SegmentationDataset, masks: Sequence[MaskContents]) -> Iterator[str]:
    """Yield a message for each contradiction between masks that are valid by themselves."""
    yield from _binary_among_ids(dataset, masks)
    yield from _palettes_of_two_orders(dataset, masks)


def _binary_among_ids(dataset: SegmentationDataset, masks: Sequence[MaskContents]) -> Iterator[str]:
    """Yield a message for binary masks among masks of ids: is 255 the object or the ignore index?"""
    if not _by_plain_ids(dataset) or dataset.official:
        return
    binary = [mask for mask in masks if mask.pixels[IGNORE_INDEX] and not mask.pixels[1:IGNORE_INDEX].any()]
    by_id = [mask for mask in masks if mask.pixels[1:IGNORE_INDEX].any() and not mask.pixels[IGNORE_INDEX]]
    if binary and by_id:
        names = ", ".join(f"{label}: {name}" for label, name in enumerate(dataset.classes[:2]))
        yield (
            f"{len(binary):,} masks contain only the ids 0 and {IGNORE_INDEX}, such as {binary[0].path}"
            f" ({_histogram(dataset, binary)}), and {len(by_id):,} contain other ids but no {IGNORE_INDEX}, such as"
            f" {by_id[0].path} ({_histogram(dataset, by_id)}). {IGNORE_INDEX} is ignored in all of them. If it is an"
            f" object in the former, save these with the ids of the latter. If it must be ignored, confirm it with"
            f" data=folder: 'data.dataset.ids={{{names}, {IGNORE_INDEX}: null}}'"
        )


def _histogram(dataset: SegmentationDataset, masks: Sequence[MaskContents]) -> str:
    return _shares(dataset, sum((mask.pixels for mask in masks), np.zeros(IGNORE_INDEX + 1, np.int64)))


def _palettes_of_two_orders(dataset: SegmentationDataset, masks: Sequence[MaskContents]) -> Iterator[str]:
    """Yield a message if palettes have one colour for two classes: a program saved a mask with other ids."""
    first: dict[Colour, tuple[int, Path]] = {}
    names = {**dict(enumerate(dataset.classes)), IGNORE_INDEX: "ignored"}
    for mask in masks:
        for colour, label in sorted(mask.shown.items()):
            before, path = first.setdefault(colour, (label, mask.path))
            if before != label:
                yield (
                    f"palettes of masks contradict each other: the colour {list(colour)} is {names[before]} in {path}"
                    f" but {names[label]} in {mask.path}, because masks are read by their ids. If the colours define"
                    " the classes, set them with data=folder: data.dataset.classes={NAME: [R, G, B], ...}"
                )
                return


def one_class_only(dataset: SegmentationDataset, pixels: LabelPixels) -> str | None:
    """Return a message if at most one class occurs, so that nothing can be learned; None otherwise."""
    known = pixels[: len(dataset.classes)]
    if np.count_nonzero(known) > 1:
        return None
    return f"all masks together contain at most one class: {_shares(dataset, pixels)}{_looks_binary(dataset, pixels)}"


def _shares(dataset: SegmentationDataset, pixels: LabelPixels) -> str:
    names = {**dict(enumerate(dataset.classes)), IGNORE_INDEX: "ignored"}
    shares = [f"{names[label]} {100 * pixels[label] / pixels.sum():.1f} %" for label in np.flatnonzero(pixels).tolist()]
    return f"{', '.join(shares)} of the pixels"


def _by_plain_ids(dataset: SegmentationDataset) -> bool:
    return dataset.colours is None and dataset.ids is None and dataset.ignore_index == IGNORE_INDEX


def _looks_binary(dataset: SegmentationDataset, pixels: LabelPixels) -> str:
    if not _by_plain_ids(dataset) or not pixels[IGNORE_INDEX] or pixels[1:IGNORE_INDEX].any():
        return ""
    first, second = (*dataset.classes, "NAME")[:2]
    return (
        f". These look like binary masks of 0 and 255, of which {IGNORE_INDEX} is ignored: define the ids with"
        f" data=folder, 'data.dataset.ids={{0: {first}, {IGNORE_INDEX}: {second}}}'"
    )


def absent_classes(dataset: SegmentationDataset, pixels: LabelPixels) -> tuple[str, ...]:
    """Return the names of classes that are in no mask."""
    return tuple(name for name, count in zip(dataset.classes, pixels, strict=False) if not count)
