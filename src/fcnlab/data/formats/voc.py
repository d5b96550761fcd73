"""PASCAL VOC segmentation in the layout of the devkit.

``root/VOCdevkit/VOC2012/`` contains ``JPEGImages/ID.jpg``, ``SegmentationClass/ID.png`` (palette PNG, 255 is void) and
``ImageSets/Segmentation/LIST.txt``; SBD's masks, if available, are in ``SegmentationClassAug/ID.png``. The official
lists of 2012 (``train``, ``val``), ``trainaug`` (10,582 images, with SBD's) and ``seg11valid`` (736 images of VOC2011
val, none of them in SBD's train) are part of fcnlab.

Everingham et al., The PASCAL Visual Object Classes Challenge: A Retrospective, IJCV 2015.
"""

from collections.abc import Sequence
from os.path import isfile  # False for a name that no file can have, where Path's raises an OSError
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from fcnlab.config.ranges import Meaning
from fcnlab.data.dataset import CHOOSE_SPLIT, IGNORE_INDEX, SegmentationDataset
from fcnlab.data.download import Archive, obtain_archive
from fcnlab.data.image_files import DataError
from fcnlab.data.masks import Colour
from fcnlab.files.reading import bytes_of

Year = Annotated[int, Meaning("2007 to 2012, the years of VOC's segmentations", lambda year: 2007 <= year <= 2012)]
CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug")  # the first folder with a mask takes precedence
LIST_BYTES = 64 << 20  # trainaug's has 130 kB
LIST_SUFFIX = ".txt"  # a list that ends in it is the path of a file
LISTS = Path(__file__).parents[1] / "lists"  # official lists, for devkits without them
WITH_SBD = "voc2012_trainaug"  # the list that VOC's own masks do not cover

# Names and sums: torchvision, datasets/voc.py. The official host is down for weeks at a time: pytorch/vision #9269.
TRAINVAL = {
    2007: ("VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64"),
    2008: ("VOCtrainval_14-Jul-2008.tar", "2629fa636546599198acfcfbfcf1904a"),
    2009: ("VOCtrainval_11-May-2009.tar", "a3e00b113cfcfebf17e343f59da3caa1"),
    2010: ("VOCtrainval_03-May-2010.tar", "da459979d0c395079b5c75ee67908abb"),
    2011: ("VOCtrainval_25-May-2011.tar", "6c3384ef61512963050cb5d687e5bf1e"),
    2012: ("VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd"),
}
TEST = {2007: ("VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f")}  # later years require a login
OFFICIAL = (
    "https://thor.robots.ox.ac.uk/pascal/VOC/voc{year}/{name}",
    "http://host.robots.ox.ac.uk/pascal/VOC/voc{year}/{name}",
)
MIRRORS = {
    2007: ("https://data.pjreddie.com/files/{name}",),
    2012: (
        "https://data.pjreddie.com/files/{name}",
        "https://dataset.bj.bcebos.com/voc/{name}",
        "https://d2l-data.s3-accelerate.amazonaws.com/{name}",
    ),
}


def voc_palette(count: int = 256) -> UInt8[ndarray, "{count} 3"]:
    """Return the colours of the devkit (VOClabelcolormap.m): label bits, distributed to R, G and B from the top bit."""
    labels = np.arange(count)[:, None]
    colours = np.zeros((count, 3), np.uint8)
    for place in range(8):
        bits = (labels >> (3 * place + np.arange(3))) & 1
        colours |= (bits << (7 - place)).astype(np.uint8)
    return colours


def open_voc(
    root: str, split: str, year: Year = 2012, download: bool = False, archive: str | Sequence[str] | None = None
) -> SegmentationDataset:
    """Open a list of ``ImageSets/Segmentation``, such as ``train``, ``val`` or ``trainaug``, or a list of fcnlab.

    ``split`` may also be the path of a list, ending in .txt: one name per line.

    ``download`` downloads the devkit if it is missing; ``archive`` names tar files of it.

    Raises
    ------
    DataError
        There is no VOC under ``root``, the list is missing, or SBD's masks are required but missing; see also
        :func:`~fcnlab.data.download.obtain_archive`.
    """
    if download or archive:
        obtain_archive(Path(root), voc_archive(year, split), download, archive)
    folder = voc_folder(root, year)
    place, name = find_list(folder, split, year)
    if place == LISTS and name == WITH_SBD and not (folder / MASK_FOLDERS[1]).is_dir():
        raise DataError(
            f"most images of {split} have masks only in SBD, and {folder / MASK_FOLDERS[1]} does not exist: choose"
            " data=voc_aug, which reads them from SBD"
        )
    return voc_images(folder, f"VOC{year} {list_name(split)}", read_list(place, name))


