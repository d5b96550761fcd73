"""A tiny VOC data set with images of different sizes."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

LISTS = {
    "train": [f"t{index}" for index in range(8)],
    "val": [f"v{index}" for index in range(5)],
    "trainaug": [f"t{index}" for index in range(8)] + ["sbd0", "sbd1"],
}


@pytest.fixture
def save_pair():
    """Write a random JPEG and a random mask of the same size."""

    def save(image: Path, mask: Path, rows: int = 12, cols: int = 16, labels=(0, 1, 2, 255), seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (rows, cols, 3), np.uint8)).save(image)
        Image.fromarray(rng.choice(np.array(labels, np.uint8), (rows, cols))).save(mask)

    return save


@pytest.fixture
def voc_root(tmp_path, save_pair) -> Path:
    """A root with the lists train (8 images), val (5), and trainaug: train and two images with SBD masks only."""
    folder = tmp_path / "root" / "VOCdevkit" / "VOC2012"
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in LISTS.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    for place, name in enumerate(dict.fromkeys(chain(*LISTS.values()))):
        masks = "SegmentationClassAug" if name.startswith("sbd") else "SegmentationClass"
        files = folder / "JPEGImages" / f"{name}.jpg", folder / masks / f"{name}.png"
        save_pair(*files, rows=20 + place, cols=30 - place, labels=(0, 7, 20, 255), seed=place)
    return tmp_path / "root"
