"""Images and masks of any layout, told by two patterns below ``root``.

``images/{split}/{name}.jpg`` beside ``masks/{split}/{name}.png``, say. ``{name}`` is what the two have in common,
folders included; ``*`` is any text without a slash. Which names belong to a split is told by ``{split}`` in the
patterns, by lists, or by fractions.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from filecmp import cmp
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fcnlab.config.ranges import Byte, Fraction, Seed
from fcnlab.data.dataset import IGNORE_INDEX, SegmentationDataset
from fcnlab.data.formats.voc import read_list, voc_palette
from fcnlab.data.image_files import DataError
from fcnlab.data.image_headers import LARGEST
from fcnlab.data.masks import Colour
from fcnlab.data.patterns import find_images, same_names
from fcnlab.files.reading import bytes_of

COLOURED = re.compile(r"(.*?)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)")  # a class and its colour in a file of classes
NO_NAME = re.compile(r"#|//|\d+[\s,;:]")
COMPARED = 20  # images of one name in two splits whose bytes are compared: one that differs is enough
CLASSES_BYTES = 1 << 20  # of such a file; ADE20K's 150 classes have 3 kB

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
    """A split of images and masks, which are PNG or TIFF files.

    Parameters
    ----------
    images, masks
        Patterns below ``root`` with ``{name}``; ``images`` may hold ``*``, such as ``{name}.*`` for any format.
    classes
        Names in the order of their ids; or each name's RGB, by which all masks are read then, palette and grey ones,
        too; or a file below ``root`` with a class to a line: a name, and its three numbers if there are colours.
    void
        The id that is neither trained on nor scored; None: every id is a class. The default, 255, gives way where
        ``ids`` has it.
    ignore_colours
        RGB that are likewise void where classes have colours.
    ids
        The class of each id in the masks by name, where ids are not 0, 1, 2, ...; None instead of a name: void. An id
        that is neither here nor ``void`` is an error.
    lists
        A pattern with ``{split}``: files of names, one to a line.
    fractions
        Each split's share of the images, as ``{train: 0.8, val: 0.2}``. A name's split hangs on the name and
        ``split_seed`` alone, so a image that joins moves no other; shares are met roughly.

    Raises
    ------
    DataError
        No such folder, list or split; patterns, classes, colours or ids that make no sense; two images of one name.
    """
    if not Path(root).is_dir():
        raise DataError(f"data.root={root} is no folder: set data.root to the one that holds {images}")
    _check_patterns(images, masks, lists, fractions)
    _check_mask_of_two(root, split, images, masks)
    names, colours = read_classes(classes, root)
    _check_one_meaning(colours, ignore_index, ignore_colours, ids)
    pattern = images.replace("{split}", split)
    found, left_out = find_images(root, pattern, masks.replace("{split}", split))
    if not found:
        raise DataError(f"no images are {Path(root) / pattern}{_splits_hint(root, images)}{_others(left_out)}")
    members = _members(root, split, found, lists, fractions, split_seed)
    if members and found.get(members[0]) == Path(root) / _filled(masks, split, members[0]):
        raise DataError(
            f"data.dataset.masks={masks} are the images themselves (data.dataset.images={images}): give where the"
            " masks are"
        )
    return SegmentationDataset(
        title=f"{Path(root).absolute().name} {split}",
        names=tuple(members),
        images=tuple(found.get(name, Path(root) / _filled(images, split, name)) for name in members),
        masks=tuple(Path(root) / _filled(masks, split, name) for name in members),
        classes=names,
        palette=np.array(colours, np.uint8) if colours else voc_palette(len(names)),
        ignore_index=None
        if colours or (ignore_index == IGNORE_INDEX and ignore_index in (ids or ()))
        else ignore_index,
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
    """Masks are read by colours or by ids: what the one needs has no effect with the other."""
    if colours and ids is not None:
        raise DataError(
            "data.dataset.ids has no effect with class colours, by which masks are read: give data.dataset.classes"
            " names alone, [NAME, ...], or leave ids out"
        )
    if colours and ignore_index not in (None, IGNORE_INDEX):
        raise DataError(
            f"data.dataset.ignore_index={ignore_index} has no effect with class colours, by which masks are read: name void's colour,"
            " data.dataset.ignore_colours=[[R, G, B]]"
        )
    if ignore_colours and not colours:
        raise DataError(
            "data.dataset.ignore_colours has no effect without class colours: give data.dataset.classes as"
            " {NAME: [R, G, B], ...}"
        )


def _labels_of_ids(ids: Mapping[int, str | None], names: Sequence[str]) -> dict[int, int]:
    """The class of each id by its place, ``VOID`` for None."""
    numbers = [stored for stored in ids if isinstance(stored, bool) or not isinstance(stored, int)]
    if numbers:
        raise DataError(f"data.dataset.ids has the key {numbers[0]!r}: give each id as a number, as in {{1: NAME}}")
    unknown = [name for name in ids.values() if name is not None and name not in names]
    if unknown:
        raise DataError(
            f"data.dataset.ids names {unknown[0]!r}, which is none of data.dataset.classes: there is"
            f" {', '.join(names[:5])}{', …' if len(names) > 5 else ''}; null is void"
        )
    return {stored: IGNORE_INDEX if name is None else names.index(name) for stored, name in ids.items()}


def read_classes(classes: Classes, root: str) -> tuple[tuple[str, ...], list[Colour]]:
    """The names in the order of their ids, and their RGB if there are any.

    Raises
    ------
    DataError
        No such file; no classes, more than 255, two of one name or colour; colours for some only.
    """
    pairs = list(_class_lines(classes, root))
    names, colours = tuple(name for name, _ in pairs), [_colour(colour) for _, colour in pairs if colour is not None]
    if not 0 < len(names) <= IGNORE_INDEX:
        raise DataError(f"data.dataset.classes={classes!r} has {len(names)} classes: give 1 to {IGNORE_INDEX}")
    for what, values in (("name", names), ("colour", [str(colour) for colour in colours])):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise DataError(f"data.dataset.classes={classes!r}: two classes have the {what} {twice[0]}")
    if colours and len(colours) < len(names):
        raise DataError(
            f"data.dataset.classes={classes!r} gives {len(names)} classes {len(colours)} colours: all or none"
        )
    return names, colours


def _colour_table(colours: Sequence[Colour], ignore_colours: Sequence[Sequence[int]]) -> dict[Colour, int] | None:
    ignore_index = {_colour(one): IGNORE_INDEX for one in ignore_colours}
    both = ignore_index.keys() & set(colours)
    if both:
        raise DataError(f"data.dataset.ignore_colours: {list(both.pop())} is a class's colour, too")
    return {colour: label for label, colour in enumerate(colours)} | ignore_index if colours else None


def count_classes(classes: Any, root: str) -> int:
    """For ``data.num_classes``, so that nobody counts."""
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
                f"data.dataset.classes={classes}: {path} cannot be read ({error}). It is UTF-8, a class to a line,"
                " with its RGB behind it if masks are coloured."
            ) from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _class_line(line.strip(), f"data.dataset.classes={classes}: line {number}")


def _class_line(line: str, where: str) -> tuple[str, Sequence[int] | None]:
    """A name, and its RGB where there is one.

    Raises
    ------
    DataError
        It begins as a comment, an id or a colour does: as a name it would shift the ids of the classes behind it.
    """
    if NO_NAME.match(line):
        raise DataError(
            f"{where}, {line!r}, begins like a comment, an id or a colour, and would be taken for a name. Give NAME or"
            " NAME R G B, a class to a line in the order of the ids; or give data.dataset.classes as a list"
        )
    parts = COLOURED.fullmatch(line)
    return (parts[1], [int(value) for value in parts.groups()[1:]]) if parts else (line, None)


def _colour(value: Sequence[int]) -> Colour:
    if len(value) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in value):
        raise DataError(f"{list(value)} is no colour: give red, green and blue, each 0 to 255")
    red, green, blue = value
    return red, green, blue


def _check_patterns(images: str, masks: str, lists: str | None, fractions: Mapping[str, float] | None) -> None:
    for key, pattern in {"images": images, "masks": masks}.items():
        if pattern.count("{name}") != 1:
            raise DataError(f"data.dataset.{key}={pattern}: it needs {{name}} once, where the file's own name stands")
    if "*" in masks:
        raise DataError(f"data.dataset.masks={masks}: a name has one mask, so no * here")
    if lists is not None and not ("{split}" in lists and lists.endswith(".txt")):
        raise DataError(f"data.dataset.lists={lists}: give a .txt with {{split}} in it, such as lists/{{split}}.txt")
    if fractions is not None and not (
        all(share > 0 for share in fractions.values()) and sum(fractions.values()) < 1 + 1e-9
    ):
        raise DataError(f"data.dataset.fractions={dict(fractions)}: give shares above 0, together at most 1")
    ways = {
        "{split} in data.dataset.images": "{split}" in images and lists is None,
        "data.dataset.lists": lists is not None,
        "data.dataset.fractions": fractions is not None,
    }
    if sum(ways.values()) != 1:
        chosen = " and ".join(way for way, taken in ways.items() if taken) or "nothing"
        raise DataError(f"{chosen} says which images a split has: give one of {', '.join(ways)}")


def _check_mask_of_two(root: str, split: str, images: str, masks: str) -> None:
    """Refuse a pattern of masks that gives images of two splits one file; copies of an image may share their mask."""
    if "{split}" not in images or "{split}" in masks:
        return
    for image, other in islice(same_names(root, images, split), COMPARED):
        if _differ(image, other):
            raise DataError(
                f"data.dataset.masks={masks} has no {{split}}, which data.dataset.images={images} has, so that"
                f" {image} and {other}, which are different images, would have one mask. Put {{split}} where the"
                " masks' folder is told, such as masks/{split}/{name}.png, or give the images two names. Where they do"
                " share masks, a link for each split to one folder says so"
            )


def _differ(image: Path, other: Path) -> bool:
    """False for what is no image or cannot be read: the check of all files tells what is wrong with it."""
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
    """Those that would be in this split; with lists none, since a listed name that is not found is an error."""
    if lists is not None:
        return ()
    chosen = [name for name in left_out if fractions is None or split_of(name, fractions, split_seed) == split]
    return tuple(path for name in chosen for path in left_out[name])


def _others(left_out: Mapping[str, list[Path]]) -> str:
    first = next(iter(left_out.values()), [])
    return f" There are {len(left_out)} like it of another suffix or case, such as {first[0].name}." if first else ""


def _filled(pattern: str, split: str, name: str) -> str:
    return pattern.replace("{split}", split).replace("{name}", name)


def _members(
    root: str,
    split: str,
    found: Mapping[str, Path],
    lists: str | None,
    fractions: Mapping[str, float] | None,
    split_seed: int,
) -> Sequence[str]:
    if lists is not None:
        file = Path(root) / lists.replace("{split}", split)
        return read_list(file.parent, file.stem)
    if fractions is None:
        return sorted(found)
    if split not in fractions:
        there = ", ".join(fractions)
        raise DataError(
            f"no split {split!r} in data.dataset.fractions: there is {there}. Set data.train_list, data.val_list."
        )
    members = [name for name in found if split_of(name, fractions, split_seed) == split]
    if not members:
        raise DataError(
            f"none of {len(found)} images fell to {split}: raise its share in data.dataset.fractions, or choose"
            " another data.dataset.split_seed"
        )
    return members


def split_of(name: str, fractions: Mapping[str, float], seed: int) -> str | None:
    """The split whose interval of 0..1 a hash of seed and name falls into; None in what the shares leave over."""
    digest = blake2b(name.encode(errors="surrogateescape"), digest_size=8, key=str(seed).encode()).digest()
    place = int.from_bytes(digest, "big") / 2**64
    for split, share in fractions.items():
        if place < share:
            return split
        place -= share
    return None


def _splits_hint(root: str, images: str) -> str:
    """Which split folders there are."""
    before, marked, _ = images.partition("{split}")
    folder = Path(root) / before.rpartition("/")[0]
    if not marked or before.rpartition("/")[2] or not folder.is_dir():
        return ": see data.root and data.dataset.images"
    there = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "none"
    return f": in {folder} there is {there}. Set data.train_list, data.val_list or data.dataset.images."
