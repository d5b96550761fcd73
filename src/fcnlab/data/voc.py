"""PASCAL VOC segmentation, in the devkit's own layout.

``root/VOCdevkit/VOC2012/`` holds ``JPEGImages/ID.jpg``, ``SegmentationClass/ID.png`` (palette PNG, 255 is void) and
``ImageSets/Segmentation/LIST.txt``; SBD's masks, where one has them, are in ``SegmentationClassAug/ID.png``.

Everingham et al., The PASCAL Visual Object Classes Challenge: A Retrospective, IJCV 2015.
"""

from os.path import isfile  # False for a name that no file can have, where Path's raises an OSError
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from fcnlab.data.pictures import DataError, Pictures

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug")  # the first that has a mask wins


def voc_palette(count: int = 256) -> UInt8[ndarray, "{count} 3"]:
    """The devkit's colours (VOClabelcolormap.m): a label's bits, dealt out to R, G and B from the top bit down."""
    labels = np.arange(count)[:, None]
    colours = np.zeros((count, 3), np.uint8)
    for place in range(8):
        bits = (labels >> (3 * place + np.arange(3))) & 1
        colours |= (bits << (7 - place)).astype(np.uint8)
    return colours


def open_voc(root: str, split: str, year: int = 2012) -> Pictures:
    """A list of ``ImageSets/Segmentation``, such as ``train``, ``val`` or ``trainaug``.

    Raises
    ------
    DataError
        No VOC under ``root``, or no such list.
    """
    folder = Path(root) / "VOCdevkit" / f"VOC{year}"
    if not (folder / "JPEGImages").is_dir():
        raise DataError(f"no VOC{year} in data.root={root}: {folder / 'JPEGImages'} is no folder. {_hint(root, year)}")
    names = read_list(folder / "ImageSets" / "Segmentation", split)
    return Pictures(
        title=f"VOC{year} {split}",
        names=names,
        images=tuple(folder / "JPEGImages" / f"{name}.jpg" for name in names),
        masks=tuple(_mask_path(folder, name) for name in names),
        classes=CLASSES,
        palette=voc_palette(len(CLASSES)),
    )


def read_list(folder: Path, split: str) -> tuple[str, ...]:
    """The names in ``folder/split.txt``, one to a line.

    Raises
    ------
    DataError
        No such list; it is no text in UTF-8; a name that leads out of the data's folders (and its prediction would out
        of the run's).
    """
    file = folder / f"{split}.txt"
    if not isfile(file):  # noqa: PTH113
        there = ", ".join(sorted(path.stem for path in folder.glob("*.txt"))) or "none"
        raise DataError(f"no list {split!r} in {folder}: there is {there}. Set data.train_list or data.val_list.")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()  # Windows' editors open a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as a list: {error}. It is UTF-8, a name to a line.") from error
    names = tuple(line.strip() for line in lines if line.strip())
    outside = [name for name in names if name.startswith("/") or ".." in Path(name).parts]
    if outside:
        raise DataError(f"{file} names {outside[0]!r}, which leads out of the data's folders: give names below them")
    return names


def _mask_path(folder: Path, name: str) -> Path:
    paths = [folder / masks / f"{name}.png" for masks in MASK_FOLDERS]
    return next((path for path in paths if isfile(path)), paths[0])  # noqa: PTH113


def _hint(root: str, year: int) -> str:
    """Where the user probably meant to point."""
    path = Path(root).absolute()
    for parent in (path.parent, path.parent.parent):
        if (parent / "VOCdevkit" / f"VOC{year}" / "JPEGImages").is_dir():
            return f"Did you mean data.root={parent}?"
    return "Set data.root to the folder that holds VOCdevkit/."
