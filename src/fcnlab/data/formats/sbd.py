"""SBD's masks for VOC's images: 11,355 of VOC2011, of which 8,498 are SBD's own train.

``root/benchmark_RELEASE/dataset/`` is the unpacked archive: ``cls/ID.mat``, ``train.txt``, ``val.txt``. Its images are
VOC's, and are read from the devkit, so that fcnlab detects images in both training and validation.

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
    list_name,
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
OWN_LISTS = {"sbd_train": "train", "sbd_val": "val"}  # different images than VOC's lists of these names
PLACE = "www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"
SBD = Archive(  # its sum: torchvision, datasets/sbd.py
    name="benchmark.tgz",
    md5="82b4d87ceb2ed10f6038a1cba92111cb",
    urls=(f"https://{PLACE}", f"http://{PLACE}"),
    witness=str(DATASET / "train.txt"),
)


class SBDDataset(SegmentationDataset):
    """A data set whose masks may be SBD's own files."""

    def mask(self, index: int) -> UInt8[ndarray, "rows cols"]:
        path = self.masks[index]
        return read_mat(path) if path.suffix == ".mat" else super().mask(index)

    def mask_palette(self, index: int) -> UInt8[ndarray, "values 3"] | None:
        return None if self.masks[index].suffix == ".mat" else super().mask_palette(index)

    def mask_size(self, index: int) -> tuple[int, int]:
        if self.masks[index].suffix != ".mat":
            return super().mask_size(index)
        rows, cols = self.mask(index).shape  # these files have no header with the size
        return rows, cols


def open_sbd(
    root: str,
    split: str,
    year: Year = 2012,
    convert: bool = True,
    download: bool = False,
    archive: str | Sequence[str] | None = None,
) -> SegmentationDataset:
    """Open VOC's images of one of its lists (``trainaug``, ``val``) or of SBD's (``sbd_train``, ``sbd_val``).

    On VOC's lists, official masks take precedence over SBD's; on SBD's lists, all masks are SBD's, as in the FCN
    papers. SBD itself is needed only if ``SegmentationClassAug/`` does not contain them.

    Parameters
    ----------
    convert
        Write SBD's masks to ``SegmentationClassAug/`` when they are first needed. Otherwise read the original files,
        which takes longer and writes nothing.
    download, archive
        Download VOC and SBD if they are missing, or unpack them from the user's tar files.

    Raises
    ------
    DataError
        As :func:`~fcnlab.data.formats.voc.open_voc`; also if SBD is needed and missing.
    """
    if download or archive:
        obtain_archive(Path(root), voc_archive(year, split), download, archive)
    folder, own = voc_folder(root, year), split in OWN_LISTS
    place, name = find_list(folder, split, year)
    if own and not isfile(place / f"{name}.txt"):  # noqa: PTH113
        place, name = find_sbd(root, download, archive), OWN_LISTS[split]
    names, title = read_list(place, name), f"VOC{year} {list_name(split)}"
    mask_folders = (CONVERTED,) if own else MASK_FOLDERS
    dataset = voc_images(folder, title, names, mask_folders)
    if split == "test" or all(map(isfile, dataset.masks)):
        return dataset
    converted = (folder / CONVERTED).is_dir()
    if converted and not (Path(root) / DATASET).is_dir():  # masks from another source, some of which are missing
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
    """Return the folder of SBD's masks and lists under ``root``.

    Raises
    ------
    DataError
        It is missing, and cannot be downloaded.
    """
    if download or archive:
        obtain_archive(Path(root), SBD, download, archive)
    folder = Path(root) / DATASET
    if not (folder / "cls").is_dir():
        raise DataError(
            f"some masks are SBD's, but SBD is not in data.root={root}: {folder / 'cls'} does not exist. Unpack"
            f" {SBD.name} there, or set data.download=true or data.archive=PATH"
        )
    return folder


def read_mat(path: Path) -> UInt8[ndarray, "rows cols"]:
    """Return the class ids in one of SBD's files; no code in it is executed.

    Raises
    ------
    DataError
        The file is missing, unreadable, or not a mask of SBD with VOC's classes.
    """
    try:
        labels = read_field(path, "GTcls", "Segmentation")
    except FileNotFoundError:
        raise MissingFile(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise BrokenFile(f"{path} cannot be read as a mask of SBD (GTcls.Segmentation): {first_line(error)}") from error
    if labels.ndim != 2:
        raise WrongMode(f"{path} contains a mask of {labels.ndim} dimensions")
    invalid = sorted(set(np.unique(labels).tolist()) - set(range(len(CLASSES))) - {IGNORE_INDEX})
    if invalid:
        raise WrongLabels(
            f"{path} contains labels {invalid[:5]}, but VOC has classes 0 to {len(CLASSES) - 1} and void {IGNORE_INDEX}"
        )
    return labels.astype(np.uint8)


def convert_masks(source: Path, target: Path, root: Path) -> None:
    """Convert the ``.mat`` masks of a folder to VOC's palette PNGs, atomically.

    Raises
    ------
    DataError
        A mask cannot be read, or ``root``, which contains ``target``, cannot be written to.
    """
    files, palette = sorted(source.glob("*.mat")), voc_palette(len(CLASSES))
    aside = target.with_name(f".{target.name}")  # only the holder of the lock uses it

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
        raise DataError(f"{error}. (data.dataset.convert=false reads SBD's files without conversion.)") from error
