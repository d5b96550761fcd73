"""The segmentation data set: images with masks, and the checks before any work."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from numpy import ndarray

from fcnlab.cores import visible_cores
from fcnlab.data.image_files import DataError, WrongLabels, WrongSize, image_size, open_image, read_image
from fcnlab.data.masks import MOST, UNKNOWN, Colour, Labels, StoredMask, mask_palette, mask_size, read_mask
from fcnlab.metrics.scores import IGNORE_INDEX

PART = 32  # images per task of a checking thread
CHOOSE_SPLIT = "Choose one of these as split (data.train_list, data.val_list or data.test_list)."

LabelPixels = Int64[ndarray, " 256"]  # number of pixels of each label; 255 is the ignore index


@dataclass(frozen=True)
class MaskContents:
    """The contents of a mask.

    Attributes
    ----------
    pixels
        Number of pixels of each label.
    shown
        The label of each colour in the file's palette; without colours that stand for two labels, and empty if masks
        are read by colours.
    """

    path: Path
    pixels: LabelPixels
    shown: Mapping[Colour, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SegmentationDataset:
    """A split of a data set.

    Attributes
    ----------
    title
        Name in messages and records, such as "VOC2012 val".
    names
        One per image; unique.
    masks
        One path per image; empty without ground truth.
    palette
        RGB in 0..255, one row per class.
    ignore_index
        The label on disk of pixels that are neither trained on nor scored; it is read as 255. None: no such label.
    colours
        The class of each RGB colour in masks, 255 for ignored pixels; None: masks contain ids.
    ids
        The class of each id on disk, 255 for ignored pixels; None: ids are indices of ``classes``.
    official
        The class of each RGB colour in the data set's definition, if masks contain ids. A mask whose palette has only
        these colours, but for other ids, was reordered by a program, and is an error.
    left_out
        Skipped files, whose names match images of the split except for suffix or case.

    Raises
    ------
    DataError
        ``ignore_index`` is the id of a class or not a valid id; there are no classes, or more than 255.
    """

    title: str
    names: tuple[str, ...]
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    classes: tuple[str, ...]
    palette: UInt8[ndarray, "classes 3"]
    ignore_index: int | None = IGNORE_INDEX
    colours: Mapping[Colour, int] | None = None
    ids: Mapping[int, int] | None = None
    official: Mapping[Colour, int] | None = None
    left_out: tuple[Path, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not 0 < len(self.classes) <= IGNORE_INDEX:
            raise DataError(f"{self.title} has {len(self.classes)} classes, but 1 to {IGNORE_INDEX} are allowed")
        if self.ignore_index is not None and not 0 <= self.ignore_index <= MOST:
            raise DataError(
                f"data.dataset.ignore_index={self.ignore_index} is not a valid mask id: set 0 to {MOST}, or null"
            )
        if self.ids is not None:
            self._check_ids(self.ids)
        elif self.colours is None and self.ignore_index is not None and self.ignore_index < len(self.classes):
            raise DataError(self._two_meanings(self.ignore_index, self.classes[self.ignore_index]))

    def _check_ids(self, ids: Mapping[int, int]) -> None:
        """Check that each class has an id, and that the ignore index is not the id of a class."""
        invalid = [stored for stored in ids if not 0 <= stored <= MOST]
        if invalid:
            raise DataError(f"data.dataset.ids={{{invalid[0]}: ...}} is not a valid mask id: use 0 to {MOST}")
        without = [name for label, name in enumerate(self.classes) if label not in ids.values()]
        if without:
            raise DataError(f"data.dataset.ids has no id for {', '.join(without[:5])}: each class needs one or more")
        if self.ignore_index is not None and ids.get(self.ignore_index, IGNORE_INDEX) != IGNORE_INDEX:
            raise DataError(self._two_meanings(self.ignore_index, self.classes[ids[self.ignore_index]]))

    def _two_meanings(self, ignore_index: int, name: str) -> str:
        """Return the message for an ignore index that is also the id of a class."""
        return (
            f"data.dataset.ignore_index={ignore_index} is also the id of class {name} of {self.title}. To ignore that"
            " class, set only the other classes and ids, as in data.dataset.classes=[NAME] 'data.dataset.ids={1:"
            " NAME}'. Otherwise set another ignore_index, or null if every id is a class."
        )

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> UInt8[ndarray, "rows cols 3"]:
        """Return RGB pixels as stored; EXIF rotation is not applied, because masks do not have it."""
        return read_image(self.images[index])

    def mask(self, index: int) -> UInt8[ndarray, "rows cols"]:
        """Return class ids, 255 for ignored pixels.

        Raises
        ------
        DataError
            The mask is unreadable, is not made of ids or colours, or contains an id or a colour without a class.
        """
        path = self.masks[index]
        stored = read_mask(path, coloured=self.colours is not None)
        if self.colours is None:
            labels = stored.labels_by_id(self.ignore_index, len(self.classes), self.ids)
        else:
            labels = stored.labels_by_colour(self.colours)
        if labels.min() == UNKNOWN:
            raise WrongLabels(f"{path} contains {self._unknown(stored, labels == UNKNOWN)}")
        if self.official and stored.has_own_palette:
            self._check_palette(path, stored.labels_by_colour(self.official), labels)
        return labels.astype(np.uint8)

    def _check_palette(self, path: Path, shown: Labels, labels: Labels) -> None:
        """Check that a palette of official colours agrees with the ids; other palettes are not checked."""
        if shown.min() != UNKNOWN and (shown != labels).any():
            raise WrongLabels(
                f"{path} has a palette whose colours contradict its ids for {self.title}: a program reordered the"
                " palette when it saved the file. Use the original file, or set the class colours with data=folder"
            )

    def _unknown(self, stored: StoredMask, where: Bool[ndarray, "rows cols"]) -> str:
        """Describe ids or colours without a class, and what to do about them."""
        if self.colours is not None:
            unknown = stored.colours_at(where)
            shown = ", ".join(map(str, unknown[:3])) + (", …" if len(unknown) > 3 else "")
            ids = " If masks contain ids, set data.dataset.classes to names only." if stored.palette is not None else ""
            return (
                f"{len(unknown)} colour{'s' if len(unknown) > 1 else ''} without a class of {self.title}: {shown}. Add"
                f" each to data.dataset.classes or to data.dataset.ignore_colours.{ids}"
            )
        unknown = np.unique(stored.values[where]).tolist()[:5]
        ignore_index = "null" if self.ignore_index is None else self.ignore_index
        if self.ids is not None:
            return (
                f"labels {unknown} without a class of {self.title} in data.dataset.ids; ignore_index is {ignore_index}"
            )
        last = len(self.classes) - 1
        return f"labels {unknown}, but {self.title} has classes 0 to {last} and ignore_index {ignore_index}"

    def size(self, index: int) -> tuple[int, int]:
        """Return rows and columns from the header of an image."""
        with open_image(self.images[index]) as file:
            cols, rows = file.size
        return rows, cols

    def mask_size(self, index: int) -> tuple[int, int]:
        """Return rows and columns from the header of a mask."""
        return mask_size(self.masks[index])

    def mask_palette(self, index: int) -> UInt8[ndarray, "values 3"] | None:
        """Return the palette of a mask, one row per index; None without a palette."""
        return mask_palette(self.masks[index])

    def mask_contents(self, index: int) -> MaskContents:
        """Read a mask completely and return its contents.

        Raises
        ------
        DataError
            As :meth:`mask`.
        """
        pixels = label_pixels(self.mask(index))
        palette = self.mask_palette(index) if self.colours is None else None
        return MaskContents(self.masks[index], pixels, {} if palette is None else self._shown(palette, pixels))

    def _shown(self, palette: UInt8[ndarray, "values 3"], pixels: LabelPixels) -> dict[Colour, int]:
        indices = StoredMask(np.arange(len(palette), dtype=np.uint8)[None], palette)
        labels = indices.labels_by_id(self.ignore_index, len(self.classes), self.ids)[0]
        present = (labels != UNKNOWN) & (pixels[labels] > 0)
        colours = ((red, green, blue) for red, green, blue in palette[present].tolist())
        pairs = set(zip(colours, labels[present].tolist(), strict=True))
        counts = Counter(colour for colour, _ in pairs)
        return {colour: label for colour, label in pairs if counts[colour] == 1}

    def check(self, min_size: int = 1, whole_masks: bool = True) -> list[MaskContents]:
        """Check all files before any long work: headers and ends of images, and complete masks, and return the masks.

        Without ``whole_masks``, only the headers of masks are read and nothing is returned: for files that an earlier
        check has read.

        Raises
        ------
        DataError
            One message for all problems: missing, unreadable or truncated files, images of another size than their
            masks or smaller than ``min_size`` pixels, masks with invalid labels, duplicate names.
        """
        if not self.names:
            raise DataError(f"{self.title} is empty: set another list")
        problems = [f"{name} is listed more than once" for name in self.listed_twice()]
        masks: dict[int, MaskContents] = {}

        def read(index: int) -> None:
            if whole_masks:
                masks[index] = self.mask_contents(index)

        # In parts, because a task per image would add a third of the work.
        parts = [range(len(self))[first : first + PART] for first in range(0, len(self), PART)]
        with ThreadPoolExecutor(visible_cores()) as pool:
            faults = pool.map(lambda part: [next(self.faults(index, min_size, read), None) for index in part], parts)
            problems += [str(fault) for fault in chain(*faults) if fault]
        if problems:
            more = f"\n… and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise DataError(
                f"{self.title}: {len(problems)} of {len(self)} images cannot be used:\n"
                + "\n".join(f"  {problem}" for problem in problems[:5])
                + more
            )
        return [masks[index] for index in sorted(masks)]

    def listed_twice(self) -> list[str]:
        """Return the names that occur more than once."""
        return [name for name, count in Counter(self.names).items() if count > 1]

    def faults(self, index: int, min_size: int = 1, read: Callable[[int], object] | None = None) -> Iterator[DataError]:
        """Yield the reasons why an image and its mask cannot be used, from headers, ends and complete masks.

        ``read`` reads a complete mask; by default :meth:`mask`.
        """
        image, size = self.images[index], None
        try:
            size = image_size(image)
            if min(size) < min_size:
                raise WrongSize(
                    f"{image} has {size[0]}x{size[1]} pixels, but at least {min_size} are required on each side"
                )
        except DataError as fault:
            yield fault
        if not self.masks:
            return
        try:
            rows, cols = self.mask_size(index)
            if size not in (None, (rows, cols)):
                raise WrongSize(f"{image} has {size[0]}x{size[1]} pixels, but its mask {rows}x{cols}")
            (read or self.mask)(index)
        except DataError as fault:
            yield fault


def label_pixels(mask: UInt8[ndarray, "rows cols"]) -> LabelPixels:
    """Return the number of pixels of each label."""
    return np.bincount(mask.ravel(), minlength=IGNORE_INDEX + 1)
