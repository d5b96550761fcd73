"""Read mask files, and map their ids or colours to labels.

A mask is a PNG or TIFF. Without class colours, its pixels are ids: palette indices or grey values, as stored. With
class colours, its pixels are the colours that an image viewer shows, whether stored as RGB, by a palette or as grey, so
that a lossless PNG optimiser does not change their meaning.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int16, Int64, UInt8
from numpy import ndarray
from PIL.ImageFile import ImageFile

from fcnlab.data.image_files import WrongLabels, WrongMode, opened
from fcnlab.metrics.scores import IGNORE_INDEX

MASK_FORMATS = ("PNG", "TIFF")  # JPEG would blur labels, GIF would renumber them
PALETTE_MODES = ("P", "P;1", "P;2", "P;4")
GREY_OF_FEW_BITS = ("L;2", "L;4")
LOSSY = ("jpeg", "tiff_jpeg", "webp")  # ways to compress a TIFF
PHOTOMETRIC, SAMPLE_FORMAT = 262, 339  # TIFF's tags; 0: the lowest value is white
SIGNED = 2  # a TIFF's sample format
MOST = 2**16 - 1  # the largest id that a file can contain
UNKNOWN = -1  # neither a class nor the ignore index
GREYS = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
RGB_PLACES = np.array([1 << 16, 1 << 8, 1])  # a colour as one number

Colour = tuple[int, int, int]
Labels = Int16[ndarray, "rows cols"]


@dataclass(frozen=True)
class StoredMask:
    """The pixels of a mask file.

    Attributes
    ----------
    values
        Ids, palette indices or grey values, (rows, cols), uint8 or uint16; or RGB, (rows, cols, 3), uint8.
    palette
        The RGB colour, 0..255, of each value; None for RGB and for 16-bit grey.
    """

    values: ndarray
    palette: UInt8[ndarray, "values 3"] | None

    @property
    def has_own_palette(self) -> bool:
        """Whether values are indices of a palette in the file."""
        return self.palette is not None and self.palette is not GREYS

    def labels_by_id(self, ignore_index: int | None, classes: int, ids: Mapping[int, int] | None) -> Labels:
        """Return the class of each id, by ``ids`` if given; ``IGNORE_INDEX`` for ``ignore_index``, else ``UNKNOWN``."""
        table = np.full(np.iinfo(self.values.dtype).max + 1, UNKNOWN, np.int16)
        known = {} if ignore_index is None else {ignore_index: IGNORE_INDEX}
        known |= {label: label for label in range(classes)} if ids is None else ids
        for stored, label in known.items():
            table[stored : stored + 1] = label  # empty beyond the range of the file's values
        return _looked_up(self.values, table)

    def labels_by_colour(self, colours: Mapping[Colour, int]) -> Labels:
        """Return the class of each pixel's exact colour; other colours are ``UNKNOWN``."""
        if self.palette is not None:
            shown = [colours.get((red, green, blue), UNKNOWN) for red, green, blue in self.palette.tolist()]
            table = np.full(256, UNKNOWN, np.int16)
            table[: len(shown)] = shown
            return _looked_up(self.values, table)
        codes, known = colour_codes(self.values), np.array(list(colours)) @ RGB_PLACES
        order = known.argsort()
        place = order[np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)]
        return np.where(known[place] == codes, np.array(list(colours.values()), np.int16)[place], UNKNOWN)

    def colours_at(self, where: ndarray) -> list[list[int]]:
        """Return the distinct colours of some pixels."""
        pixels = self.values[where]
        return np.unique(pixels if self.palette is None else self.palette[pixels], axis=0).tolist()


def _looked_up(values: ndarray, table: Int16[ndarray, " values"]) -> Labels:
    return cv2.LUT(values, table) if values.dtype == np.uint8 else table.take(values)  # numpy's takes thrice the time


def colour_codes(pixels: UInt8[ndarray, "rows cols 3"]) -> Int64[ndarray, "rows cols"]:
    """Return each colour as one number."""
    return pixels.astype(np.int64) @ RGB_PLACES


def mask_size(path: Path) -> tuple[int, int]:
    """Return rows and columns from the header, without reading the mask.

    Raises
    ------
    DataError
        The file is missing, or has no mask format.
    """
    with opened(path, MASK_FORMATS) as file:
        cols, rows = file.size
    return rows, cols


