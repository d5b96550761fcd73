"""Pictures and their masks on disk: what every data set opens to, and the checks that come before any work."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from PIL.ImageFile import ImageFile

from fcnlab.cores import visible_cores
from fcnlab.errors import UserError
from fcnlab.results.scores import VOID

MASK_FORMATS = ("PNG",)  # a JPEG's labels would be blurred, a GIF's renumbered
MASK_MODES = ("P", "P;1", "P;2", "P;4", "L")  # palette and grey, as stored; PIL stretches grey of few bits to 0..255
END_OF_JPEG = b"\xff\xd9"
ENDS = (END_OF_JPEG, b"IEND\xaeB`\x82")  # of a whole JPEG, of a whole PNG
PART = 32  # pictures that a thread checks one after the other
RGB_PLACES = np.array([1 << 16, 1 << 8, 1])  # a colour as one number
SLOW = ("ppm_plain", "ppm", "bmp_rle")  # PIL's decoders in Python: numbers as text, of other ranges, runs of pixels
PICTURE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # PIL opens 40 more, EPS by running Ghostscript


class DataError(UserError):
    """Data that is missing, unreadable or contradicts itself."""


class MissingFile(DataError):
    """A list or a pattern names a file that is not there."""


class UnreadableFile(DataError):
    """A file that is no picture of a format that is taken."""


class BrokenFile(DataError):
    """A picture that ends too early, or does not fit its own checksums."""


class WrongSize(DataError):
    """A picture of another size than its mask, or one too small or too large to work with."""


class WrongMode(DataError):
    """Pixels of another kind: a mask of colours, a picture of more than 8 bits to a channel."""


class WrongLabels(DataError):
    """A mask with ids, or colours, that are no classes."""


@dataclass(frozen=True)
class Pictures:
    """A split of a data set.

    Attributes
    ----------
    title
        What messages and records call it, such as "VOC2012 val".
    names
        One per picture; unique.
    masks
        One path per picture; empty where there is no truth.
    palette
        RGB in 0..255, one row per class.
    void
        The label on disk that is neither trained on nor scored; it is read as 255. None: there is none.
    colours
        What each RGB is in masks that are coloured, 255 for void; None: masks hold ids, and coloured ones are errors.
    """

    title: str
    names: tuple[str, ...]
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    classes: tuple[str, ...]
    palette: UInt8[ndarray, "classes 3"]
    void: int | None = VOID
    colours: Mapping[tuple[int, int, int], int] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> UInt8[ndarray, "rows cols 3"]:
        """RGB, as stored: a rotation noted in EXIF is not applied, since masks do not have it."""
        return read_image(self.images[index])

    def mask(self, index: int) -> UInt8[ndarray, "rows cols"]:
        """Class ids, 255 for void.

        Raises
        ------
        DataError
            The mask is unreadable, not made of indices, or holds an id or a colour that is no class.
        """
        path = self.masks[index]
        with _opened(path, MASK_FORMATS) as file:
            mode = file.tile[0][3]
            if mode not in MASK_MODES and not (mode == "RGB" and self.colours):
                raise WrongMode(
                    f"{path} is a mask of mode {mode}: masks hold one class id per pixel, as palette (P) or grey (L, 8"
                    " bits) PNG. Convert colours to ids first, or give RGB masks' colours to data=folder."
                )
            file.verify()  # by its checksums, which decoding passes over: the last pixels could be others
        with _opened(path, MASK_FORMATS) as file:
            mask = np.array(file)
        if mask.ndim == 3:
            return self._ids(mask, path)
        beyond = mask[mask >= len(self.classes)]
        if (beyond != self.void).any():
            wrong = sorted(set(np.unique(mask).tolist()) - set(range(len(self.classes))) - {self.void})
            raise WrongLabels(
                f"{path} holds labels {wrong[:5]}, but {self.title} has classes 0 to {len(self.classes) - 1}"
                f" and {'nothing' if self.void is None else self.void} for void"
            )
        if self.void not in (None, VOID):
            mask[mask == self.void] = VOID
        return mask

    def size(self, index: int) -> tuple[int, int]:
        """Rows and columns, by the picture's header."""
        with open_picture(self.images[index]) as file:
            cols, rows = file.size
        return rows, cols

    def _ids(self, mask: UInt8[ndarray, "rows cols 3"], path: Path) -> UInt8[ndarray, "rows cols"]:
        """Colours to ids, each exactly: a colour between two classes is neither of them."""
        assert self.colours
        codes = mask.astype(np.int64) @ RGB_PLACES
        known = np.array(list(self.colours)) @ RGB_PLACES
        order = known.argsort()
        place = order[np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)]
        wrong = np.unique(codes[known[place] != codes])
        if wrong.size:
            shown = ", ".join(f"[{code >> 16}, {code >> 8 & 255}, {code & 255}]" for code in wrong[:3].tolist())
            raise WrongLabels(
                f"{path} holds {len(wrong)} colours that are no class of {self.title}: {shown}"
                f"{', …' if len(wrong) > 3 else ''}. Give each a class, or name it in data.pictures.void_colours."
            )
        return np.array(list(self.colours.values()), np.uint8)[place]

    def mask_size(self, index: int) -> tuple[int, int]:
        """Rows and columns, by the header, so that a mask of another size need not be read."""
        with _opened(self.masks[index], MASK_FORMATS) as file:
            cols, rows = file.size
        return rows, cols

    def check(self, min_size: int = 1) -> None:
        """Look at every file before any long work: pictures' headers and ends, and whole masks.

        Raises
        ------
        DataError
            One message for all that is wrong: a missing, unreadable or shortened file, a picture of another size than
            its mask or smaller than ``min_size`` pixels, a mask with labels that are no classes, a name that is listed
            twice.
        """
        if not self.names:
            raise DataError(f"{self.title} is empty: name another list")
        problems = [f"{name} is listed twice" for name in self.listed_twice()]
        # By parts: to hand each picture to a thread by itself would take a third of the work again.
        parts = [range(len(self))[first : first + PART] for first in range(0, len(self), PART)]
        with ThreadPoolExecutor(visible_cores()) as pool:
            found = pool.map(lambda part: [next(self.faults(index, min_size), None) for index in part], parts)
            problems += [str(fault) for fault in chain(*found) if fault]
        if problems:
            more = f"\n… and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise DataError(
                f"{self.title}: {len(problems)} of {len(self)} pictures cannot be used:\n"
                + "\n".join(f"  {problem}" for problem in problems[:5])
                + more
            )

    def listed_twice(self) -> list[str]:
        """The names that are there more than once."""
        return [name for name, count in Counter(self.names).items() if count > 1]

    def faults(self, index: int, min_size: int = 1) -> Iterator[DataError]:
        """Each reason why a picture and its mask cannot be used, as far as headers, ends and whole masks tell."""
        image, size = self.images[index], None
        try:
            size = picture_size(image)
            if min(size) < min_size:
                raise WrongSize(f"{image} has {size[0]}x{size[1]} pixels; the net needs {min_size} on each side")
        except DataError as fault:
            yield fault
        if not self.masks:
            return
        try:
            rows, cols = self.mask_size(index)
            if size not in (None, (rows, cols)):
                raise WrongSize(f"{image} has {size[0]}x{size[1]} pixels, its mask {rows}x{cols}")
            self.mask(index)
        except DataError as fault:
            yield fault