def voc_archive(year: int, split: str) -> Archive:
    """Return the archive that contains a split: ``test`` has its own.

    Raises
    ------
    DataError
        VOC has no segmentation of this year.
    """
    if year not in TRAINVAL:
        raise DataError(f"data.dataset.year={year} is not valid: VOC has segmentations of 2007 to 2012")
    part = TEST if split == "test" else TRAINVAL
    name, md5 = part.get(year, (f"VOC{year}test.tar", ""))
    urls = OFFICIAL + MIRRORS.get(year, ()) if year in part else ()
    witness = f"VOCdevkit/VOC{year}/ImageSets/Segmentation/{'test' if split == 'test' else 'trainval'}.txt"
    return Archive(name, md5, tuple(url.format(year=year, name=name) for url in urls), witness)


def voc_folder(root: str, year: int) -> Path:
    """Return the folder ``root/VOCdevkit/VOC2012``.

    Raises
    ------
    DataError
        It contains no images.
    """
    folder = Path(root) / "VOCdevkit" / f"VOC{year}"
    if not (folder / "JPEGImages").is_dir():
        raise DataError(
            f"no VOC{year} in data.root={root}: {folder / 'JPEGImages'} does not exist. {_hint(root, year)}"
        )
    return folder


def voc_images(
    folder: Path, title: str, names: Sequence[str], mask_folders: Sequence[str] = MASK_FOLDERS
) -> SegmentationDataset:
    """Return the images with these names in a devkit; masks are in the first folder that contains them."""
    return SegmentationDataset(
        title=title,
        names=tuple(names),
        images=tuple(folder / "JPEGImages" / f"{name}.jpg" for name in names),
        masks=tuple(_mask_path(folder, name, mask_folders) for name in names),
        classes=CLASSES,
        palette=voc_palette(len(CLASSES)),
        official=_official_colours(),
    )


def _official_colours() -> dict[Colour, int]:
    colours = voc_palette(IGNORE_INDEX + 1)
    labels = (*range(len(CLASSES)), IGNORE_INDEX)
    return {
        (red, green, blue): label for label, (red, green, blue) in zip(labels, colours[[*labels]].tolist(), strict=True)
    }


def find_list(folder: Path, split: str, year: int) -> tuple[Path, str]:
    """Return folder and name of a list: the devkit's own, or a list of fcnlab with some existing images.

    Lists of 2012 are known by their full name (``voc2012_train``) or, for that year, by the devkit's (``train``).
    """
    own = folder / "ImageSets" / "Segmentation"
    if not split.endswith(LIST_SUFFIX) and not isfile(own / f"{split}.txt"):  # noqa: PTH113
        for name in (split, f"voc{year}_{split}"):
            if isfile(LISTS / f"{name}.txt") and any(  # noqa: PTH113
                isfile(folder / "JPEGImages" / f"{image}.jpg")  # noqa: PTH113
                for image in read_list(LISTS, name)
            ):
                return LISTS, name
    return own, split


def read_list(folder: Path, split: str) -> tuple[str, ...]:
    """Return the names in ``folder/split.txt``, one per line; a ``split`` that ends in .txt is a path.

    Raises
    ------
    DataError
        The list is missing or not UTF-8 text, or a name leads out of the data folders (and its prediction out of the
        run's folder).
    """
    if split.endswith(LIST_SUFFIX):
        file = Path(split)
        if not isfile(file):  # noqa: PTH113
            raise DataError(f"the list {split} is not a file. Set data.train_list or data.val_list to its path.")
    else:
        file = folder / f"{split}.txt"
    if not isfile(file):  # noqa: PTH113
        there = ", ".join(sorted(path.stem for path in folder.glob("*.txt"))) or "none"
        raise DataError(f"no list {split!r} in {folder}: available are {there}. {CHOOSE_SPLIT}")
    try:
        lines = bytes_of(file, LIST_BYTES).decode("utf-8-sig").splitlines()  # Windows editors write a byte order mark
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read as a list: {error}. It must be UTF-8 with one name per line."
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    outside = [name for name in names if name.startswith("/") or ".." in Path(name).parts]
    if outside:
        raise DataError(
            f"{file} contains {outside[0]!r}, which leads out of the data folders: use relative names without .."
        )
    return names


def list_name(split: str) -> str:
    """Return the name of a list, without the folder if it is a path."""
    return Path(split).name if split.endswith(LIST_SUFFIX) else split


def _mask_path(folder: Path, name: str, mask_folders: Sequence[str]) -> Path:
    paths = [folder / masks / f"{name}.png" for masks in mask_folders]
    return next((path for path in paths if isfile(path)), paths[0])  # noqa: PTH113


def _hint(root: str, year: int) -> str:
    """Return a hint on the value of data.root."""
    path = Path(root).absolute()
    for parent in (path.parent, path.parent.parent):
        if (parent / "VOCdevkit" / f"VOC{year}" / "JPEGImages").is_dir():
            return f"Did you mean data.root={parent}?"
    return (
        "Set data.root to the folder that contains VOCdevkit/. If there is none, data.download=true downloads it, and"
        " data.archive=PATH unpacks its tar file."
    )
