"""Image files on disk: what is taken, how one is opened and read, and the kinds of what can be wrong with it."""

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

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")  # of files that are images
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # PIL opens 40 more, EPS by running Ghostscript
SLOW = ("ppm_plain", "ppm", "bmp_rle")  # PIL's decoders in Python: numbers as text, of other ranges, runs of pixels
MOST_PLANES = 8  # as often as all pixels may be decoded: once, or once for each channel that is stored by itself
END_OF_JPEG = b"\xff\xd9"
ENDS = (END_OF_JPEG, b"IEND\xaeB`\x82")  # of a whole JPEG, of a whole PNG


class DataError(UserError):
    """Data that is missing, unreadable or contradicts itself."""


class MissingFile(DataError):
    """A list or a pattern names a file that is not there."""


class UnreadableFile(DataError):
    """A file that is no image of a format that is taken."""


class BrokenFile(DataError):
    """An image that ends too early, or does not fit its own checksums."""


class WrongSize(DataError):
    """An image of another size than its mask, or one too small or too large to work with."""


class WrongMode(DataError):
    """Pixels of another kind: a mask of colours, an image of more than 8 bits to a channel, a turned TIFF."""


class WrongLabels(DataError):
    """A mask with ids, or colours, that are no classes."""


def image_size(path: Path) -> tuple[int, int]:
    """Rows and columns, by the header; where the file lacks its format's end, only if its pixels are all there."""
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
    """An image as RGB.

    Raises
    ------
    DataError
        No such file, not readable as an image to its end, too large, or of more than 8 bits.
    """
    with open_image(path) as file:
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
def open_image(path: Path) -> Iterator[ImageFile]:
    """PIL's image, not yet decoded; whatever goes wrong with it becomes a DataError that names the file."""
    with opened(path, IMAGE_FORMATS) as file:
        if file.mode.startswith(("I", "F")):
            raise WrongMode(
                f"{path} has pixels of mode {file.mode}, more than 8 bits, which would be cut off at 255:"
                " save it with 8 bits to a channel"
            )
        yield file


@contextmanager
def opened(path: Path, formats: tuple[str, ...]) -> Iterator[ImageFile]:
    """PIL's image; whatever goes wrong with the file while it is open becomes a DataError that names it."""
    try:
        if not path.is_file() and path.exists():  # a pipe would be waited for, for ever
            raise ValueError("it is no regular file")
        check_work(path)
        file = Image.open(path, formats=formats)
    except FileNotFoundError:
        raise MissingFile(f"{path} is missing{_beside(path)}{_of_a_list(path)}") from None
    except Exception as error:  # PIL's plugins end in a dozen kinds
        raise UnreadableFile(f"{path} cannot be read as an image ({', '.join(formats)}): {error}") from error
    with file:
        try:
            _check_header(path, file)
            yield file
        except DataError:
            raise
        except Exception as error:
            raise BrokenFile(f"{path} cannot be read to its end: {error}") from error


def _beside(path: Path) -> str:
    """The file beside a missing one that has its name in another case."""
    try:
        found = [one.name for one in path.parent.iterdir() if one.name.lower() == path.name.lower()]
    except OSError:
        return ""
    return f"; in its folder there is {', '.join(sorted(found))}" if found else ""


def _of_a_list(path: Path) -> str:
    """What is wrong with the line of a list that names a missing file, where the files beside it tell."""
    if any(part.name.startswith("#") and not part.exists() for part in (path, *path.parents)):
        return ": a line of a list is a name, and # begins no comment"
    first, *behind = path.stem.split()[:2] or [""]
    if behind and path.with_name(f"{first}{path.suffix}").is_file():
        return f": a line of a list is a name alone, {first}, with nothing behind it"
    named = Path(path.stem)
    if named.suffix.lower() in SUFFIXES and any(path.parent.glob(f"{escape(named.stem)}.*")):
        return f": names in a list have no suffix: {named.stem} instead of {named}"
    return ""


def _check_header(path: Path, file: ImageFile) -> None:
    if any(tile[0] in SLOW for tile in file.tile):
        raise UnreadableFile(
            f"{path} is stored in a way that takes minutes to read ({file.tile[0][0]}): save it as PNG"
        )
    cols, rows = file.size
    if Image.MAX_IMAGE_PIXELS is not None and rows * cols > Image.MAX_IMAGE_PIXELS:  # where PIL itself only warns
        raise WrongSize(
            f"{path} has {rows}x{cols} pixels, more than {Image.MAX_IMAGE_PIXELS} in all: cut it into tiles"
        )
    if _decoded_pixels(file) > MOST_PLANES * rows * cols:
        raise UnreadableFile(f"{path} stores the same pixels many times, which takes minutes to read: save it as PNG")
    turn = getattr(file, "tag_v2", {}).get(ExifTags.Base.Orientation, 1)
    if turn != 1:  # PIL turns these, and only these, when it decodes them
        raise WrongMode(f"{path} is a TIFF that notes orientation {turn}: save it upright, as its mask or image is")


def _decoded_pixels(file: ImageFile) -> int:
    """How many pixels PIL decodes: strips and tiles of a TIFF can lie over each other."""
    boxes = [box for _, box, *_ in file.tile if box is not None]
    return sum(max(0, right - left) * max(0, bottom - top) for left, top, right, bottom in boxes)
