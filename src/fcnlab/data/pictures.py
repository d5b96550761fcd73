"""Pictures and their masks on disk: what every data set opens to, and the checks that come before any work."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from fcnlab.errors import UserError
from fcnlab.results.scores import VOID

MASK_MODES = ("P", "L")  # palette and grey PNGs, whose pixel is the class


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
        with _opened(path) as file:
            if file.mode not in MASK_MODES:
                raise DataError(
                    f"{path} is a mask of mode {file.mode}: masks hold one class id per pixel, as palette (P) or"
                    " grey (L) PNG. Convert colours to ids first."
                )
            mask = np.array(file)
        meaning = self._labels()[mask]
        if (meaning == len(self.classes)).any():
            wrong = sorted(set(np.unique(mask).tolist()) - set(range(len(self.classes))) - {self.void})
            raise DataError(
                f"{path} holds labels {wrong[:5]}, but {self.title} has classes 0 to {len(self.classes) - 1}"
                f" and {self.void} for void"
            )
        return np.where(meaning > len(self.classes), np.uint8(VOID), mask)

    def _labels(self) -> UInt8[ndarray, "256"]:
        """What a label on disk is: its class (as 0), no class (as their number), or void (above that)."""
        count = len(self.classes)
        meaning = np.full(256, count, np.uint8)
        meaning[:count] = 0
        meaning[self.void] = count + 1
        return meaning

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
            with _opened(self.images[index]) as file:
                cols, rows = file.size
            if min(rows, cols) < min_size:
                return f"{self.images[index]} has {rows}x{cols} pixels; the net needs {min_size} on each side"
            if self.masks and self.mask(index).shape != (rows, cols):
                mask_rows, mask_cols = self.mask(index).shape
                return f"{self.images[index]} has {rows}x{cols} pixels, its mask {mask_rows}x{mask_cols}"
        except DataError as error:
            return str(error)
        return None


def read_image(path: Path) -> UInt8[ndarray, "rows cols 3"]:
    """A picture as RGB.

    Raises
    ------
    DataError
        No such file, or not readable as a picture to its end.
    """
    with _opened(path) as file:
        return np.array(file.convert("RGB"))


class _opened:
    """PIL's image; whatever goes wrong with the file while it is open becomes a DataError that names it."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Image.Image:
        try:
            self.file = Image.open(self.path)
        except FileNotFoundError:
            raise DataError(f"{self.path} is missing") from None
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{self.path} cannot be read as a picture: {error}") from error
        return self.file

    def __exit__(self, kind, error, traceback) -> None:
        self.file.close()
        if isinstance(error, (OSError, SyntaxError, Image.DecompressionBombError)):  # PIL's words for a broken file
            raise DataError(f"{self.path} cannot be read to its end: {error}") from error
