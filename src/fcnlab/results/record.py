"""What a run writes for others to read: metrics.json and confusions.npz."""

import json
import math
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
    values = {name: _number(getattr(found, name)) for name in SCORES}
    iou = {name: _number(value) for name, value in zip(classes, found.iou, strict=True)}
    record = {"split": split, **values, "iou": iou, **facts}
    folder.mkdir(parents=True, exist_ok=True)
    with _aside(folder / "confusions.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, matrices=matrices, names=np.array(names), classes=np.array(classes))
    with _aside(folder / "metrics.json") as path:
        path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return found


def _number(value: float) -> float | None:
    """JSON knows no nan."""
    return None if math.isnan(value) else float(value)


class _aside:
    """A path to write to, which takes the place of the real one when all went well."""

    def __init__(self, path: Path):
        self.path, self.part = path, path.with_name(path.name + ".part")

    def __enter__(self) -> Path:
        return self.part

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            self.part.replace(self.path)
        else:
            self.part.unlink(missing_ok=True)
