"""Pictures and masks of any layout, told by two patterns below ``root``.

``images/{split}/{name}.jpg`` beside ``masks/{split}/{name}.png``, say. ``{name}`` is what the two have in common,
folders included; ``*`` is any text without a slash. Which names belong to a split is told by ``{split}`` in the
patterns, by lists, or by fractions.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from fcnlab.data.pictures import VOID, DataError, Pictures
from fcnlab.data.voc import read_list, voc_palette

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
COLOURED = re.compile(r"(.*?)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)")  # a class and its colour in a file of classes
LARGEST = 1 << 20  # bytes of such a file; 255 classes have some 5,000

Colour = tuple[int, int, int]
Classes = str | Sequence[str] | Mapping[str, Sequence[int]]


def open_folder(
    root: str,
    split: str,
    images: str,
    masks: str,
    classes: Classes,
    void: int | None = VOID,
    void_colours: Sequence[Sequence[int]] = (),
    lists: str | None = None,
    fractions: Mapping[str, float] | None = None,
    split_seed: int = 0,
) -> Pictures:
    """A split of pictures and PNG masks.

    Parameters
    ----------
    images, masks
        Patterns below ``root`` with ``{name}``; ``images`` may hold ``*``, such as ``{name}.*`` for any format.
    classes
        Names in the order of their ids; or each name's RGB, by which masks of colours are read; or a file below
        ``root`` with a class to a line: a name, and its three numbers if there are colours.
    void
        The id that is neither trained on nor scored; None: every id is a class.
    void_colours
        RGB that are void in masks of colours.
    lists
        A pattern with ``{split}``: files of names, one to a line.
    fractions
        Each split's share of the pictures, as ``{train: 0.8, val: 0.2}``. A name's split hangs on the name and
        ``split_seed`` alone, so a picture that joins moves no other; shares are met roughly.

    Raises
    ------
    DataError
        No such folder, list or split; patterns, classes or colours that make no sense; two pictures of one name.
    """
    if not Path(root).is_dir():
        raise DataError(f"data.root={root} is no folder: set data.root to the one that holds {images}")
    _check_patterns(images, masks, lists, fractions)
    names, colours = read_classes(classes, root)
    found = find_pictures(root, images.replace("{split}", split))
    if not found:
        raise DataError(f"no pictures are {Path(root) / images.replace('{split}', split)}{_splits_hint(root, images)}")
    members = _members(root, split, found, lists, fractions, split_seed)
    return Pictures(
        title=f"{Path(root).absolute().name} {split}",
        names=tuple(members),
        images=tuple(found.get(name, Path(root) / _filled(images, split, name)) for name in members),
        masks=tuple(Path(root) / _filled(masks, split, name) for name in members),
        classes=names,
        palette=np.array(colours, np.uint8) if colours else voc_palette(len(names)),
        void=void,
        colours=_colour_table(colours, void_colours),
    )


def read_classes(classes: Classes, root: str) -> tuple[tuple[str, ...], list[Colour]]:
    """The names in the order of their ids, and their RGB if there are any.

    Raises
    ------
    DataError
        No such file; no classes, more than 255, two of one name or colour; colours for some only.
    """
    pairs = list(_class_lines(classes, root))
    names, colours = tuple(name for name, _ in pairs), [_colour(colour) for _, colour in pairs if colour is not None]
    if not 0 < len(names) <= VOID:
        raise DataError(f"data.pictures.classes={classes!r} has {len(names)} classes: give 1 to {VOID}")
    for what, values in (("name", names), ("colour", [str(colour) for colour in colours])):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise DataError(f"data.pictures.classes={classes!r}: two classes have the {what} {twice[0]}")
    if colours and len(colours) < len(names):
        raise DataError(
            f"data.pictures.classes={classes!r} gives {len(names)} classes {len(colours)} colours: all or none"
        )
    return names, colours


def _colour_table(colours: Sequence[Colour], void_colours: Sequence[Sequence[int]]) -> dict[Colour, int] | None:
    void = {_colour(one): VOID for one in void_colours}
    if void and not colours:
        raise DataError(
            "data.pictures.void_colours has no effect without class colours: give data.pictures.classes as"
            " {NAME: [R, G, B], ...}"
        )
    both = void.keys() & set(colours)
    if both:
        raise DataError(f"data.pictures.void_colours: {list(both.pop())} is a class's colour, too")
    return {colour: label for label, colour in enumerate(colours)} | void if colours else None


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
            if path.exists() and not (path.is_file() and path.stat().st_size <= LARGEST):
                raise OSError(f"it is no file, or has more than {LARGEST:,} bytes")  # a device would have no end
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"data.pictures.classes={classes}: {path} cannot be read ({error}). It is UTF-8, a class to a line,"
                " with its RGB behind it if masks are coloured."
            ) from error
        for line in lines:
            if line.strip():
                parts = COLOURED.fullmatch(line.strip())
                yield (parts[1], [int(value) for value in parts.groups()[1:]]) if parts else (line.strip(), None)


def _colour(value: Sequence[int]) -> Colour:
    if len(value) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in value):
        raise DataError(f"{list(value)} is no colour: give red, green and blue, each 0 to 255")
    red, green, blue = value
    return red, green, blue


def _check_patterns(images: str, masks: str, lists: str | None, fractions: Mapping[str, float] | None) -> None:
    for key, pattern in {"images": images, "masks": masks}.items():
        if pattern.count("{name}") != 1:
            raise DataError(f"data.pictures.{key}={pattern}: it needs {{name}} once, where the file's own name stands")
    if "*" in masks:
        raise DataError(f"data.pictures.masks={masks}: a name has one mask, so no * here")
    if lists is not None and not ("{split}" in lists and lists.endswith(".txt")):
        raise DataError(f"data.pictures.lists={lists}: give a .txt with {{split}} in it, such as lists/{{split}}.txt")
    if fractions is not None and not (
        all(share > 0 for share in fractions.values()) and sum(fractions.values()) < 1 + 1e-9
    ):
        raise DataError(f"data.pictures.fractions={dict(fractions)}: give shares above 0, together at most 1")
    ways = {
        "{split} in data.pictures.images": "{split}" in images and lists is None,
        "data.pictures.lists": lists is not None,
        "data.pictures.fractions": fractions is not None,
    }
    if sum(ways.values()) != 1:
        chosen = " and ".join(way for way, taken in ways.items() if taken) or "nothing"
        raise DataError(f"{chosen} says which pictures a split has: give one of {', '.join(ways)}")


def find_pictures(root: str, pattern: str) -> dict[str, Path]:
    """The files of a pattern by their ``{name}``, in the order of names; hidden ones are none.

    Raises
    ------
    DataError
        Two files of one name.
    """
    matching = re.compile("".join(_as_regex(part) for part in re.split(r"(\{name\}|\*)", pattern)))
    start = Path(root) / re.split(r"\{name\}|\*", pattern)[0].rpartition("/")[0]
    found: dict[str, Path] = {}
    for path in sorted(_files(start)):
        parts = matching.fullmatch(path.relative_to(root).as_posix())
        if parts is None or (pattern.endswith("*") and path.suffix.lower() not in SUFFIXES):
            continue
        if parts["name"] in found:
            raise DataError(
                f"{path} and {found[parts['name']]} are both {parts['name']!r}: make data.pictures.images tell one from"
                " the other"
            )
        found[parts["name"]] = path
    return found


def _as_regex(part: str) -> str:
    return {"{name}": "(?P<name>.+)", "*": "[^/]*"}.get(part, re.escape(part))


def _files(folder: Path) -> Iterator[Path]:
    """Through linked folders, too; a link to a folder that the way to it leads through would never end."""
    ways = {folder: (folder.resolve(),)}
    for parent, folders, files in os.walk(folder, followlinks=True):
        way = ways.pop(Path(parent))
        real = {name: Path(parent, name).resolve() for name in folders if not name.startswith(".")}
        folders[:] = [name for name, path in real.items() if path not in way]
        ways |= {Path(parent, name): (*way, real[name]) for name in folders}
        yield from (Path(parent) / name for name in files if not name.startswith("."))


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
            f"no split {split!r} in data.pictures.fractions: there is {there}. Set data.train_list, data.val_list."
        )
    members = [name for name in found if split_of(name, fractions, split_seed) == split]
    if not members:
        raise DataError(
            f"none of {len(found)} pictures fell to {split}: raise its share in data.pictures.fractions, or choose"
            " another data.pictures.split_seed"
        )
    return members


def split_of(name: str, fractions: Mapping[str, float], seed: int) -> str | None:
    """The split whose interval of 0..1 a hash of seed and name falls into; None in what the shares leave over."""
    digest = blake2b(name.encode(), digest_size=8, key=str(seed).encode()).digest()
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
        return ": see data.root and data.pictures.images"
    there = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "none"
    return f": in {folder} there is {there}. Set data.train_list, data.val_list or data.pictures.images."
