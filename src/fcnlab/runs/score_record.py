"""Write the scores of a run: metrics.json and confusions.npz."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from fcnlab.files.reading import read_json
from fcnlab.files.writing import atomic_write, number, write_json
from fcnlab.metrics.fine_grained import fine_grained_miou
from fcnlab.metrics.scores import SCORES, Scores, scores

# Of a run, here and in W&B, which allows 128 characters in the name of a table's artifact and adds 32.
ID = re.compile(r"[\w-]{1,96}", re.ASCII)


def write_record(
    folder: Path,
    split: str,
    names: Sequence[str],
    classes: Sequence[str],
    matrices: Int64[ndarray, "image target prediction"],
    **facts: Mapping[str, Any] | str | None,
) -> Scores:
    """Write ``confusions.npz`` and ``metrics.json``; ``facts`` are its further parts: protocol, cost, provenance,
    selection, scored_as.

    Each file is written atomically.
    """
    computed = scores(matrices.sum(axis=0))
    values = {name: number(getattr(computed, name)) for name in SCORES}
    iou = {name: number(value) for name, value in zip(classes, computed.iou, strict=True)}
    fine_grained = {name: number(value) for name, value in fine_grained_miou(matrices)._asdict().items()}
    record = {"split": split, **values, "fine_grained": fine_grained, "iou": iou, **facts}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "confusions.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, matrices=matrices, names=np.array(names), classes=np.array(classes))
    write_json(folder / "metrics.json", record)
    return computed


def add_to_record(folder: Path, **facts: Mapping[str, Any]) -> None:
    """Add parts to the ``metrics.json`` of a folder."""
    path = folder / "metrics.json"
    write_json(path, (read_json(folder, path.name) or {}) | facts)
