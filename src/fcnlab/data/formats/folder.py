"""Open images and masks of any layout, given by two patterns below ``root``.

For example ``images/{split}/{name}.jpg`` and ``masks/{split}/{name}.png``. ``{name}`` is the common part of both paths,
which may include folders; ``*`` matches any text without a slash. The names of a split are defined by ``{split}`` in
the patterns, by lists, or by fractions.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from filecmp import cmp
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fcnlab.config.ranges import Byte, Fraction, Seed
from fcnlab.data.dataset import CHOOSE_SPLIT, IGNORE_INDEX, SegmentationDataset
from fcnlab.data.folds import hash_of_name
from fcnlab.data.formats.voc import LIST_SUFFIX, list_name, read_list, voc_palette
from fcnlab.data.image_files import DataError
from fcnlab.data.image_headers import LARGEST
from fcnlab.data.masks import Colour
from fcnlab.data.patterns import find_images, same_names
from fcnlab.files.reading import bytes_of

COLOURED = re.compile(r"(.*?)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)")  # a class and its colour in a file of classes
NO_NAME = re.compile(r"#|//|\d+[\s,;:]")
COMPARED = 20  # number of images with equal names in two splits that are compared
LONGEST_CLASS = 500  # characters of a line; the time to parse one grows with a power of them
CLASSES_BYTES = 1 << 20  # limit on a file of classes; ADE20K's 150 classes have 3 kB

Classes = str | Sequence[str] | Mapping[str, Sequence[int]]


def open_folder(
    root: str,
    split: str,
    images: str,
    masks: str,
    classes: Classes,
    ignore_index: Byte | None = IGNORE_INDEX,
    ignore_colours: Sequence[Sequence[Byte]] = (),
    lists: str | None = None,
    fractions: Mapping[str, Fraction] | None = None,
    split_seed: Seed = 0,
    ids: Mapping[int, str | None] | None = None,
) -> SegmentationDataset:
    """Open a split of images and masks; masks are PNG or TIFF files.

    Parameters
    ----------
    split
        The value of ``{split}``; or the path of a list of names, ending in .txt, if the patterns have no ``{split}``.
    images, masks
        Patterns below ``root`` with ``{name}``; ``images`` may contain ``*``, such as ``{name}.*`` for any format.
    classes
        Names in the order of their ids; or the RGB colour of each name, by which all masks are read, also palette and
        grey masks; or a file below ``root`` with one class per line: a name, and its RGB values if masks have colours.
    ignore_index
        The id that is neither trained on nor scored; None: every id is a class. The default, 255, has no effect if
        ``ids`` contains it.
    ignore_colours
        RGB colours that are ignored, if classes have colours.
    ids
        The class name of each id in the masks, if ids are not 0, 1, 2, ...; None instead of a name: ignored. An id
        that is neither here nor ``ignore_index`` is an error.
    lists
        A pattern with ``{split}`` for files with one name per line.
    fractions
        The share of each split, as ``{train: 0.8, val: 0.2}``. The split is a hash of the file name and ``split_seed``,
        so adding images never moves existing ones; shares are approximate.

    Raises
    ------
    DataError
        A folder, list or split is missing; patterns, classes, colours or ids are invalid; two images have one name.
    """
    if not Path(root).is_dir():
        raise DataError(f"data.root={root} is not a folder: set data.root to the folder that contains {images}")
    if split.endswith(LIST_SUFFIX):
        _check_without_split(split, images, masks)
    else:
        _check_patterns(images, masks, lists, fractions)
    _check_mask_of_two(root, split, images, masks)
    names, colours = read_classes(classes, root)
    _check_one_meaning(colours, ignore_index, ignore_colours, ids)
    pattern = images.replace("{split}", split)
    matches, left_out = find_images(root, pattern, masks.replace("{split}", split))
    if not matches:
        raise DataError(f"no images match {Path(root) / pattern}{_splits_hint(root, images)}{_others(left_out)}")
    members = _members(root, split, matches, lists, fractions, split_seed)
    if members and matches.get(members[0]) == Path(root) / _filled(masks, split, members[0]):
        raise DataError(
            f"data.dataset.masks={masks} matches the images themselves (data.dataset.images={images}): set it to the"
            " location of the masks"
        )
    has_id = ignore_index == IGNORE_INDEX and ignore_index in (ids or ())
    return SegmentationDataset(
        title=f"{Path(root).absolute().name} {list_name(split)}",
        names=tuple(members),
        images=tuple(matches.get(name, Path(root) / _filled(images, split, name)) for name in members),
        masks=tuple(Path(root) / _filled(masks, split, name) for name in members),
        classes=names,
        palette=np.array(colours, np.uint8) if colours else voc_palette(len(names)),
        ignore_index=None if colours or has_id else ignore_index,
        colours=_colour_table(colours, ignore_colours),
        ids=None if ids is None else _labels_of_ids(ids, names),
        left_out=_of_split(left_out, split, lists, fractions, split_seed),
    )


def _check_one_meaning(
    colours: Sequence[Colour],
    ignore_index: int | None,
    ignore_colours: Sequence[Sequence[int]],
    ids: Mapping[int, Any] | None,
) -> None:
    """Check that settings for colours and for ids are not mixed: masks are read by one of them."""
    if colours and ids is not None:
        raise DataError(
            "data.dataset.ids has no effect with class colours, by which masks are read: set data.dataset.classes to"
            " names only, [NAME, ...], or leave ids out"
        )
    if colours and ignore_index not in (None, IGNORE_INDEX):
        raise DataError(
            f"data.dataset.ignore_index={ignore_index} has no effect with class colours, by which masks are read: set"
            " data.dataset.ignore_colours=[[R, G, B]]"
        )
    if ignore_colours and not colours:
        raise DataError(
            "data.dataset.ignore_colours has no effect without class colours: set data.dataset.classes to"
            " {NAME: [R, G, B], ...}"
        )


def _labels_of_ids(ids: Mapping[int, str | None], names: Sequence[str]) -> dict[int, int]:
    """Return the class index of each id, ``IGNORE_INDEX`` for None."""
    numbers = [stored for stored in ids if isinstance(stored, bool) or not isinstance(stored, int)]
    if numbers:
        raise DataError(f"data.dataset.ids has the key {numbers[0]!r}: ids must be numbers, as in {{1: NAME}}")
    unknown = [name for name in ids.values() if name is not None and name not in names]
    if unknown:
        raise DataError(
            f"data.dataset.ids names {unknown[0]!r}, which is not in data.dataset.classes: use"
            f" {', '.join(names[:5])}{', …' if len(names) > 5 else ''}, or null for ignored pixels"
        )
    return {stored: IGNORE_INDEX if name is None else names.index(name) for stored, name in ids.items()}


def read_classes(classes: Classes, root: str) -> tuple[tuple[str, ...], list[Colour]]:
    """Return the names in the order of their ids, and their RGB colours, if any.

    Raises
    ------
    DataError
        The file is missing; there are no classes or more than 255, duplicate names or colours, or missing colours.
    """
    pairs = list(_class_lines(classes, root))
    names, colours = tuple(name for name, _ in pairs), [_colour(colour) for _, colour in pairs if colour is not None]
    if not 0 < len(names) <= IGNORE_INDEX:
        raise DataError(
            f"data.dataset.classes={classes!r} has {len(names)} classes, but 1 to {IGNORE_INDEX} are allowed"
        )
    for kind, values in (("name", names), ("colour", [str(colour) for colour in colours])):
        duplicates = [value for value, count in Counter(values).items() if count > 1]
        if duplicates:
            raise DataError(f"data.dataset.classes={classes!r}: two classes have the {kind} {duplicates[0]}")
    if colours and len(colours) < len(names):
        raise DataError(
            f"data.dataset.classes={classes!r} has {len(names)} classes but {len(colours)} colours: set all or none"
        )
    return names, colours


def _colour_table(colours: Sequence[Colour], ignore_colours: Sequence[Sequence[int]]) -> dict[Colour, int] | None:
    ignored = {_colour(colour): IGNORE_INDEX for colour in ignore_colours}
    duplicates = ignored.keys() & set(colours)
    if duplicates:
        raise DataError(f"data.dataset.ignore_colours: {list(duplicates.pop())} is also the colour of a class")
    return {colour: label for label, colour in enumerate(colours)} | ignored if colours else None


def count_classes(classes: Any, root: str) -> int:
    """Return the number of classes, as the default of ``data.num_classes``."""
    return len(classes) if not isinstance(classes, str) else len(read_classes(classes, root)[0])


def _class_lines(classes: Classes, root: str) -> Iterator[tuple[str, Sequence[int] | None]]:
    if isinstance(classes, Mapping):
        yield from classes.items()
    elif not isinstance(classes, str):
        yield from ((name, None) for name in classes)
    else:
        path = Path(root) / classes
        try:
            lines = bytes_of(path, CLASSES_BYTES).decode("utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise DataError(
                f"data.dataset.classes={classes}: {path} cannot be read ({error}). It must be UTF-8 with one class per"
                " line, followed by its RGB values if masks have colours."
            ) from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _class_line(line.strip(), f"data.dataset.classes={classes}: line {number}")


def _class_line(line: str, where: str) -> tuple[str, Sequence[int] | None]:
    """Return a class name, and its RGB colour or None.

    Raises
    ------
    DataError
        The line starts like a comment, an id or a colour: as a name, it would shift the ids of later classes. Or it is
        too long.
    """
    if len(line) > LONGEST_CLASS:
        raise DataError(f"{where} has more than {LONGEST_CLASS} characters: write one class per line")
    if NO_NAME.match(line):
        raise DataError(
            f"{where}, {line!r}, starts like a comment, an id or a colour, but a class name is expected. Write NAME or"
            " NAME R G B, one class per line in the order of the ids, or set data.dataset.classes to a list"
        )
    parts = COLOURED.fullmatch(line)
    return (parts[1], [int(value) for value in parts.groups()[1:]]) if parts else (line, None)


def _colour(value: Sequence[int]) -> Colour:
    if len(value) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in value):
        raise DataError(f"{list(value)} is not a colour: use red, green and blue, each 0 to 255")
    red, green, blue = value
    return red, green, blue


def _check_without_split(path: str, images: str, masks: str) -> None:
    """Check that a list is enough to find its images: it has no value for ``{split}``."""
    for key, pattern in {"images": images, "masks": masks}.items():
        if "{split}" in pattern:
            raise DataError(
                f"the list {path} contains names only, but data.dataset.{key}={pattern} also needs a value for"
                " {split}: set a pattern without {split}, whose {name} contains the folder, and write the folder into"
                " the list, as in train/NAME"
            )
    _check_names(images, masks)


def _check_patterns(images: str, masks: str, lists: str | None, fractions: Mapping[str, float] | None) -> None:
    _check_names(images, masks)
    if lists is not None and not ("{split}" in lists and lists.endswith(".txt")):
        raise DataError(
            f"data.dataset.lists={lists} must contain {{split}} and end in .txt, such as lists/{{split}}.txt"
        )
    if fractions is not None and not (
        all(share > 0 for share in fractions.values()) and sum(fractions.values()) < 1 + 1e-9
    ):
        raise DataError(f"data.dataset.fractions={dict(fractions)} must be above 0, with a sum of at most 1")
    ways = {
        "{split} in data.dataset.images": "{split}" in images and lists is None,
        "data.dataset.lists": lists is not None,
        "data.dataset.fractions": fractions is not None,
    }
    if sum(ways.values()) != 1:
        chosen = " and ".join(way for way, is_set in ways.items() if is_set) or "nothing"
        raise DataError(f"the images of a split are defined by {chosen}: set exactly one of {', '.join(ways)}")


def _check_names(images: str, masks: str) -> None:
    for key, pattern in {"images": images, "masks": masks}.items():
        if pattern.count("{name}") != 1:
            raise DataError(f"data.dataset.{key}={pattern} must contain {{name}} once, in place of the file name")
    if "*" in masks:
        raise DataError(f"data.dataset.masks={masks} must not contain *, because each image has one mask")


def _check_mask_of_two(root: str, split: str, images: str, masks: str) -> None:
    """Check that different images of two splits do not have the same mask; copies of an image may share it."""
    if "{split}" not in images or "{split}" in masks:
        return
    for image, other_image in islice(same_names(root, images, split), COMPARED):
        if _differ(image, other_image):
            raise DataError(
                f"data.dataset.masks={masks} has no {{split}}, but data.dataset.images={images} has, so that the"
                f" different images {image} and {other_image} would have the same mask. Add {{split}} to the path of"
                " masks, such as masks/{split}/{name}.png, or rename the images. If they do share masks, create a link"
                " for each split to the folder of masks"
            )


def _differ(image: Path, other: Path) -> bool:
    """Return whether two files differ; False if one is too large or unreadable, as the check of all files reports."""
    try:
        if max(image.stat().st_size, other.stat().st_size) > LARGEST:
            return False
        return not cmp(image, other, shallow=False)
    except OSError:
        return False


def _of_split(
    left_out: Mapping[str, list[Path]],
    split: str,
    lists: str | None,
    fractions: Mapping[str, float] | None,
    split_seed: int,
) -> tuple[Path, ...]:
    """Return the skipped files of a split; none with lists, because a missing listed name is an error."""
    if lists is not None or split.endswith(LIST_SUFFIX):
        return ()
    chosen = [name for name in left_out if fractions is None or split_of(name, fractions, split_seed) == split]
    return tuple(path for name in chosen for path in left_out[name])


def _others(left_out: Mapping[str, list[Path]]) -> str:
    first = next(iter(left_out.values()), [])
    return f" {len(left_out)} files differ only in suffix or case, such as {first[0].name}." if first else ""


def _filled(pattern: str, split: str, name: str) -> str:
    return pattern.replace("{split}", split).replace("{name}", name)


def _members(
    root: str,
    split: str,
    matches: Mapping[str, Path],
    lists: str | None,
    fractions: Mapping[str, float] | None,
    split_seed: int,
) -> Sequence[str]:
    if split.endswith(LIST_SUFFIX):
        return read_list(Path(root), split)
    if lists is not None:
        file = Path(root) / lists.replace("{split}", split)
        return read_list(file.parent, file.stem)
    if fractions is None:
        return sorted(matches)
    if split not in fractions:
        there = ", ".join(fractions)
        raise DataError(f"no split {split!r} in data.dataset.fractions: available are {there}. {CHOOSE_SPLIT}")
    members = [name for name in matches if split_of(name, fractions, split_seed) == split]
    if not members:
        raise DataError(
            f"none of {len(matches)} images is in split {split}: increase its share in data.dataset.fractions, or"
            " choose another data.dataset.split_seed"
        )
    return members


def split_of(name: str, fractions: Mapping[str, float], seed: int) -> str | None:
    """Return the split of a name by a hash of seed and name; None outside all shares."""
    place = hash_of_name(name, str(seed)) / 2**64
    for split, share in fractions.items():
        if place < share:
            return split
        place -= share
    return None


def _splits_hint(root: str, images: str) -> str:
    """Return a hint with the existing split folders."""
    before, marked, _ = images.partition("{split}")
    folder = Path(root) / before.rpartition("/")[0]
    if not marked or before.rpartition("/")[2] or not folder.is_dir():
        return ": check data.root and data.dataset.images."
    there = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "none"
    return f": {folder} contains {there}. Set data.train_list, data.val_list, data.test_list or data.dataset.images."
