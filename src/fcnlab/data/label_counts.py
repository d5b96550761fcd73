"""How many pixels of each label the masks of a split have: counted once, kept in a file, and what it tells.

The file is a small JSON in the cache folder: the counts, and the state of the masks that they were counted in.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import numpy as np

from fcnlab.data.cache import identity, state_of
from fcnlab.data.image_files import DataError
from fcnlab.data.pictures import LabelPixels, Pictures
from fcnlab.results.reading import bytes_of
from fcnlab.results.scores import VOID

MOST_BYTES = 64 << 10  # of the file; 256 counts and two hashes have some 3 kB


def check(pictures: Pictures, min_size: int, folder: Path) -> LabelPixels:
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
    found = pictures.check(min_size, known)
    if known is None and state is not None and state == _state(pictures):
        _keep(file, state, found)
    return found


def _state(pictures: Pictures) -> str | None:
    """None where a file is missing, which the check tells."""
    try:
        return state_of(pictures)
    except DataError:
        return None


def _kept(file: Path, state: str | None) -> LabelPixels | None:
    """None where there is no such file, not a whole one, or one of other masks."""
    try:
        record = json.loads(bytes_of(file, MOST_BYTES))
        pixels = [int(count) for count in record["pixels"]]
        sound = record["digest"] == _digest(record["state"], pixels) and len(pixels) == VOID + 1
        return np.array(pixels, np.int64) if sound and record["state"] == state else None
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):  # of whatever lies there
        return None


def _keep(file: Path, state: str, found: LabelPixels) -> None:
    """Aside and renamed, by a name of its own: several processes may do so at once."""
    pixels = found.tolist()
    part = file.with_name(f"{file.name}.{uuid4().hex}.part")
    record = {"state": state, "pixels": pixels, "digest": _digest(state, pixels)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(record))
        part.replace(file)
    except OSError:  # the next run counts again
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _digest(state: str, pixels: Sequence[int]) -> str:
    return blake2b(f"{state} {pixels}".encode(), digest_size=8).hexdigest()


def one_class_only(pictures: Pictures, found: LabelPixels) -> str | None:
    """Why nothing can be learned or scored where at most one class occurs beside void; None where more do."""
    known = found[: len(pictures.classes)]
    if np.count_nonzero(known) > 1:
        return None
    names = {**dict(enumerate(pictures.classes)), VOID: "void"}
    shares = [f"{names[label]} {100 * found[label] / found.sum():.1f} %" for label in np.flatnonzero(found).tolist()]
    return f"at most one class occurs in all masks: {', '.join(shares)} of the pixels{_looks_binary(pictures, found)}"


def _looks_binary(pictures: Pictures, found: LabelPixels) -> str:
    by_plain_ids = pictures.colours is None and pictures.ids is None and pictures.void == VOID
    if not by_plain_ids or not found[VOID] or found[1:VOID].any():
        return ""
    first, second = (*pictures.classes, "NAME")[:2]
    return (
        f". It looks like binary masks of 0 and 255, in which {VOID} is read as void: say what the ids are,"
        f" 'data.pictures.ids={{0: {first}, {VOID}: {second}}}' with data=folder"
    )


def absent_classes(pictures: Pictures, found: LabelPixels) -> tuple[str, ...]:
    """The names of classes that no mask has."""
    return tuple(name for name, pixels in zip(pictures.classes, found, strict=False) if not pixels)