def mask_palette(path: Path) -> UInt8[ndarray, "values 3"] | None:
    """Return the palette of a mask file, RGB in 0..255; None without a palette."""
    with opened(path, MASK_FORMATS) as file:
        if file.mode != "P":
            return None
        stored = file.palette
        if stored is None or stored.rawmode != "RGB":  # a TIFF's
            return _palette(file)
        colours = bytes(stored.palette)  # by the header: the pixels need not be decoded
        return np.frombuffer(colours, np.uint8)[: len(colours) // 3 * 3].reshape(-1, 3)


def read_mask(path: Path, coloured: bool) -> StoredMask:
    """Return the pixels of a mask as stored; ``coloured``: they represent colours.

    Raises
    ------
    DataError
        The file is missing, unreadable or truncated, or its pixels are neither ids nor (if ``coloured``) colours.
    """
    with opened(path, MASK_FORMATS) as file:
        _check_kind(path, file, coloured)
        if file.format == "PNG":
            file.verify()  # check the checksums, which decoding ignores
    with opened(path, MASK_FORMATS) as file:
        values = np.array(file)
        palette = _palette(file)
    if values.dtype == bool:
        values = values * np.uint8(255)
    if coloured and palette is not None and values.max() >= len(palette):
        raise WrongLabels(f"{path} contains index {values.max()}, but its palette has {len(palette)} colours")
    return StoredMask(values.astype(values.dtype.newbyteorder("="), copy=False), palette)


def _palette(file: ImageFile) -> UInt8[ndarray, "values 3"] | None:
    if file.mode in ("L", "1"):
        return GREYS
    return np.array(file.getpalette("RGB"), np.uint8).reshape(-1, 3) if file.mode == "P" else None


def _check_kind(path: Path, file: ImageFile, coloured: bool) -> None:
    """Raise an error for masks that would be misread."""
    mode = _raw_mode(file)
    if getattr(file, "is_animated", False):  # n_frames follows a TIFF's chain of a million empty images to its end
        raise WrongMode(f"{path} contains more than one image: save each mask in its own file")
    if file.info.get("compression") in LOSSY:
        raise WrongMode(
            f"{path} has {file.info['compression']} compression, which blurs labels: save it with lossless compression"
        )
    # PIL would read -1 as 255, the ignore index.
    if file.mode == "L" and SIGNED in getattr(file, "tag_v2", {}).get(SAMPLE_FORMAT, ()):
        raise WrongMode(f"{path} contains signed numbers: save ids as unsigned integers")
    eight_bits = file.mode in ("L", "1") or (file.mode == "RGB" and ";16" not in mode)
    if coloured and not (mode in PALETTE_MODES or eight_bits):
        raise WrongMode(
            f"{path} is a mask of mode {mode}, but with class colours, masks must be RGB, palette (P) or grey images of"
            " at most 8 bits per channel"
        )
    if not coloured and mode in GREY_OF_FEW_BITS:
        bits = int(mode[-1])
        levels = ", ".join(f"NAME: [{level}, {level}, {level}]" for level in (0, 255 // (2**bits - 1)))
        raise WrongMode(
            f"{path} is {bits}-bit grey, whose ids a PNG optimiser may have changed. Save ids with 8 bits, or set the"
            f" grey level of each class with data=folder: data.dataset.classes={{{levels}, ...}}"
        )
    if not coloured and not (mode in PALETTE_MODES or mode == "L" or _is_grey_of_16_bits(file)):
        raise WrongMode(
            f"{path} is a mask of mode {mode}, but masks must contain one class id per pixel, as palette (P) or grey (8"
            " or 16 bits) PNG or TIFF. Convert colours to ids, or set the colours of RGB masks with data=folder; for"
            " 1-bit black and white: data.dataset.classes={NAME: [0, 0, 0], NAME: [255, 255, 255]}"
        )


def _raw_mode(file: ImageFile) -> str:
    """Return the storage mode of the pixels: PIL's own mode hides grey of few bits, which it rescales."""
    arguments: Any = file.tile[0][3]
    return arguments if isinstance(arguments, str) else arguments[0]


def _is_grey_of_16_bits(file: ImageFile) -> bool:
    lowest_is_white = getattr(file, "tag_v2", {}).get(PHOTOMETRIC) == 0
    return file.mode.startswith("I;16") and not lowest_is_white
