"""What a run writes for others to read: metrics.json and confusions.npz."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from fcnlab.results.scores import SCORES, Scores, scores


def write_record(
    folder: Path,
    split: str,
    names: Sequence[str],
    classes: Sequence[str],
    matrices: Int64[ndarray, "picture truth prediction"],
    **facts: Mapping[str, Any],
) -> Scores:
    """Write ``confusions.npz`` and ``metrics.json``; ``facts`` are its further parts: protocol, cost, provenance.

    Each file is written aside and renamed, so that nobody reads half of one.
    """
    found = scores(matrices.sum(axis=0))
    values = {name: number(getattr(found, name)) for name in SCORES}
    iou = {name: number(value) for name, value in zip(classes, found.iou, strict=True)}
    record = {"split": split, **values, "iou": iou, **facts}
    folder.mkdir(parents=True, exist_ok=True)
    with aside(folder / "confusions.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, matrices=matrices, names=np.array(names), classes=np.array(classes))
    _write_json(folder / "metrics.json", record)
    return found


def add_to_record(folder: Path, **facts: Mapping[str, Any]) -> None:
    """Give the ``metrics.json`` of a folder further parts."""
    path = folder / "metrics.json"
    _write_json(path, json.loads(path.read_text()) | facts)


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    with aside(path) as part:
        part.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def number(value: float) -> float | None:
    """JSON knows no nan."""
    return None if math.isnan(value) else float(value)


class aside:
    """A path to write to, which takes the place of the real one when all went well."""

    def __init__(self, path: Path):
        self.path, self.part = path, path.with_name(path.name + ".part")

    def __enter__(self) -> Path:
        return self.part

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            with self.part.open("rb") as file:
                os.fsync(file.fileno())  # or a power failure may leave the new name and nothing in it
            self.part.replace(self.path)
        else:
            self.part.unlink(missing_ok=True)
