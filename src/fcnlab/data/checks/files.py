"""Every image and mask of a split looked at, whole: what is wrong with it, what is odd, what it holds.

:meth:`Images.faults` finds what keeps a file from being used, for a training as for this. Here the images are
decoded too, and compared with each other.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from os.path import isfile  # False for a name that no file can have, where Path's raises an OSError
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from jaxtyping import Float32, Int64, UInt8
from numpy import ndarray

from fcnlab.cores import visible_cores
from fcnlab.data.checks.class_weights import Frequencies, frequencies
from fcnlab.data.checks.report import Finding, Verdict
from fcnlab.data.dataset import LabelPixels, MaskContents, SegmentationDataset
from fcnlab.data.image_files import (
    BrokenFile,
    DataError,
    MissingFile,
    UnreadableFile,
    WrongLabels,
    WrongMode,
    WrongSize,
    open_image,
)
from fcnlab.data.label_counts import absent_classes, conflicts, one_class_only

Read = TypeVar("Read")
Code = Float32[ndarray, " 64"]
ImageReports = tuple[SegmentationDataset, Sequence["ImageReport"]]  # a split, and what was seen of each of its images

FAULTS = {  # the check that finds each kind, and what it says when there is none, and some
    MissingFile: ("files", "all there", "{} missing"),
    UnreadableFile: ("formats", "images and masks, all", "{} no such image or mask"),
    BrokenFile: ("whole files", "each decodes to its end", "{} cut off or damaged"),
    WrongSize: ("mask sizes", "each its image's", "{} not their image's, or too large"),
    WrongMode: ("pixel modes", "8 bits; masks hold ids or class colours", "{} of another kind"),
    WrongLabels: ("labels", "classes and void only", "{} masks with others"),
}
ORIENTATION = 0x0112  # EXIF's tag; 1: upright
ODDITIES = {  # likewise, of what is read in another way than its maker meant
    "rotation": ("none noted in EXIF", "{} rotated in EXIF alone"),
    "colour space": ("RGB or grey", "{} of another"),
    "bit depth": ("8", "{} of 16 bits"),
}
FLAT = 2.0  # grey levels: below this deviation a thumbnail has nothing to recognise it by
SMALL = 32  # pixels: the stride of a net's last layers
MOSTLY_VOID = 0.5
NO_LABELS = np.zeros(256, np.int64)


@dataclass(frozen=True)
class ImageReport:
    """What was seen of an image and its mask; what could not be read is None.

    Attributes
    ----------
    odd
        By the names in ``ODDITIES``: what is odd.
    size
        Rows and columns.
    digest
        Of the decoded pixels: equal images have equal ones, however they are stored.
    code
        64 signs: whether the image grows lighter from left to right, at 8 x 8 places (dHash). None if it is flat.
    mask
        What the mask holds.
    """

    faults: tuple[DataError, ...] = ()
    odd: tuple[tuple[str, str], ...] = ()
    size: tuple[int, int] | None = None
    digest: bytes | None = None
    code: Code | None = None
    mask: MaskContents | None = None

    @property
    def labels(self) -> LabelPixels | None:
        """Pixels of each label, 255 being void."""
        return None if self.mask is None else self.mask.pixels


def inspect_images(dataset: SegmentationDataset) -> Iterator[ImageReport]:
    """A look at each, in their order, by as many threads as there are cores; broken ones stop nothing."""
    with ThreadPoolExecutor(visible_cores()) as pool:
        yield from pool.map(lambda index: inspect_image(dataset, index), range(len(dataset)))


def inspect_image(dataset: SegmentationDataset, index: int) -> ImageReport:
    """Read an image and its mask to their ends."""
    faults = {str(fault): fault for fault in dataset.faults(index)}
    image = _read(dataset.image, index, faults)
    mask = _read(dataset.mask_facts, index, faults) if dataset.masks else None
    return ImageReport(
        faults=tuple(faults.values()),
        odd=tuple(oddities(dataset.images[index])),
        size=None if image is None else (image.shape[0], image.shape[1]),
        digest=None if image is None else pixel_digest(image),
        code=None if image is None else perceptual_code(image),
        mask=mask,
    )


def _read(reader: Callable[[int], Read], index: int, faults: dict[str, DataError]) -> Read | None:
    try:
        return reader(index)
    except DataError as fault:
        faults[str(fault)] = fault
        return None


def oddities(path: Path) -> Iterator[tuple[str, str]]:
    """What is odd about an image that can be read, by the names in ``ODDITIES``."""
    try:
        with open_image(path) as file:
            if file.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
                yield "colour space", f"{path} is {file.mode}: its colours are converted roughly, without a profile"
            if any(";16" in str(tile[3]) for tile in file.tile):
                yield "bit depth", f"{path} has 16 bits to a channel, of which the upper 8 are used"
            turn = file.getexif().get(ORIENTATION, 1)  # last, since it decodes a PNG
            if turn != 1:
                yield "rotation", f"{path} notes orientation {turn} in EXIF; it is taken as stored, like its mask"
    except DataError:  # a fault, and told as such
        return


def pixel_digest(image: UInt8[ndarray, "rows cols 3"]) -> bytes:
    """Equal for equal pixels, whatever the file's format."""
    return blake2b(image.tobytes(), digest_size=16, person=str(image.shape[1]).encode()).digest()


