"""A data set: images with one disc each."""

from pathlib import Path

import numpy as np
from fcnlab import SegmentationDataset
from fcnlab.files.writing import atomic_write
from PIL import Image

CLASSES = ("background", "disc")
PALETTE = np.array([[0, 0, 0], [0, 160, 0]], np.uint8)
SIDE = 64  # pixels


def open_discs(root: str, split: str, count: int = 40, draw: bool = True) -> SegmentationDataset:
    """Return the images and masks of a split; missing ones are drawn.

    With ``draw=False``, which fcnlab passes where only the record of a run names the data, nothing is written.
    """
    names = tuple(f"{split}_{number:03}" for number in range(count))
    images = tuple(Path(root, "discs", "images", f"{name}.png") for name in names)
    masks = tuple(Path(root, "discs", "masks", f"{name}.png") for name in names)
    for name, image, mask in zip(names, images, masks, strict=True):
        if draw and not (image.exists() and mask.exists()):
            _draw(np.random.default_rng(list(name.encode())), image, mask)
    return SegmentationDataset(f"discs {split}", names, images, masks, CLASSES, PALETTE)


def _draw(random: np.random.Generator, image: Path, mask: Path) -> None:
    rows, cols = np.mgrid[:SIDE, :SIDE]
    row, col, radius = random.integers(16, 48, 2).tolist() + [random.integers(8, 16)]
    disc = (rows - row) ** 2 + (cols - col) ** 2 < radius**2
    noise = random.integers(0, 120, (SIDE, SIDE, 3))
    _save(noise + 120 * disc[:, :, None], image)
    _save(disc, mask)  # class ids


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:  # several runs may draw at the same time
        Image.fromarray(pixels.astype(np.uint8)).save(part, "png")
