"""Open and read image files, and the errors of unusable files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile

from fcnlab.data.image_headers import check_work
from fcnlab.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")  # of image files
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # PIL opens 40 more, EPS by running Ghostscript
SLOW = ("ppm_plain", "ppm", "bmp_rle")  # PIL's decoders in Python: numbers as text, of other ranges, runs of pixels
MOST_PLANES = 8  # limit on decoded pixels per pixel: 1, or 1 for each separately stored channel
END_OF_JPEG = b"\xff\xd9"
ENDS = (END_OF_JPEG, b"IEND\xaeB`\x82")  # of a whole JPEG, of a whole PNG


class DataError(UserError):
    """Data that is missing, unreadable or contradictory."""


class MissingFile(DataError):
    """A file of a list or a pattern does not exist."""


class UnreadableFile(DataError):
    """A file is not an image of a supported format."""


class BrokenFile(DataError):
    """An image file is truncated, or its checksums are wrong."""


class WrongSize(DataError):
    """An image has another size than its mask, or is too small or too large."""


class WrongMode(DataError):
    """Unsupported pixels: a mask of colours, an image of more than 8 bits per channel, a rotated TIFF."""


class WrongLabels(DataError):
    """A mask contains ids or colours without a class."""


def image_size(path: Path) -> tuple[int, int]:
    """Return rows and columns from the header; decode the file if its end marker is missing."""
    with open_image(path) as file:
        if not _has_its_end(path):
            file.load()
        cols, rows = file.size
    return rows, cols


def _has_its_end(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8))
        return file.read().endswith(ENDS)


def read_image(path: Path) -> UInt8[ndarray, "rows cols 3"]:
    """Return an image as RGB.

    Raises
    ------
    DataError
        The file is missing, unreadable, truncated, too large, or has more than 8 bits per channel.
    """
    with open_image(path) as file:
        if file.format == "JPEG" and file.mode == "RGB" and (pixels := _whole_jpeg(path, file.size)) is not None:
            return pixels
        return as_rgb(file)


def as_rgb(image: Image.Image) -> UInt8[ndarray, "rows cols 3"]:
    """Return PIL's image of 8 bits per channel as RGB."""
    if image.mode == "P" and "transparency" in image.info:
        return np.array(image.convert("RGBA").convert("RGB"))  # the same colours; PIL warns about direct conversion
    return np.array(image.convert("RGB"))


def _whole_jpeg(path: Path, size: tuple[int, int]) -> UInt8[ndarray, "rows cols 3"] | None:
    """Decode a JPEG by OpenCV, which also uses libjpeg: the same values in four fifths of PIL's time.

    OpenCV fills missing parts with grey, so return None for a file without a JPEG end marker, which PIL then reads.
    """
    data = np.fromfile(path, np.uint8)
    if data[-2:].tobytes() != END_OF_JPEG:
        return None
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    return pixels if pixels is not None and pixels.shape[1::-1] == size else None


@contextmanager
def open_image(path: Path) -> Iterator[ImageFile]:
    """Yield PIL's image, not yet decoded; all errors become a DataError with the file name."""
    with opened(path, IMAGE_FORMATS) as file:
        check_depth(file, str(path))
        yield file


def check_depth(image: Image.Image, name: str) -> None:
    """Check that PIL's image has 8 bits per channel, or fewer.

    Raises
    ------
    WrongMode
        It has more.
    """
    if image.mode.startswith(("I", "F")):
        raise WrongMode(
            f"{name} has pixels of mode {image.mode}, with more than 8 bits, which would be clipped at 255:"
            " save it with 8 bits per channel"
        )


@contextmanager
def opened(path: Path, formats: tuple[str, ...]) -> Iterator[ImageFile]:
    """Yield PIL's image; all errors while it is open become a DataError with the file name."""
    try:
        if not path.is_file() and path.exists():  # opening a pipe would block forever
            raise ValueError("it is not a regular file")
        check_work(path)
        file = Image.open(path, formats=formats)
    except FileNotFoundError:
        raise MissingFile(f"{path} is missing{_similar_names_hint(path)}{_list_line_hint(path)}") from None
    except Exception as error:  # PIL's plugins raise many kinds of errors
        raise UnreadableFile(f"{path} cannot be read as an image ({', '.join(formats)}): {error}") from error
    with file:
        try:
            _check_header(path, file)
            yield file
        except DataError:
            raise
        except Exception as error:
            raise BrokenFile(f"{path} is truncated or damaged: {error}") from error


def _similar_names_hint(path: Path) -> str:
    """Return a hint on files with the name of a missing one in another case."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.name.lower() == path.name.lower()]
    except OSError:
        return ""
    return f"; its folder contains {', '.join(sorted(names))}" if names else ""


def _list_line_hint(path: Path) -> str:
    """Return a hint on the line of a list that names a missing file, from the files in its folder."""
    if any(part.name.startswith("#") and not part.exists() for part in (path, *path.parents)):
        return ": lists contain one name per line, without # comments"
    first, *behind = path.stem.split()[:2] or [""]
    if behind and path.with_name(f"{first}{path.suffix}").is_file():
        return f": lists contain one name per line, here {first}, and nothing else"
    named = Path(path.stem)
    if named.suffix.lower() in SUFFIXES and any(path.parent.glob(f"{escape(named.stem)}.*")):
        return f": names in lists have no suffix: write {named.stem} instead of {named}"
    return ""


def _check_header(path: Path, file: ImageFile) -> None:
    if any(tile[0] in SLOW for tile in file.tile):
        raise UnreadableFile(f"{path} has an encoding that takes minutes to read ({file.tile[0][0]}): save it as PNG")
    cols, rows = file.size
    if Image.MAX_IMAGE_PIXELS is not None and rows * cols > Image.MAX_IMAGE_PIXELS:  # PIL only warns
        raise WrongSize(
            f"{path} has {rows}x{cols} pixels, more than {Image.MAX_IMAGE_PIXELS} in total: split it into tiles"
        )
    if _decoded_pixels(file) > MOST_PLANES * rows * cols:
        raise UnreadableFile(f"{path} stores the same pixels many times, which takes minutes to read: save it as PNG")
    turn = getattr(file, "tag_v2", {}).get(ExifTags.Base.Orientation, 1)
    if turn != 1:  # PIL rotates these, and only these, when it decodes them
        raise WrongMode(f"{path} is a TIFF with orientation {turn}: save it upright, like its mask or image")


def _decoded_pixels(file: ImageFile) -> int:
    """Return the number of pixels that PIL decodes: strips and tiles of a TIFF can overlap."""
    boxes = [box for _, box, *_ in file.tile if box is not None]
    return sum(max(0, right - left) * max(0, bottom - top) for left, top, right, bottom in boxes)