def perceptual_code(image: UInt8[ndarray, "rows cols 3"]) -> Code | None:
    """The 64 signs of a dHash as +1 and -1: two codes' product counts what they share. None for flat images."""
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA).astype(np.float32)
    return None if grey.std() < FLAT else np.where(np.diff(grey, axis=1) > 0, np.float32(1), np.float32(-1)).ravel()


def inspect_split(name: str, dataset: SegmentationDataset, seen: Sequence[ImageReport], bits: int = 4) -> list[Finding]:
    """The findings about a split by itself.

    Images whose dHash differs in at most ``bits`` of 64 are said to look alike.
    """
    about = f"{name}: {dataset.title}, {len(dataset):,} images, {sum(map(isfile, dataset.masks)):,} masks"
    titles, passed_over = tuple(dataset.listed_twice()), tuple(map(str, dataset.left_out))
    twice = tuple(f"{title} is listed twice" for title in titles)
    left_out = tuple(f"{path} fits data.dataset.images but for its suffix or case" for path in passed_over)
    like = ("no image of like name", "{} images of like names")
    return [
        _verdict(about, "list", Verdict.ERROR, twice, "no name twice", "{} listed more than once", titles),
        _verdict(about, "left out", Verdict.WARNING, left_out, *like, passed_over),
        *_fault_lines(about, dataset, seen),
        *_odd_lines(about, dataset, seen),
        _size_line(about, dataset, seen),
        *(_label_lines(about, dataset, seen) if dataset.masks else []),
        _verdict(
            about,
            "duplicates",
            Verdict.WARNING,
            tuple(_equal_pairs(dataset, seen)),
            "no image twice",
            "{} the same, to the pixel, as one before",
        ),
        _verdict(
            about,
            "look-alikes",
            Verdict.WARNING,
            tuple(_alike_within(dataset, seen, bits)),
            "none",
            "{} much like another",
        ),
    ]


def inspect_overlap(
    names: tuple[str, str], ours: ImageReports, theirs: ImageReports, bits: int = 4, allowed: bool = False
) -> list[Finding]:
    """The findings about two splits of which the one is to tell how well a net does that learned from the other.

    ``allowed``: images may be in both, which is worth a warning still.
    """
    about = f"{names[0]} and {names[1]}"
    same = tuple(_same_across(names, ours, theirs))
    alike = tuple(_alike_across(names, ours, theirs, bits))
    verdict = Verdict.WARNING if allowed else Verdict.ERROR
    return [
        _verdict(about, "overlap", verdict, same, "no image in both", "{} in both"),
        _verdict(about, "look-alikes", Verdict.WARNING, alike, "none", "{} much like one of the other"),
    ]


def class_frequencies(dataset: SegmentationDataset, seen: Sequence[ImageReport]) -> Frequencies:
    """Of the masks that could be read."""
    return frequencies([one.labels for one in seen if one.labels is not None], len(dataset.classes))


