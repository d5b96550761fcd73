"""How many pixels of each label the masks of a split have: counted once, kept in a file, and what it tells.

The file is a small JSON in the cache folder: the counts, how masks contradict each other, and the state of the masks
that this was found in.
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

MOST_BYTES = 64 << 10  # of the file; 256 counts and two hashes have some 3 kB


@dataclass(frozen=True)
class LabelCounts:
    """What all masks of a split hold: the pixels of each label, and a sentence for each way in which masks disagree."""

    pixels: LabelPixels
    conflicts: tuple[str, ...] = ()


def check(dataset: SegmentationDataset, min_size: int, folder: Path) -> LabelCounts:
    """:meth:`Images.check`, which reads whole masks only if no run before did, or if files changed since.

    A ``folder`` that cannot be written to, or a damaged file in it, costs time only.

    Raises
    ------
    DataError
        As :meth:`Images.check`.
    """
    title = re.sub(r"[^\w.-]+", "-", dataset.title)
    file = folder / f"{title}-{identity(dataset)}.labels.json"
    state = _state(dataset)
    known = _kept(file, state)
    masks = dataset.check(min_size, whole_masks=known is None)
    if known is not None:
        return known
    pixels = sum((mask.pixels for mask in masks), np.zeros(IGNORE_INDEX + 1, np.int64))
    found = LabelCounts(pixels, tuple(conflicts(dataset, masks)))
    if state is not None and state == _state(dataset):
        _keep(file, state, found)
    return found


def _state(dataset: SegmentationDataset) -> str | None:
    """None where a file is missing, which the check tells."""
    try:
        return state_of(dataset)
    except DataError:
        return None


def _kept(file: Path, state: str | None) -> LabelCounts | None:
    """None where there is no such file, not a whole one, or one of other masks."""
    try:
        record = json.loads(bytes_of(file, MOST_BYTES))
        pixels, told = [int(count) for count in record["pixels"]], tuple(map(str, record["conflicts"]))
        sound = record["digest"] == _digest(record["state"], pixels, told) and len(pixels) == IGNORE_INDEX + 1
        return LabelCounts(np.array(pixels, np.int64), told) if sound and record["state"] == state else None
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):  # of whatever lies there
        return None


def _keep(file: Path, state: str, found: LabelCounts) -> None:
    """Aside and renamed, by a name of this process's: several may do so at once."""
    pixels, part = found.pixels.tolist(), own_part(file.parent)
    digest = _digest(state, pixels, found.conflicts)
    record = {"state": state, "pixels": pixels, "conflicts": found.conflicts, "digest": digest}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_own_parts(file.parent)
        part.unlink(missing_ok=True)
        part.write_text(json.dumps(record))
        part.replace(file)
    except OSError:  # the next run counts again
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _digest(state: str, pixels: Sequence[int], told: Sequence[str]) -> str:
    return blake2b(repr((state, pixels, told)).encode(errors="surrogatepass"), digest_size=8).hexdigest()


def conflicts(dataset: SegmentationDataset, masks: Sequence[MaskContents]) -> Iterator[str]:
    """A sentence for each way in which masks, each of them sound by itself, cannot all be meant as they are read."""
    yield from _binary_among_ids(dataset, masks)
    yield from _palettes_of_two_orders(dataset, masks)


def _binary_among_ids(dataset: SegmentationDataset, masks: Sequence[MaskContents]) -> Iterator[str]:
    """255 is the object in masks of 0 and 255, and void in masks of ids; one set cannot tell which."""
    if not _by_plain_ids(dataset) or dataset.official:
        return
    binary = [mask for mask in masks if mask.pixels[IGNORE_INDEX] and not mask.pixels[1:IGNORE_INDEX].any()]
    by_id = [mask for mask in masks if mask.pixels[1:IGNORE_INDEX].any() and not mask.pixels[IGNORE_INDEX]]
    if binary and by_id:
        names = ", ".join(f"{label}: {name}" for label, name in enumerate(dataset.classes[:2]))
        yield (
            f"{len(binary):,} masks hold no ids but 0 and {IGNORE_INDEX}, such as {binary[0].path}"
            f" ({_histogram(dataset, binary)}), and {len(by_id):,} hold other ids and no {IGNORE_INDEX}, such as"
            f" {by_id[0].path} ({_histogram(dataset, by_id)}): {IGNORE_INDEX} is read as void in all of them. If it is an"
            f" object in the former, save these with the ids of the latter. If it is void, say so with data=folder:"
            f" 'data.dataset.ids={{{names}, {IGNORE_INDEX}: null}}'"
        )


def _histogram(dataset: SegmentationDataset, masks: Sequence[MaskContents]) -> str:
    return _shares(dataset, sum((mask.pixels for mask in masks), np.zeros(IGNORE_INDEX + 1, np.int64)))


def _palettes_of_two_orders(dataset: SegmentationDataset, masks: Sequence[MaskContents]) -> Iterator[str]:
    """Palettes that show one colour for two classes: some program has written the file anew, with other ids."""
    first: dict[Colour, tuple[int, Path]] = {}
    names = {**dict(enumerate(dataset.classes)), IGNORE_INDEX: "void"}
    for mask in masks:
        for colour, label in sorted(mask.shown.items()):
            before, path = first.setdefault(colour, (label, mask.path))
            if before != label:
                yield (
                    f"palettes of masks contradict each other: the colour {list(colour)} is {names[before]} in {path}"
                    f" and {names[label]} in {mask.path}, since masks are read by their ids. If the colours are what is"
                    " meant, give each class its own with data=folder: data.dataset.classes={NAME: [R, G, B], ...}"
                )
                return


def one_class_only(dataset: SegmentationDataset, found: LabelPixels) -> str | None:
    """Why nothing can be learned or scored where at most one class occurs beside void; None where more do."""
    known = found[: len(dataset.classes)]
    if np.count_nonzero(known) > 1:
        return None
    return f"at most one class occurs in all masks: {_shares(dataset, found)}{_looks_binary(dataset, found)}"


def _shares(dataset: SegmentationDataset, found: LabelPixels) -> str:
    names = {**dict(enumerate(dataset.classes)), IGNORE_INDEX: "void"}
    shares = [f"{names[label]} {100 * found[label] / found.sum():.1f} %" for label in np.flatnonzero(found).tolist()]
    return f"{', '.join(shares)} of the pixels"


def _by_plain_ids(dataset: SegmentationDataset) -> bool:
    return dataset.colours is None and dataset.ids is None and dataset.ignore_index == IGNORE_INDEX


def _looks_binary(dataset: SegmentationDataset, found: LabelPixels) -> str:
    if not _by_plain_ids(dataset) or not found[IGNORE_INDEX] or found[1:IGNORE_INDEX].any():
        return ""
    first, second = (*dataset.classes, "NAME")[:2]
    return (
        f". It looks like binary masks of 0 and 255, in which {IGNORE_INDEX} is read as void: say what the ids are,"
        f" 'data.dataset.ids={{0: {first}, {IGNORE_INDEX}: {second}}}' with data=folder"
    )


def absent_classes(dataset: SegmentationDataset, found: LabelPixels) -> tuple[str, ...]:
    """The names of classes that no mask has."""
    return tuple(name for name, pixels in zip(dataset.classes, found, strict=False) if not pixels)
