"""predictions.zip: the class maps of an evaluation, with the ground truth and a small copy of each image.

The members are ``class_maps/NAME.png`` and ``ground_truth/NAME.png``, palette images of the scored size with class ids
(255 is ignored), and ``images/NAME.jpg``, at most ``SIDE`` pixels to a side. They are stored without another
compression. Characters of a name that are not letters, digits or ``/_.-~`` of ASCII are percent-encoded, because a file
name may contain bytes that are not text.

A reader treats the archive as foreign: it looks members up by the names of the record, never acts on a path, and checks
sizes before it decodes anything.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from fcnlab.files.reading import ZIP_BYTES, ZIP_COUNT, ZIP_MEMBERS, Members, open_members
from fcnlab.files.writing import atomic_write
from fcnlab.metrics.scores import IGNORE_INDEX
from fcnlab.runs.drawing import RGB, Palette, with_palette

NAME = "predictions.zip"
LIMIT = 50_000_000  # bytes that keep_predictions=auto keeps of all images: 2,000 images of VOC's size
WORST, RANDOM = 50, 50  # images that it keeps of a larger set
SIDE = 320  # pixels: longer side of the copy of an image
QUALITY, COMPRESSION = 75, 3  # of JPEG and PNG; PNG's default of 6 takes three times as long for 0.65 of the size
MEMBER_BYTES, IMAGE_BYTES = 16 << 20, 256 << 10  # limits of a reader; a class map has some kB, a copy some 16 kB
PIXELS = 60_000_000  # of a class map
MEMBER_HEADER, DIRECTORY_ENTRY, END = 30, 46, 22  # bytes of a zip, besides names and members
ClassMap = UInt8[ndarray, "rows cols"]


class EncodedImage(NamedTuple):
    """The members of one image."""

    class_map: bytes
    ground_truth: bytes
    image: bytes

    @property
    def size(self) -> int:
        """Number of bytes."""
        return sum(map(len, self))


class KeptImage(NamedTuple):
    """What an archive keeps of an image: a small copy, and class ids of the scored size."""

    image: RGB
    target: ClassMap
    prediction: ClassMap
    palette: Palette


def encode(
    image: UInt8[ndarray, "3 rows cols"], target: ClassMap, prediction: ClassMap, palette: Palette
) -> EncodedImage:
    """Encode an image with its ground truth and its prediction."""
    copy = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    copy.thumbnail((SIDE, SIDE))
    maps = (
        _encoded(with_palette(labels, palette), "PNG", compress_level=COMPRESSION) for labels in (prediction, target)
    )
    return EncodedImage(*maps, image=_encoded(copy, "JPEG", quality=QUALITY))


def _encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def worst_and_random(mious: Mapping[str, float]) -> set[str]:
    """Return the names of the images with the lowest mean IoU, and of some that depend on the names only.

    Two runs on the same images therefore keep the same random ones. An image with only ignored pixels (nan) is never
    among the worst.
    """
    scored = [name for name, miou in mious.items() if miou == miou]
    worst = sorted(scored, key=lambda name: (mious[name], name))[:WORST]
    return {*worst, *sorted(mious, key=_hash)[:RANDOM]}


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()


def readable(images: Mapping[str, EncodedImage]) -> dict[str, EncodedImage]:
    """Return the first images, as many as a reader accepts in one archive."""
    kept, size, directory = {}, 0, 0
    for name, encoded in images.items():
        names = sum(len(member) for member in _members(name))
        directory += names + 3 * DIRECTORY_ENTRY
        size += names + 3 * MEMBER_HEADER + encoded.size
        if 3 * len(kept) + 3 > ZIP_COUNT or directory > ZIP_MEMBERS or size + directory + END >= ZIP_BYTES:
            break
        kept[name] = encoded
    return kept


def write_archive(path: Path, images: Mapping[str, EncodedImage]) -> int:
    """Write the archive atomically; return its size in bytes. Equal predictions give equal files."""
    with atomic_write(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name, encoded in images.items():
            for member, data in zip(_members(name), encoded, strict=True):
                info = zipfile.ZipInfo(member)
                info.external_attr = 0o644 << 16  # otherwise unzip creates files that nobody may read
                archive.writestr(info, data)
    return path.stat().st_size


def _members(name: str) -> tuple[str, str, str]:
    """Return the members of an image: class map, ground truth, image."""
    quoted = quote(name, safe="/", encoding="utf-8", errors="surrogateescape")
    return f"class_maps/{quoted}.png", f"ground_truth/{quoted}.png", f"images/{quoted}.jpg"


@contextmanager
def open_archive(folder: Path, num_classes: int) -> Iterator["PredictionArchive"]:
    """Open the archive of a run's folder.

    Raises
    ------
    OSError, Unreadable
        There is none, or it cannot be read, is damaged, or over a limit; also raised while it is open.
    """
    with open_members(folder, NAME) as members:
        yield PredictionArchive(members, num_classes)


class PredictionArchive:
    """The kept images of a run whose data have ``num_classes`` classes; errors become Unreadable (open_archive)."""

    def __init__(self, members: Members, num_classes: int):
        self._kept, self._num_classes = members, num_classes

    def __contains__(self, name: str) -> bool:
        return all(member in self._kept for member in _members(name))

    def read(self, name: str) -> KeptImage:
        """Return what is kept of an image.

        Raises
        ------
        ValueError
            A member is too large, no image of its kind, or contains ids that are no class.
        """
        class_map, ground_truth, copy = _members(name)
        prediction, _ = self._class_map(class_map)
        target, palette = self._class_map(ground_truth)
        if prediction.shape != target.shape:
            raise ValueError(f"{class_map} has another size than {ground_truth}")
        if prediction.max() >= self._num_classes or target[target != IGNORE_INDEX].max(initial=0) >= self._num_classes:
            raise ValueError(f"{class_map} or {ground_truth} contains an id that is no class")
        return KeptImage(self._image(copy), target, prediction, palette[: self._num_classes])

    def _class_map(self, member: str) -> tuple[ClassMap, Palette]:
        with Image.open(io.BytesIO(self._kept.read(member, MEMBER_BYTES)), formats=["PNG"]) as image:
            if image.mode != "P" or image.width * image.height > PIXELS:
                raise ValueError(f"{member} has no palette, or more than {PIXELS:,} pixels")
            labels = np.array(image)
            palette = np.zeros((256, 3), np.uint8)
            colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
            palette[: len(colours)] = colours
        return labels, palette

    def _image(self, member: str) -> RGB:
        with Image.open(io.BytesIO(self._kept.read(member, IMAGE_BYTES)), formats=["JPEG"]) as image:
            # A progressive JPEG may have thousands of scans, each of which takes the time of a whole image.
            if max(image.size) > SIDE or image.mode != "RGB" or "progressive" in image.info:
                raise ValueError(f"{member} is not a plain JPEG of at most {SIDE} pixels to a side")
            return np.array(image)
