"""What a run writes for others to read: metrics.json and confusions.npz."""

import json
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from fcnlab.results.escaping import ACTING
from fcnlab.results.reading import read_json
from fcnlab.results.scores import SCORES, Scores, scores

ID = re.compile(r"[\w-]{1,100}", re.ASCII)  # of a run, here and in W&B, whose tables add 20 characters, up to 128
OWN_PART = re.compile(r"\.(\d+)@(.+)\.part(\.\w+)?", re.ASCII)


def write_record(
    folder: Path,
    split: str,
    names: Sequence[str],
    classes: Sequence[str],
    matrices: Int64[ndarray, "picture truth prediction"],
    **facts: Mapping[str, Any] | None,
) -> Scores:
    """Write ``confusions.npz`` and ``metrics.json``; ``facts`` are its further parts: protocol, cost, provenance,
    selection.

    Each file is written aside and renamed, so that nobody reads half of one.
    """
    found = scores(matrices.sum(axis=0))
    values = {name: number(getattr(found, name)) for name in SCORES}
    iou = {name: number(value) for name, value in zip(classes, found.iou, strict=True)}
    record = {"split": split, **values, "iou": iou, **facts}
    folder.mkdir(parents=True, exist_ok=True)
    with aside(folder / "confusions.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, matrices=matrices, names=np.array(names), classes=np.array(classes))
    write_json(folder / "metrics.json", record)
    return found


def add_to_record(folder: Path, **facts: Mapping[str, Any]) -> None:
    """Give the ``metrics.json`` of a folder further parts."""
    path = folder / "metrics.json"
    write_json(path, (read_json(folder, path.name) or {}) | facts)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """For people and programs: indented, letters as they are."""
    with aside(path) as part:
        part.write_text(as_json(record), encoding="utf-8")


def as_json(record: Mapping[str, Any]) -> str:
    """Indented, letters as they are; what would act in a terminal, or what no encoding has, as JSON's own escape."""
    lines = json.dumps(record, indent=2, ensure_ascii=False).split("\n")
    return "\n".join(ACTING.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in lines) + "\n"


def number(value: float) -> float | None:
    """JSON knows no nan."""
    return None if math.isnan(value) else float(value)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of the real one when all went well.

    It is on the disk before it does, and its folder behind it: a kill or a power failure leaves the old or the new.
    What lies there under the path's name, which may be a link to any file, is not written to.
    """
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    try:
        yield part
        _sync(part)
        part.replace(path)
        _sync(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def own_part(folder: Path, suffix: str = "") -> Path:
    """Where a process writes aside in a folder that others write to as well; short, whatever the files are called."""
    return folder / f".{os.getpid()}@{platform.node()}.part{suffix}"


def remove_own_parts(folder: Path) -> None:
    """Remove what killed processes of this machine left half written in a folder and in those below it."""
    for place, _, names in os.walk(folder):
        for name in names:
            found = OWN_PART.fullmatch(name)
            if found and found[2] == platform.node() and _has_ended(int(found[1])):
                with suppress(OSError):
                    Path(place, name).unlink()


def _has_ended(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # another user's
        return False
    return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
