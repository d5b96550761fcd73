"""Images and their masks: what every data set opens to, and the checks that come before any work."""

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

PART = 32  # images that a thread checks one after the other

LabelPixels = Int64[ndarray, " 256"]  # how many pixels each label has; 255: void


@dataclass(frozen=True)
class MaskContents:
    """What one mask holds.

    Attributes
    ----------
    pixels
        Of each label.
    shown
        The label of each colour that the file's own palette shows in it; empty where masks are read by colours, and for
        a colour that stands for two labels.
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
        What messages and records call it, such as "VOC2012 val".
    names
        One per image; unique.
    masks
        One path per image; empty where there is no truth.
    palette
        RGB in 0..255, one row per class.
    void
        The label on disk that is neither trained on nor scored; it is read as 255. None: there is none.
    colours
        What each RGB is in masks, 255 for void, however they store it; None: masks hold ids, RGB ones are errors.
    ids
        The class of each id on disk, 255 for void; None: a class's id is its place in ``classes``.
    official
        What each RGB is by the data set's own definition, though masks hold ids: a palette that shows only these, but
        for other ids, was put in another order by some program, and the mask is an error.
    left_out
        Files that are named like images of the split but for their suffix or case, and are none of it.

    Raises
    ------
    DataError
        ``void`` is the id of a class, too, or no id; no classes, or more than 255.
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
            raise DataError(f"{self.title} has {len(self.classes)} classes: give 1 to {IGNORE_INDEX}")
        if self.ignore_index is not None and not 0 <= self.ignore_index <= MOST:
            raise DataError(
                f"data.dataset.ignore_index={self.ignore_index} is no id of a mask: give 0 to {MOST}, or null"
            )
        if self.ids is not None:
            self._check_ids(self.ids)
        elif self.colours is None and self.ignore_index is not None and self.ignore_index < len(self.classes):
            raise DataError(self._two_meanings(self.ignore_index, self.classes[self.ignore_index]))

    def _check_ids(self, ids: Mapping[int, int]) -> None:
        """Each class needs an id, and void none of a class's."""
        wrong = [stored for stored in ids if not 0 <= stored <= MOST]
        if wrong:
            raise DataError(f"data.dataset.ids={{{wrong[0]}: ...}} is no id of a mask: give 0 to {MOST}")
        without = [name for label, name in enumerate(self.classes) if label not in ids.values()]
        if without:
            raise DataError(f"data.dataset.ids gives no id to {', '.join(without[:5])}: give each class one or more")
        if self.ignore_index is not None and ids.get(self.ignore_index, IGNORE_INDEX) != IGNORE_INDEX:
            raise DataError(self._two_meanings(self.ignore_index, self.classes[ids[self.ignore_index]]))

    def _two_meanings(self, ignore_index: int, name: str) -> str:
        """What to do where the id of void is that of a class, too."""
        return (
            f"data.dataset.ignore_index={ignore_index} is the id of a class of {self.title}, too: {name}. To leave that class out,"
            " give the others' ids alone, as in data.dataset.classes=[NAME] 'data.dataset.ids={1: NAME}'. Else choose"
            " another void, or null if every id is a class."
        )

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
            The mask is unreadable, not made of ids or colours, or holds an id or a colour that is no class.
        """
        path = self.masks[index]
        stored = read_mask(path, coloured=self.colours is not None)
        if self.colours is None:
            labels = stored.labels_by_id(self.ignore_index, len(self.classes), self.ids)
        else:
            labels = stored.labels_by_colour(self.colours)
        if labels.min() == UNKNOWN:
            raise WrongLabels(f"{path} holds {self._unknown(stored, labels == UNKNOWN)}")
        if self.official and stored.has_own_palette:
            self._check_palette(path, stored.labels_by_colour(self.official), labels)
        return labels.astype(np.uint8)

    def _check_palette(self, path: Path, shown: Labels, labels: Labels) -> None:
        """A palette of other colours than the official ones says nothing."""
        if shown.min() != UNKNOWN and (shown != labels).any():
            raise WrongLabels(
                f"{path} has a palette that shows other classes of {self.title} than its ids are: a program that writes"
                " PNGs anew has put it in another order. Take the original file, or name the classes' colours with"
                " data=folder"
            )

    def _unknown(self, stored: StoredMask, where: Bool[ndarray, "rows cols"]) -> str:
        """Which ids or colours are no classes, and what to do about them."""
        if self.colours is not None:
            wrong = stored.colours_at(where)
            shown = ", ".join(map(str, wrong[:3])) + (", …" if len(wrong) > 3 else "")
            ids = " If masks hold ids, give data.dataset.classes names alone." if stored.palette is not None else ""
            return (
                f"{len(wrong)} colours that are no class of {self.title}: {shown}. Give each a class, or name it in"
                f" data.dataset.ignore_colours.{ids}"
            )
        wrong, ignore_index = (
            np.unique(stored.values[where]).tolist()[:5],
            "nothing" if self.ignore_index is None else self.ignore_index,
        )
        if self.ids is not None:
            return (
                f"labels {wrong}, which data.dataset.ids maps to no class of {self.title}, with {ignore_index} for void"
            )
        return f"labels {wrong}, but {self.title} has classes 0 to {len(self.classes) - 1} and {ignore_index} for void"

    def size(self, index: int) -> tuple[int, int]:
        """Rows and columns, by the image's header."""
        with open_image(self.images[index]) as file:
            cols, rows = file.size
        return rows, cols

    def mask_size(self, index: int) -> tuple[int, int]:
        """Rows and columns, by the mask's header."""
        return mask_size(self.masks[index])

    def mask_palette(self, index: int) -> UInt8[ndarray, "values 3"] | None:
        """The colours that a palette mask brings, one row per index."""
        return mask_palette(self.masks[index])

    def mask_facts(self, index: int) -> MaskContents:
        """What a mask holds, read whole.

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
        there = (labels != UNKNOWN) & (pixels[labels] > 0)
        colours = ((red, green, blue) for red, green, blue in palette[there].tolist())
        pairs = set(zip(colours, labels[there].tolist(), strict=True))
        times = Counter(colour for colour, _ in pairs)
        return {colour: label for colour, label in pairs if times[colour] == 1}

    def check(self, min_size: int = 1, whole_masks: bool = True) -> list[MaskContents]:
        """Look at every file before any long work: images' headers and ends, and whole masks, which are returned.

        Without ``whole_masks`` of masks only the headers are read, and nothing is returned: for files that an earlier
        check has read.

        Raises
        ------
        DataError
            One message for all that is wrong: a missing, unreadable or shortened file, an image of another size than
            its mask or smaller than ``min_size`` pixels, a mask with labels that are no classes, a name that is listed
            twice.
        """
        if not self.names:
            raise DataError(f"{self.title} is empty: name another list")
        problems = [f"{name} is listed twice" for name in self.listed_twice()]
        masks: dict[int, MaskContents] = {}

        def read(index: int) -> None:
            if whole_masks:
                masks[index] = self.mask_facts(index)

        # By parts: to hand each image to a thread by itself would take a third of the work again.
        parts = [range(len(self))[first : first + PART] for first in range(0, len(self), PART)]
        with ThreadPoolExecutor(visible_cores()) as pool:
            found = pool.map(lambda part: [next(self.faults(index, min_size, read), None) for index in part], parts)
            problems += [str(fault) for fault in chain(*found) if fault]
        if problems:
            more = f"\n… and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise DataError(
                f"{self.title}: {len(problems)} of {len(self)} images cannot be used:\n"
                + "\n".join(f"  {problem}" for problem in problems[:5])
                + more
            )
        return [masks[index] for index in sorted(masks)]

    def listed_twice(self) -> list[str]:
        """The names that are there more than once."""
        return [name for name, count in Counter(self.names).items() if count > 1]

    def faults(self, index: int, min_size: int = 1, read: Callable[[int], object] | None = None) -> Iterator[DataError]:
        """Each reason why an image and its mask cannot be used, as far as headers, ends and whole masks tell.

        ``read`` is what reads a whole mask, if not :meth:`mask` does.
        """
        image, size = self.images[index], None
        try:
            size = image_size(image)
            if min(size) < min_size:
                raise WrongSize(f"{image} has {size[0]}x{size[1]} pixels; {min_size} are needed on each side")
        except DataError as fault:
            yield fault
        if not self.masks:
            return
        try:
            rows, cols = self.mask_size(index)
            if size not in (None, (rows, cols)):
                raise WrongSize(f"{image} has {size[0]}x{size[1]} pixels, its mask {rows}x{cols}")
            (read or self.mask)(index)
        except DataError as fault:
            yield fault


def label_pixels(mask: UInt8[ndarray, "rows cols"]) -> LabelPixels:
    """How many pixels each label has."""
    return np.bincount(mask.ravel(), minlength=IGNORE_INDEX + 1)