def picture_size(path: Path) -> tuple[int, int]:
    """Rows and columns, by the header; where the file lacks its format's end, only if its pixels are all there."""
    with open_picture(path) as file:
        if not _has_its_end(path):
            file.load()
        cols, rows = file.size
    return rows, cols


def _has_its_end(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8))
        return file.read().endswith(ENDS)


def read_image(path: Path) -> UInt8[ndarray, "rows cols 3"]:
    """A picture as RGB.

    Raises
    ------
    DataError
        No such file, not readable as a picture to its end, too large, or of more than 8 bits.
    """
    with open_picture(path) as file:
        if file.format == "JPEG" and file.mode == "RGB" and (pixels := _whole_jpeg(path, file.size)) is not None:
            return pixels
        if file.mode == "P" and "transparency" in file.info:
            return np.array(file.convert("RGBA").convert("RGB"))  # the same colours; PIL warns of the direct way
        return np.array(file.convert("RGB"))


def _whole_jpeg(path: Path, size: tuple[int, int]) -> UInt8[ndarray, "rows cols 3"] | None:
    """A JPEG by OpenCV, which has libjpeg too: the same values in four fifths of PIL's time.

    It would make grey pixels of what is missing, so a file that does not end as JPEGs do is left to PIL: None.
    """
    data = np.fromfile(path, np.uint8)
    if data[-2:].tobytes() != END_OF_JPEG:
        return None
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    return pixels if pixels is not None and pixels.shape[1::-1] == size else None


@contextmanager
def open_picture(path: Path) -> Iterator[ImageFile]:
    """PIL's image, not yet decoded; whatever goes wrong with it becomes a DataError that names the file."""
    with _opened(path, PICTURE_FORMATS) as file:
        if file.mode.startswith(("I", "F")):
            raise WrongMode(
                f"{path} has pixels of mode {file.mode}, more than 8 bits, which would be cut off at 255:"
                " save it with 8 bits to a channel"
            )
        yield file


@contextmanager
def _opened(path: Path, formats: tuple[str, ...]) -> Iterator[ImageFile]:
    """PIL's image; whatever goes wrong with the file while it is open becomes a DataError that names it."""
    try:
        if not path.is_file() and path.exists():  # a pipe would be waited for, for ever
            raise ValueError("it is no regular file")
        file = Image.open(path, formats=formats)
    except FileNotFoundError:
        raise MissingFile(f"{path} is missing") from None
    except Exception as error:  # PIL's plugins end in a dozen kinds
        raise UnreadableFile(f"{path} cannot be read as a picture ({', '.join(formats)}): {error}") from error
    with file:
        if any(tile[0] in SLOW for tile in file.tile):
            raise UnreadableFile(
                f"{path} is stored in a way that takes minutes to read ({file.tile[0][0]}): save it as PNG"
            )
        cols, rows = file.size
        if Image.MAX_IMAGE_PIXELS is not None and rows * cols > Image.MAX_IMAGE_PIXELS:  # where PIL itself only warns
            raise WrongSize(
                f"{path} has {rows}x{cols} pixels, more than {Image.MAX_IMAGE_PIXELS} in all: cut it into tiles"
            )
        try:
            yield file
        except DataError:
            raise
        except Exception as error:
            raise BrokenFile(f"{path} cannot be read to its end: {error}") from error
