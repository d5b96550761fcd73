"""Pictures and their masks on disk: what every data set opens to, and the checks that come before any work."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from PIL.ImageFile import ImageFile

from fcnlab.errors import UserError
from fcnlab.results.scores import VOID

MASK_FORMATS = ("PNG",)  # a JPEG's labels would be blurred, a GIF's renumbered
MASK_MODES = ("P", "P;1", "P;2", "P;4", "L")  # palette and grey, as stored; PIL stretches grey of few bits to 0..255
END_OF_JPEG = b"\xff\xd9"
PICTURE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # PIL opens 40 more, EPS by running Ghostscript


class DataError(UserError):
    """Data that is missing, unreadable or contradicts itself."""


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
        The label on disk that is neither trained on nor scored; it is read as 255.
    """

    title: str
    names: tuple[str, ...]
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    classes: tuple[str, ...]
    palette: UInt8[ndarray, "classes 3"]
    void: int = VOID

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
            The mask is unreadable, not made of indices, or holds an id that is no class.
        """
        path = self.masks[index]
        with _opened(path, MASK_FORMATS) as file:
            mode = file.tile[0][3]
            if mode not in MASK_MODES:
                raise DataError(
                    f"{path} is a mask of mode {mode}: masks hold one class id per pixel, as palette (P) or grey (L, 8"
                    " bits) PNG. Convert colours to ids first."
                )
            file.verify()  # by its checksums, which decoding passes over: the last pixels could be others
        with _opened(path, MASK_FORMATS) as file:
            mask = np.array(file)
        beyond = mask[mask >= len(self.classes)]
        if (beyond != self.void).any():
            wrong = sorted(set(np.unique(mask).tolist()) - set(range(len(self.classes))) - {self.void})
            raise DataError(
                f"{path} holds labels {wrong[:5]}, but {self.title} has classes 0 to {len(self.classes) - 1}"
                f" and {self.void} for void"
            )
        if self.void != VOID:
            mask[mask == self.void] = VOID
        return mask

    def size(self, index: int) -> tuple[int, int]:
        """Rows and columns, by the picture's header."""
        with _picture(self.images[index]) as file:
            cols, rows = file.size
        return rows, cols

    def check(self, min_size: int = 1) -> None:
        """Look at every file before any long work: pictures' headers and whole masks.

        Raises
        ------
        DataError
            One message for all that is wrong: a missing or unreadable file, a picture of another size than its mask or
            smaller than ``min_size`` pixels, a mask with labels that are no classes, a name that is listed twice.
        """
        if not self.names:
            raise DataError(f"{self.title} is empty: name another list")
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        problems = [f"{name} is listed twice" for name in twice]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            found = pool.map(lambda index: self._problem(index, min_size), range(len(self)))
            problems += [problem for problem in found if problem]
        if problems:
            more = f"\n… and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise DataError(
                f"{self.title}: {len(problems)} of {len(self)} pictures cannot be used:\n"
                + "\n".join(f"  {problem}" for problem in problems[:5])
                + more
            )

    def _problem(self, index: int, min_size: int) -> str | None:
        try:
            with _picture(self.images[index]) as file:
                cols, rows = file.size
            if min(rows, cols) < min_size:
                return f"{self.images[index]} has {rows}x{cols} pixels; the net needs {min_size} on each side"
            if self.masks:
                with _opened(self.masks[index], MASK_FORMATS) as file:
                    mask_cols, mask_rows = file.size
                if (mask_rows, mask_cols) != (rows, cols):
                    return f"{self.images[index]} has {rows}x{cols} pixels, its mask {mask_rows}x{mask_cols}"
                self.mask(index)
        except DataError as error:
            return str(error)
        return None


def read_image(path: Path) -> UInt8[ndarray, "rows cols 3"]:
    """A picture as RGB.

    Raises
    ------
    DataError
        No such file, not readable as a picture to its end, too large, or of more than 8 bits.
    """
    with _picture(path) as file:
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
def _picture(path: Path) -> Iterator[ImageFile]:
    with _opened(path, PICTURE_FORMATS) as file:
        if file.mode.startswith(("I", "F")):
            raise DataError(
                f"{path} has pixels of mode {file.mode}, more than 8 bits, which would be cut off at 255:"
                " save it with 8 bits to a channel"
            )
        yield file


@contextmanager
def _opened(path: Path, formats: tuple[str, ...]) -> Iterator[ImageFile]:
    """PIL's image; whatever goes wrong with the file while it is open becomes a DataError that names it."""
    try:
        file = Image.open(path, formats=formats)
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except Exception as error:  # PIL's plugins end in a dozen kinds
        raise DataError(f"{path} cannot be read as a picture ({', '.join(formats)}): {error}") from error
    with file:
        cols, rows = file.size
        if Image.MAX_IMAGE_PIXELS is not None and rows * cols > Image.MAX_IMAGE_PIXELS:  # where PIL itself only warns
            raise DataError(
                f"{path} has {rows}x{cols} pixels, more than {Image.MAX_IMAGE_PIXELS} in all: cut it into tiles"
            )
        try:
            yield file
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{path} cannot be read to its end: {error}") from error
