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
from fcnlab.data.image_files import DataError
from fcnlab.data.masks import Colour
from fcnlab.data.pictures import LabelPixels, MaskFacts, Pictures
from fcnlab.results.reading import bytes_of
from fcnlab.results.record import own_part, remove_own_parts
from fcnlab.results.scores import VOID

MOST_BYTES = 64 << 10  # of the file; 256 counts and two hashes have some 3 kB


@dataclass(frozen=True)
class Labels:
    """What all masks of a split hold: the pixels of each label, and a sentence for each way in which masks disagree."""

    pixels: LabelPixels
    conflicts: tuple[str, ...] = ()


def check(pictures: Pictures, min_size: int, folder: Path) -> Labels:
    """:meth:`Pictures.check`, which reads whole masks only if no run before did, or if files changed since.

    A ``folder`` that cannot be written to, or a damaged file in it, costs time only.

    Raises
    ------
    DataError
        As :meth:`Pictures.check`.
    """
    title = re.sub(r"[^\w.-]+", "-", pictures.title)
    file = folder / f"{title}-{identity(pictures)}.labels.json"
    state = _state(pictures)
    known = _kept(file, state)
    masks = pictures.check(min_size, whole_masks=known is None)
    if known is not None:
        return known
    pixels = sum((mask.pixels for mask in masks), np.zeros(VOID + 1, np.int64))
    found = Labels(pixels, tuple(conflicts(pictures, masks)))
    if state is not None and state == _state(pictures):
        _keep(file, state, found)
    return found


def _state(pictures: Pictures) -> str | None:
    """None where a file is missing, which the check tells."""
    try:
        return state_of(pictures)
    except DataError:
        return None


def _kept(file: Path, state: str | None) -> Labels | None:
    """None where there is no such file, not a whole one, or one of other masks."""
    try:
        record = json.loads(bytes_of(file, MOST_BYTES))
        pixels, told = [int(count) for count in record["pixels"]], tuple(map(str, record["conflicts"]))
        sound = record["digest"] == _digest(record["state"], pixels, told) and len(pixels) == VOID + 1
        return Labels(np.array(pixels, np.int64), told) if sound and record["state"] == state else None
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):  # of whatever lies there
        return None


def _keep(file: Path, state: str, found: Labels) -> None:
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


def conflicts(pictures: Pictures, masks: Sequence[MaskFacts]) -> Iterator[str]:
    """A sentence for each way in which masks, each of them sound by itself, cannot all be meant as they are read."""
    yield from _binary_among_ids(pictures, masks)
    yield from _palettes_of_two_orders(pictures, masks)


def _binary_among_ids(pictures: Pictures, masks: Sequence[MaskFacts]) -> Iterator[str]:
    """255 is the object in masks of 0 and 255, and void in masks of ids; one set cannot tell which."""
    if not _by_plain_ids(pictures) or pictures.official:
        return
    binary = [mask for mask in masks if mask.pixels[VOID] and not mask.pixels[1:VOID].any()]
    by_id = [mask for mask in masks if mask.pixels[1:VOID].any() and not mask.pixels[VOID]]
    if binary and by_id:
        names = ", ".join(f"{label}: {name}" for label, name in enumerate(pictures.classes[:2]))
        yield (
            f"{len(binary):,} masks hold no ids but 0 and {VOID}, such as {binary[0].path}"
            f" ({_histogram(pictures, binary)}), and {len(by_id):,} hold other ids and no {VOID}, such as"
            f" {by_id[0].path} ({_histogram(pictures, by_id)}): {VOID} is read as void in all of them. If it is an"
            f" object in the former, save these with the ids of the latter. If it is void, say so with data=folder:"
            f" 'data.pictures.ids={{{names}, {VOID}: null}}'"
        )


def _histogram(pictures: Pictures, masks: Sequence[MaskFacts]) -> str:
    return _shares(pictures, sum((mask.pixels for mask in masks), np.zeros(VOID + 1, np.int64)))


def _palettes_of_two_orders(pictures: Pictures, masks: Sequence[MaskFacts]) -> Iterator[str]:
    """Palettes that show one colour for two classes: some program has written the file anew, with other ids."""
    first: dict[Colour, tuple[int, Path]] = {}
    names = {**dict(enumerate(pictures.classes)), VOID: "void"}
    for mask in masks:
        for colour, label in sorted(mask.shown.items()):
            before, path = first.setdefault(colour, (label, mask.path))
            if before != label:
                yield (
                    f"palettes of masks contradict each other: the colour {list(colour)} is {names[before]} in {path}"
                    f" and {names[label]} in {mask.path}, since masks are read by their ids. If the colours are what is"
                    " meant, give each class its own with data=folder: data.pictures.classes={NAME: [R, G, B], ...}"
                )
                return


def one_class_only(pictures: Pictures, found: LabelPixels) -> str | None:
    """Why nothing can be learned or scored where at most one class occurs beside void; None where more do."""
    known = found[: len(pictures.classes)]
    if np.count_nonzero(known) > 1:
        return None
    return f"at most one class occurs in all masks: {_shares(pictures, found)}{_looks_binary(pictures, found)}"


def _shares(pictures: Pictures, found: LabelPixels) -> str:
    names = {**dict(enumerate(pictures.classes)), VOID: "void"}
    shares = [f"{names[label]} {100 * found[label] / found.sum():.1f} %" for label in np.flatnonzero(found).tolist()]
    return f"{', '.join(shares)} of the pixels"


def _by_plain_ids(pictures: Pictures) -> bool:
    return pictures.colours is None and pictures.ids is None and pictures.void == VOID


def _looks_binary(pictures: Pictures, found: LabelPixels) -> str:
    if not _by_plain_ids(pictures) or not found[VOID] or found[1:VOID].any():
        return ""
    first, second = (*pictures.classes, "NAME")[:2]
    return (
        f". It looks like binary masks of 0 and 255, in which {VOID} is read as void: say what the ids are,"
        f" 'data.pictures.ids={{0: {first}, {VOID}: {second}}}' with data=folder"
    )


def absent_classes(pictures: Pictures, found: LabelPixels) -> tuple[str, ...]:
    """The names of classes that no mask has."""
    return tuple(name for name, pixels in zip(pictures.classes, found, strict=False) if not pixels)