def _verdict(
    about: str, check: str, bad: Verdict, each: tuple[str, ...], fine: str, found: str, files: tuple[str, ...] = ()
) -> Finding:
    if not each:
        return _fine(about, check, fine)
    return Finding(about, check, bad, found.format(f"{len(each):,}"), each, files)


def _fine(about: str, check: str, found: str) -> Finding:
    return Finding(about, check, Verdict.OK, found)


def _fault_lines(about: str, dataset: SegmentationDataset, seen: Sequence[ImageReport]) -> Iterator[Finding]:
    faults = [(fault, index) for index, one in enumerate(seen) for fault in one.faults]
    for kind, (check, fine, found) in FAULTS.items():
        each = [(str(fault), index) for fault, index in faults if isinstance(fault, kind)]
        yield _verdict(about, check, Verdict.ERROR, _texts(each), fine, found, _files(dataset, each))
    rest = [(str(fault), index) for fault, index in faults if not isinstance(fault, tuple(FAULTS))]
    if rest:  # of a data set with checks of its own
        yield Finding(about, "contents", Verdict.ERROR, f"{len(rest):,} wrong", _texts(rest), _files(dataset, rest))


def _odd_lines(about: str, dataset: SegmentationDataset, seen: Sequence[ImageReport]) -> Iterator[Finding]:
    for check, (fine, found) in ODDITIES.items():
        each = [(what, index) for index, one in enumerate(seen) for name, what in one.odd if name == check]
        yield _verdict(about, check, Verdict.WARNING, _texts(each), fine, found, _files(dataset, each))


