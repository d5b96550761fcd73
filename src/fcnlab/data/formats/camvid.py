"""CamVid in SegNet's layout: ``root/CamVid/train/*`` and ``trainannot/*.png``; 11 classes, id 11 is ignored.

Brostow, Fauqueur & Cipolla, Pattern Recognition Letters 2009; classes and colours of the SegNet tutorial.
"""

from pathlib import Path

import numpy as np

from fcnlab.data.dataset import CHOOSE_SPLIT, SegmentationDataset
from fcnlab.data.image_files import SUFFIXES, DataError

PALETTE = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "cyclist": (0, 128, 192),
}


def open_camvid(root: str, split: str) -> SegmentationDataset:
    """Open the split folder ``train``, ``val`` or ``test``.

    Raises
    ------
    DataError
        There is no CamVid under ``root``, or the split or its masks are missing.
    """
    base = Path(root) / "CamVid"
    if not base.is_dir():
        raise DataError(
            f"no CamVid in data.root={root}: {base} does not exist. Set data.root to the folder that contains CamVid/."
        )
    folder, annotations = base / split, base / f"{split}annot"
    if not folder.is_dir() or not annotations.is_dir():
        there = (
            ", ".join(sorted(path.name for path in base.iterdir() if (base / f"{path.name}annot").is_dir())) or "none"
        )
        raise DataError(f"no split {split!r} in {base}: available are {there}. {CHOOSE_SPLIT}")
    images = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES))
    return SegmentationDataset(
        title=f"CamVid {split}",
        names=tuple(path.stem for path in images),
        images=images,
        masks=tuple(annotations / f"{path.stem}.png" for path in images),
        classes=tuple(PALETTE),
        palette=np.array(list(PALETTE.values()), np.uint8),
        ignore_index=11,
    )
