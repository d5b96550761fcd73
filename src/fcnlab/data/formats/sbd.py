"""SBD's masks for VOC's images: 11,355 of VOC2011, of which 8,498 are SBD's own train.

``root/benchmark_RELEASE/dataset/`` is the archive as it comes: ``cls/ID.mat``, ``train.txt``, ``val.txt``. Its images
are VOC's, and are taken from the devkit, so that one that is trained on and scored is seen to be the same.

Hariharan, Arbelaez, Bourdev, Maji & Malik, Semantic Contours from Inverse Detectors, ICCV 2011.
"""

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os.path import isfile  # False for a name that no file can have, where Path's raises an OSError
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from fcnlab.cores import visible_cores
from fcnlab.data.dataset import IGNORE_INDEX, SegmentationDataset
from fcnlab.data.download import Archive, exclusive_folder, obtain_archive, progress
from fcnlab.data.formats.mat_file import read_field
from fcnlab.data.formats.voc import (
    CLASSES,
    MASK_FOLDERS,
    Year,
    find_list,
    read_list,
    voc_archive,
    voc_folder,
    voc_images,
    voc_palette,
)
from fcnlab.data.image_files import BrokenFile, DataError, MissingFile, WrongLabels, WrongMode
from fcnlab.errors import first_line
from fcnlab.runs.drawing import save_labels

DATASET = Path("benchmark_RELEASE") / "dataset"
CONVERTED = MASK_FOLDERS[1]
OWN_LISTS = {"sbd_train": "train", "sbd_val": "val"}  # which are other images than VOC's lists of these names
PLACE = "www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"
SBD = Archive(  # its sum: torchvision, datasets/sbd.py
    name="benchmark.tgz",
    md5="82b4d87ceb2ed10f6038a1cba92111cb",
    urls=(f"https://{PLACE}", f"http://{PLACE}"),
    witness=str(DATASET / "train.txt"),
)


class SBDDataset(SegmentationDataset):
    """Images whose masks may be SBD's own files."""

    def mask(self, index: int) -> UInt8[ndarray, "rows cols"]:
        path = self.masks[index]
        return read_mat(path) if path.suffix == ".mat" else super().mask(index)

    def mask_palette(self, index: int) -> UInt8[ndarray, "values 3"] | None:
        return None if self.masks[index].suffix == ".mat" else super().mask_palette(index)

    def mask_size(self, index: int) -> tuple[int, int]:
        if self.masks[index].suffix != ".mat":
            return super().mask_size(index)
        rows, cols = self.mask(index).shape  # they have no header to look at
        return rows, cols


def open_sbd(
    root: str,
    split: str,
    year: Year = 2012,
    convert: bool = True,
    download: bool = False,
    archive: str | Sequence[str] | None = None,
) -> SegmentationDataset:
    """VOC's images of a list of its own (``trainaug``, ``val``) or of SBD's (``sbd_train``, ``sbd_val``).

    On VOC's lists an official mask wins over SBD's; on SBD's lists all masks are SBD's, as in the FCN papers. SBD
    itself is needed only where ``SegmentationClassAug/`` does not have them already.

    Parameters
    ----------
    convert
        Write SBD's masks to ``SegmentationClassAug/`` when they are first needed; else they are read as they come,
        which takes longer and writes nothing.
    download, archive
        Fetch VOC and SBD if they are not there, or take them from tars that the user has.

    Raises
    ------
    DataError
        As :func:`~fcnlab.data.formats.voc.open_voc`; SBD is needed and not there.
    """
    if download or archive:
        obtain_archive(Path(root), voc_archive(year, split), download, archive)
    folder, own = voc_folder(root, year), split in OWN_LISTS
    place, name = find_list(folder, split, year)
    if own and not isfile(place / f"{name}.txt"):  # noqa: PTH113
        place, name = find_sbd(root, download, archive), OWN_LISTS[split]
    names, title = read_list(place, name), f"VOC{year} {split}"
    mask_folders = (CONVERTED,) if own else MASK_FOLDERS
    dataset = voc_images(folder, title, names, mask_folders)
    if split == "test" or all(map(isfile, dataset.masks)):
        return dataset
    converted = (folder / CONVERTED).is_dir()
    if converted and not (Path(root) / DATASET).is_dir():  # the masks of others' making, some of which are missing
        return dataset
    sbd = find_sbd(root, download, archive)
    if convert and not converted:
        convert_masks(sbd / "cls", folder / CONVERTED, Path(root))
        dataset = voc_images(folder, title, names, mask_folders)
    masks = (
        mask if there else sbd / "cls" / f"{name}.mat"
        for mask, there, name in zip(dataset.masks, map(isfile, dataset.masks), names, strict=True)
    )
    parts: dict[str, Any] = vars(dataset) | {"masks": tuple(masks)}
    return SBDDataset(**parts)


def find_sbd(root: str, download: bool = False, archive: str | Sequence[str] | None = None) -> Path:
    """The folder of SBD's masks and lists under ``root``.

    Raises
    ------
    DataError
        It is not there, and cannot be fetched.
    """
    if download or archive:
        obtain_archive(Path(root), SBD, download, archive)
    folder = Path(root) / DATASET
    if not (folder / "cls").is_dir():
        raise DataError(
            f"some masks are SBD's, and SBD is not in data.root={root}: {folder / 'cls'} is no folder. Unpack its"
            f" {SBD.name} there, or let fcnlab do it: data.download=true, or data.archive=PATH"
        )
    return folder


def read_mat(path: Path) -> UInt8[ndarray, "rows cols"]:
    """The class ids in one of SBD's files, of which nothing is run.

    Raises
    ------
    DataError
        It is missing, unreadable, or none of SBD's masks of VOC's classes.
    """
    try:
        labels = read_field(path, "GTcls", "Segmentation")
    except FileNotFoundError:
        raise MissingFile(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise BrokenFile(
            f"{path} cannot be read as a mask of SBD's (GTcls.Segmentation): {first_line(error)}"
        ) from error
    if labels.ndim != 2:
        raise WrongMode(f"{path} holds a mask of {labels.ndim} dimensions")
    wrong = sorted(set(np.unique(labels).tolist()) - set(range(len(CLASSES))) - {IGNORE_INDEX})
    if wrong:
        raise WrongLabels(
            f"{path} holds labels {wrong[:5]}, but VOC has classes 0 to {len(CLASSES) - 1} and {IGNORE_INDEX} for void"
        )
    return labels.astype(np.uint8)


def convert_masks(source: Path, target: Path, root: Path) -> None:
    """Write the ``.mat`` masks of a folder as VOC's palette PNGs: aside, and renamed when all are there.

    Raises
    ------
    DataError
        One cannot be read; ``root``, below which ``target`` is, cannot be written to.
    """
    files, palette = sorted(source.glob("*.mat")), voc_palette(len(CLASSES))
    aside = target.with_name(f".{target.name}")  # whoever holds the lock is alone with it

    def convert(file: Path) -> None:
        save_labels(aside / f"{file.stem}.png", read_mat(file), palette)

    try:
        with exclusive_folder(root):
            if target.is_dir():  # another process was first
                return
            shutil.rmtree(aside, ignore_errors=True)
            try:
                aside.mkdir()
                with ThreadPoolExecutor(visible_cores()) as pool:
                    for _ in progress(pool.map(convert, files), desc=f"SBD's masks to {CONVERTED}/", total=len(files)):
                        pass
                aside.rename(target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except DataError as error:
        raise DataError(f"{error}. (data.dataset.convert=false reads SBD's files as they come.)") from error