def _texts(each: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    return tuple(text for text, _ in each)


def _files(dataset: SegmentationDataset, each: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """The file that each sentence begins with, an image or its mask; where it begins with neither, the sentence."""
    named = [(text, map(str, (dataset.images[index], *dataset.masks[index : index + 1]))) for text, index in each]
    return tuple(max(filter(text.startswith, paths), key=len, default=text) for text, paths in named)


def _size_line(about: str, dataset: SegmentationDataset, seen: Sequence[ImageReport]) -> Finding:
    sizes = {str(dataset.images[index]): one.size for index, one in enumerate(seen) if one.size}
    if not sizes:
        return Finding(about, "image sizes", Verdict.WARNING, "no image could be read")
    files = tuple(path for path, size in sizes.items() if min(size) < SMALL)
    small = tuple(f"{path} has {sizes[path][0]}x{sizes[path][1]} pixels" for path in files)
    (rows, most_rows), (cols, most_cols) = ((min(side), max(side)) for side in zip(*sizes.values(), strict=True))
    found = f"{rows} to {most_rows} rows, {cols} to {most_cols} columns"
    if small:
        return Finding(about, "image sizes", Verdict.WARNING, f"{found}: {len(small):,} under {SMALL}", small, files)
    return _fine(about, "image sizes", found)


def _label_lines(about: str, dataset: SegmentationDataset, seen: Sequence[ImageReport]) -> list[Finding]:
    disagree = tuple(conflicts(dataset, [one.mask for one in seen if one.mask is not None]))
    return [
        _verdict(about, "mask kinds", Verdict.WARNING, disagree, "all masks agree", "{} ways in which masks disagree"),
        _class_line(about, dataset, sum((one.labels for one in seen if one.labels is not None), NO_LABELS)),
        _void_line(about, dataset, seen, class_frequencies(dataset, seen)),
    ]


def _class_line(about: str, dataset: SegmentationDataset, found: LabelPixels) -> Finding:
    """Which classes occur; nothing is known of them where no mask could be read, which is told elsewhere."""
    absent = absent_classes(dataset, found)
    here = f"{len(dataset.classes) - len(absent)} of {len(dataset.classes)} occur"
    if found.any() and (problem := one_class_only(dataset, found)):
        return Finding(about, "classes", Verdict.ERROR, f"{here}: {problem}")
    if absent:
        return Finding(about, "classes", Verdict.WARNING, f"{here}; absent: {', '.join(absent)}")
    return _fine(about, "classes", here)


def _void_line(about: str, dataset: SegmentationDataset, seen: Sequence[ImageReport], found: Frequencies) -> Finding:
    files = tuple(
        str(dataset.masks[index])
        for index, one in enumerate(seen)
        if one.labels is not None and not one.labels[: len(dataset.classes)].any()
    )
    empty = tuple(f"{path} is void all over: nothing is learned from it" for path in files)
    masks = sum(one.labels is not None for one in seen)
    text = f"{100 * found.void_share:.1f} % of the pixels, in {found.voided:,} of {masks:,} masks"
    bad = empty or found.void_share > MOSTLY_VOID
    return Finding(about, "void", Verdict.WARNING if bad else Verdict.OK, text, empty, files)


def _equal_pairs(dataset: SegmentationDataset, seen: Sequence[ImageReport]) -> Iterator[str]:
    first: dict[bytes, str] = {}
    for name, one in dict(zip(dataset.names, seen, strict=True)).items():  # a name that is listed twice is told as that
        if one.digest is None:
            continue
        if one.digest in first:
            yield f"{name} is {first[one.digest]}"
        first.setdefault(one.digest, name)


def _same_across(names: tuple[str, str], ours: ImageReports, theirs: ImageReports) -> Iterator[str]:
    (images, seen), (others, others_seen) = ours, theirs
    by_pixels = {one.digest: name for name, one in zip(images.names, seen, strict=True) if one.digest is not None}
    by_file = dict(zip(images.images, images.names, strict=True))  # also one that cannot be read
    for name, path, one in zip(others.names, others.images, others_seen, strict=True):
        twin = by_pixels.get(one.digest or b"") or by_file.get(path)
        if twin is not None:
            yield f"{name} of {names[1]} is {twin} of {names[0]}"


def _alike_within(dataset: SegmentationDataset, seen: Sequence[ImageReport], bits: int) -> Iterator[str]:
    places = _distinct(seen)
    codes = _codes(seen, places)
    for place, (other, distance) in enumerate(zip(*nearest(codes, codes, earlier_only=True), strict=True)):
        if distance <= bits:
            yield f"{dataset.names[places[place]]} looks like {dataset.names[places[other]]}"


def _alike_across(names: tuple[str, str], ours: ImageReports, theirs: ImageReports, bits: int) -> Iterator[str]:
    (images, seen), (others, others_seen) = ours, theirs
    known = {one.digest for one in seen}
    places = _distinct(seen)
    others_places = [place for place in _distinct(others_seen) if others_seen[place].digest not in known]
    found = nearest(_codes(others_seen, others_places), _codes(seen, places))
    for place, (other, distance) in enumerate(zip(*found, strict=True)):
        if distance <= bits:
            name, twin = others.names[others_places[place]], images.names[places[other]]
            yield f"{name} of {names[1]} looks like {twin} of {names[0]}"


def _distinct(seen: Sequence[ImageReport]) -> list[int]:
    """Where each image stands that has a code, equal ones once."""
    first: dict[bytes, int] = {}
    for place, one in enumerate(seen):
        if one.digest is not None and one.code is not None:
            first.setdefault(one.digest, place)
    return list(first.values())


def _codes(seen: Sequence[ImageReport], places: Sequence[int]) -> Float32[ndarray, "images 64"]:
    return np.array([seen[place].code for place in places], np.float32).reshape(-1, 64)


def nearest(
    codes: Float32[ndarray, "ours 64"], others: Float32[ndarray, "theirs 64"], earlier_only: bool = False
) -> tuple[Int64[ndarray, " ours"], Int64[ndarray, " ours"]]:
    """For each code the place of the most alike among the others, and in how many of 64 bits the two differ.

    ``earlier_only`` compares a set with itself: each with those before it. Where there are none, 65 bits differ.
    """
    places, distances = np.zeros(len(codes), np.int64), np.full(len(codes), 65)
    for start in range(0, len(codes) if len(others) else 0, 1024):  # whole, ten thousand squared would take gigabytes
        rows = slice(start, start + 1024)
        differ = (64 - codes[rows] @ others.T) / 2
        if earlier_only:
            differ[np.arange(len(others)) >= np.arange(len(codes))[rows, None]] = 65
        places[rows] = differ.argmin(axis=1)
        distances[rows] = differ.min(axis=1)
    return places, distances
