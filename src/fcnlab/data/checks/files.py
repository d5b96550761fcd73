"""Inspect every image and mask of a split: errors, unusual properties and contents.

:meth:`SegmentationDataset.faults` finds the errors that also stop training. Here, images are decoded, too, and compared
with each other.
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
ImageReports = tuple[SegmentationDataset, Sequence["ImageReport"]]  # a split, and a report on each of its images

FAULTS = {  # check, text without faults, text with faults
    MissingFile: ("files", "all present", "{} missing"),
    UnreadableFile: ("formats", "all supported", "{} not a supported image or mask"),
    BrokenFile: ("whole files", "all complete", "{} truncated or damaged"),
    WrongSize: ("mask sizes", "all equal to their images", "{} different from their image, or too large"),
    WrongMode: ("pixel modes", "8 bits; masks contain ids or class colours", "{} not supported"),
    WrongLabels: ("labels", "only classes and ignored pixels", "{} masks with other labels"),
}
ORIENTATION = 0x0112  # EXIF's tag; 1: upright
ODDITIES = {  # likewise for files that are possibly not read as intended
    "rotation": ("none in EXIF", "{} rotated in EXIF only"),
    "colour space": ("RGB or grey", "{} in another colour space"),
    "bit depth": ("8", "{} with 16 bits"),
}
FLAT = 2.0  # grey levels: a thumbnail with a smaller deviation is not recognisable
SMALL = 32  # pixels: the stride of a network's last layers
MOSTLY_IGNORED = 0.5
NO_LABELS = np.zeros(256, np.int64)


@dataclass(frozen=True)
class ImageReport:
    """The properties of an image and its mask; None for what could not be read.

    Attributes
    ----------
    odd
        Unusual properties, as pairs of a name in ``ODDITIES`` and a message.
    size
        Rows and columns.
    digest
        Hash of the decoded pixels: equal for equal images in any file format.
    code
        64 signs of horizontal gradients at 8 x 8 positions (dHash); None for a uniform image.
    mask
        The contents of the mask.
    """

    faults: tuple[DataError, ...] = ()
    odd: tuple[tuple[str, str], ...] = ()
    size: tuple[int, int] | None = None
    digest: bytes | None = None
    code: Code | None = None
    mask: MaskContents | None = None

    @property
    def labels(self) -> LabelPixels | None:
        """Pixels of each label; 255 is the ignore index."""
        return None if self.mask is None else self.mask.pixels


def inspect_images(dataset: SegmentationDataset) -> Iterator[ImageReport]:
    """Yield a report on each image in order, with one thread per core; damaged images do not stop it."""
    with ThreadPoolExecutor(visible_cores()) as pool:
        yield from pool.map(lambda index: inspect_image(dataset, index), range(len(dataset)))


def inspect_image(dataset: SegmentationDataset, index: int) -> ImageReport:
    """Read an image and its mask completely, and report on them."""
    faults = {str(fault): fault for fault in dataset.faults(index)}
    image = _read(dataset.image, index, faults)
    mask = _read(dataset.mask_contents, index, faults) if dataset.masks else None
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
    """Yield the unusual properties of a readable image, as pairs of a name in ``ODDITIES`` and a message."""
    try:
        with open_image(path) as file:
            if file.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
                yield "colour space", f"{path} is {file.mode}: colours are converted approximately, without a profile"
            if any(";16" in str(tile[3]) for tile in file.tile):
                yield "bit depth", f"{path} has 16 bits per channel, of which only the upper 8 are used"
            turn = file.getexif().get(ORIENTATION, 1)  # last, because it decodes a PNG
            if turn != 1:
                yield (
                    "rotation",
                    f"{path} has EXIF orientation {turn}, which is ignored: the image is used as stored, like its mask",
                )
    except DataError:  # reported as a fault
        return


def pixel_digest(image: UInt8[ndarray, "rows cols 3"]) -> bytes:
    """Return a hash of the pixels, independent of the file format."""
    return blake2b(image.tobytes(), digest_size=16, person=str(image.shape[1]).encode()).digest()


def perceptual_code(image: UInt8[ndarray, "rows cols 3"]) -> Code | None:
    """Return the 64 signs of a dHash as +1 and -1, so that a product counts equal signs; None for uniform images."""
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA).astype(np.float32)
    return None if grey.std() < FLAT else np.where(np.diff(grey, axis=1) > 0, np.float32(1), np.float32(-1)).ravel()


def inspect_split(
    name: str, dataset: SegmentationDataset, reports: Sequence[ImageReport], bits: int = 4
) -> list[Finding]:
    """Return the findings on a single split.

    Images whose dHash differs in at most ``bits`` of 64 count as look-alikes.
    """
    about = f"{name}: {dataset.title}, {len(dataset):,} images, {sum(map(isfile, dataset.masks)):,} masks"
    duplicate_names, skipped_files = tuple(dataset.listed_twice()), tuple(map(str, dataset.left_out))
    duplicates = tuple(f"{title} is listed more than once" for title in duplicate_names)
    skipped = tuple(f"{path} matches data.dataset.images except for suffix or case" for path in skipped_files)
    similar_names = ("no images with similar names", "{} images with similar names")
    return [
        _verdict(
            about, "list", Verdict.ERROR, duplicates, "no duplicate names", "{} listed more than once", duplicate_names
        ),
        _verdict(about, "skipped", Verdict.WARNING, skipped, *similar_names, skipped_files),
        *_fault_lines(about, dataset, reports),
        *_odd_lines(about, dataset, reports),
        _size_line(about, dataset, reports),
        *(_label_lines(about, dataset, reports) if dataset.masks else []),
        _verdict(
            about,
            "duplicates",
            Verdict.WARNING,
            tuple(_equal_pairs(dataset, reports)),
            "no equal images",
            "{} equal to an earlier image, to the pixel",
        ),
        _verdict(
            about,
            "look-alikes",
            Verdict.WARNING,
            tuple(_alike_within(dataset, reports, bits)),
            "none",
            "{} similar to another image",
        ),
    ]


def inspect_overlap(
    names: tuple[str, str], first: ImageReports, second: ImageReports, bits: int = 4, allowed: bool = False
) -> list[Finding]:
    """Return the findings on two splits, of which one is used to evaluate a model trained on the other.

    ``allowed``: images in both splits cause a warning instead of an error.
    """
    about = f"{names[0]} and {names[1]}"
    equal = tuple(_same_across(names, first, second))
    similar = tuple(_alike_across(names, first, second, bits))
    verdict = Verdict.WARNING if allowed else Verdict.ERROR
    return [
        _verdict(about, "overlap", verdict, equal, "no image in both", "{} in both"),
        _verdict(about, "look-alikes", Verdict.WARNING, similar, "none", "{} similar to an image of the other"),
    ]


def class_frequencies(dataset: SegmentationDataset, reports: Sequence[ImageReport]) -> Frequencies:
    """Return the class frequencies in all readable masks."""
    return frequencies([report.labels for report in reports if report.labels is not None], len(dataset.classes))


def _verdict(
    about: str,
    check: str,
    verdict: Verdict,
    each: tuple[str, ...],
    success: str,
    failure: str,
    files: tuple[str, ...] = (),
) -> Finding:
    if not each:
        return _fine(about, check, success)
    return Finding(about, check, verdict, failure.format(f"{len(each):,}"), each, files)


def _fine(about: str, check: str, text: str) -> Finding:
    return Finding(about, check, Verdict.OK, text)


def _fault_lines(about: str, dataset: SegmentationDataset, reports: Sequence[ImageReport]) -> Iterator[Finding]:
    faults = [(fault, index) for index, report in enumerate(reports) for fault in report.faults]
    for kind, (check, success, failure) in FAULTS.items():
        each = [(str(fault), index) for fault, index in faults if isinstance(fault, kind)]
        yield _verdict(about, check, Verdict.ERROR, _texts(each), success, failure, _files(dataset, each))
    other = [(str(fault), index) for fault, index in faults if not isinstance(fault, tuple(FAULTS))]
    if other:  # of a data set with its own checks
        yield Finding(
            about, "contents", Verdict.ERROR, f"{len(other):,} invalid", _texts(other), _files(dataset, other)
        )


def _odd_lines(about: str, dataset: SegmentationDataset, reports: Sequence[ImageReport]) -> Iterator[Finding]:
    for check, (success, failure) in ODDITIES.items():
        each = [(text, index) for index, report in enumerate(reports) for name, text in report.odd if name == check]
        yield _verdict(about, check, Verdict.WARNING, _texts(each), success, failure, _files(dataset, each))


def _texts(each: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    return tuple(text for text, _ in each)


def _files(dataset: SegmentationDataset, each: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """Return the file at the start of each message, an image or its mask; without one, the message itself."""
    named = [(text, map(str, (dataset.images[index], *dataset.masks[index : index + 1]))) for text, index in each]
    return tuple(max(filter(text.startswith, paths), key=len, default=text) for text, paths in named)


def _size_line(about: str, dataset: SegmentationDataset, reports: Sequence[ImageReport]) -> Finding:
    sizes = {str(dataset.images[index]): report.size for index, report in enumerate(reports) if report.size}
    if not sizes:
        return Finding(about, "image sizes", Verdict.WARNING, "no image could be read")
    files = tuple(path for path, size in sizes.items() if min(size) < SMALL)
    small = tuple(f"{path} has {sizes[path][0]}x{sizes[path][1]} pixels" for path in files)
    (rows, most_rows), (cols, most_cols) = ((min(side), max(side)) for side in zip(*sizes.values(), strict=True))
    text = f"{rows} to {most_rows} rows, {cols} to {most_cols} columns"
    if small:
        return Finding(
            about, "image sizes", Verdict.WARNING, f"{text}: {len(small):,} under {SMALL} pixels", small, files
        )
    return _fine(about, "image sizes", text)


def _label_lines(about: str, dataset: SegmentationDataset, reports: Sequence[ImageReport]) -> list[Finding]:
    contradictions = tuple(conflicts(dataset, [report.mask for report in reports if report.mask is not None]))
    return [
        _verdict(about, "mask kinds", Verdict.WARNING, contradictions, "consistent", "{} contradictions between masks"),
        _class_line(about, dataset, sum((report.labels for report in reports if report.labels is not None), NO_LABELS)),
        _ignored_line(about, dataset, reports, class_frequencies(dataset, reports)),
    ]


def _class_line(about: str, dataset: SegmentationDataset, pixels: LabelPixels) -> Finding:
    """Return the finding on the classes that occur; unreadable masks are reported elsewhere."""
    absent = absent_classes(dataset, pixels)
    summary = f"{len(dataset.classes) - len(absent)} of {len(dataset.classes)} occur"
    if pixels.any() and (problem := one_class_only(dataset, pixels)):
        return Finding(about, "classes", Verdict.ERROR, f"{summary}: {problem}")
    if absent:
        return Finding(about, "classes", Verdict.WARNING, f"{summary}; absent: {', '.join(absent)}")
    return _fine(about, "classes", summary)


def _ignored_line(
    about: str, dataset: SegmentationDataset, reports: Sequence[ImageReport], counts: Frequencies
) -> Finding:
    files = tuple(
        str(dataset.masks[index])
        for index, report in enumerate(reports)
        if report.labels is not None and not report.labels[: len(dataset.classes)].any()
    )
    empty = tuple(f"{path} contains only ignored pixels: the model cannot learn from it" for path in files)
    masks = sum(report.labels is not None for report in reports)
    text = f"{100 * counts.ignored_share:.1f} % of all pixels, in {counts.images_with_ignored:,} of {masks:,} masks"
    is_warning = empty or counts.ignored_share > MOSTLY_IGNORED
    return Finding(about, "ignored pixels", Verdict.WARNING if is_warning else Verdict.OK, text, empty, files)


def _equal_pairs(dataset: SegmentationDataset, reports: Sequence[ImageReport]) -> Iterator[str]:
    first: dict[bytes, str] = {}
    # Each name once, because duplicate names are reported separately.
    for name, report in dict(zip(dataset.names, reports, strict=True)).items():
        if report.digest is None:
            continue
        if report.digest in first:
            yield f"{name} equals {first[report.digest]}"
        first.setdefault(report.digest, name)


def _same_across(names: tuple[str, str], first: ImageReports, second: ImageReports) -> Iterator[str]:
    (dataset, reports), (other_dataset, other_reports) = first, second
    by_pixels = {
        report.digest: name for name, report in zip(dataset.names, reports, strict=True) if report.digest is not None
    }
    by_file = dict(zip(dataset.images, dataset.names, strict=True))  # also unreadable files
    for name, path, report in zip(other_dataset.names, other_dataset.images, other_reports, strict=True):
        twin = by_pixels.get(report.digest or b"") or by_file.get(path)
        if twin is not None:
            yield f"{name} of {names[1]} equals {twin} of {names[0]}"


def _alike_within(dataset: SegmentationDataset, reports: Sequence[ImageReport], bits: int) -> Iterator[str]:
    indices = _distinct(reports)
    codes = _codes(reports, indices)
    for position, (nearest_position, distance) in enumerate(
        zip(*nearest(codes, codes, earlier_only=True), strict=True)
    ):
        if distance <= bits:
            yield f"{dataset.names[indices[position]]} looks like {dataset.names[indices[nearest_position]]}"


def _alike_across(names: tuple[str, str], first: ImageReports, second: ImageReports, bits: int) -> Iterator[str]:
    (dataset, reports), (other_dataset, other_reports) = first, second
    known = {report.digest for report in reports}
    indices = _distinct(reports)
    other_indices = [position for position in _distinct(other_reports) if other_reports[position].digest not in known]
    matches = nearest(_codes(other_reports, other_indices), _codes(reports, indices))
    for position, (nearest_position, distance) in enumerate(zip(*matches, strict=True)):
        if distance <= bits:
            name, twin = other_dataset.names[other_indices[position]], dataset.names[indices[nearest_position]]
            yield f"{name} of {names[1]} looks like {twin} of {names[0]}"


def _distinct(reports: Sequence[ImageReport]) -> list[int]:
    """Return the index of each image with a code, once for equal images."""
    first: dict[bytes, int] = {}
    for index, report in enumerate(reports):
        if report.digest is not None and report.code is not None:
            first.setdefault(report.digest, index)
    return list(first.values())


def _codes(reports: Sequence[ImageReport], indices: Sequence[int]) -> Float32[ndarray, "images 64"]:
    return np.array([reports[index].code for index in indices], np.float32).reshape(-1, 64)


def nearest(
    codes: Float32[ndarray, "codes 64"], others: Float32[ndarray, "others 64"], earlier_only: bool = False
) -> tuple[Int64[ndarray, " codes"], Int64[ndarray, " codes"]]:
    """Return for each code the index of the most similar other code, and the number of different bits of 64.

    ``earlier_only`` compares each code of a set with the earlier ones of the same set. Without others, 65 bits differ.
    """
    places, distances = np.zeros(len(codes), np.int64), np.full(len(codes), 65)
    for start in range(0, len(codes) if len(others) else 0, 1024):  # in parts, because all pairs would need gigabytes
        rows = slice(start, start + 1024)
        differ = (64 - codes[rows] @ others.T) / 2
        if earlier_only:
            differ[np.arange(len(others)) >= np.arange(len(codes))[rows, None]] = 65
        places[rows] = differ.argmin(axis=1)
        distances[rows] = differ.min(axis=1)
    return places, distances
