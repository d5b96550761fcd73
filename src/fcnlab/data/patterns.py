"""Find the files that match a pattern with ``{name}`` and ``*``, and those that differ only in suffix or case.

``{name}`` is any text, ``*`` any text without a slash. A pattern may come from a foreign record, so no regular
expression matches it: one with many ``*`` would try all ways to distribute a path over them, without end.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fcnlab.data.image_files import SUFFIXES, DataError


def find_images(root: str, pattern: str, masks: str) -> tuple[dict[str, Path], dict[str, list[Path]]]:
    """Return the images of a pattern by ``{name}``, in the order of names, and the skipped files by name.

    A file that matches ``masks`` with the name of another image is that image's mask, not an image. Skipped files
    differ from the pattern only in suffix or case, and no image has their name; files that match ``masks`` are not
    among them. Hidden files are neither images nor skipped files.

    Raises
    ------
    DataError
        Two files have the same name.
    """
    start = Path(root) / re.split(r"\{name\}|\*", pattern)[0].rpartition("/")[0]
    paths = sorted(_files(start))
    if pattern.endswith("*"):
        paths = [path for path in paths if path.suffix.lower() in SUFFIXES]
    files: dict[str, list[Path]] = {}
    for name, path in _matching(root, paths, pattern):
        files.setdefault(name, []).append(path)
    of_another = {
        path for name, path in _matching(root, paths, masks) if any(image != path for image in files.get(name, []))
    }
    images: dict[str, Path] = {}
    for name, path in ((name, path) for name, same in files.items() for path in same if path not in of_another):
        if name in images:
            raise DataError(
                f"{path} and {images[name]} have the same name {name!r}: change data.dataset.images to match only one"
            )
        images[name] = path
    return images, _left_out(root, paths, pattern, masks, images)


def same_names(root: str, pattern: str, split: str) -> Iterator[tuple[Path, Path]]:
    """Yield images of a split, each with an image of another split that has the same name."""
    start = Path(root) / re.split(r"\{\w+\}|\*", pattern)[0].rpartition("/")[0]
    by_name: dict[str, dict[str, Path]] = {}
    for path in sorted(_files(start)):
        text = path.relative_to(root).as_posix()
        value = _split_in(pattern, text)
        name = value and name_in(pattern.replace("{split}", value), text)
        if value and name:
            by_name.setdefault(name, {}).setdefault(value, path)
    for paths in by_name.values():
        others = [path for other, path in paths.items() if other != split]
        if split in paths and others:
            yield paths[split], others[0]


def _split_in(pattern: str, path: str) -> str | None:
    """Return the value of ``{split}`` in a path, from the folder or file name that contains it first."""
    before, _, after = pattern.partition("{split}")
    number = -1 - after.count("/") if "{name}" in before else before.count("/")  # a name may contain folders
    parts = path.split("/")
    if not -len(parts) <= number < len(parts):
        return None
    part = f"{before.rpartition('/')[2].replace('{name}', '*')}\0{after.partition('/')[0].replace('{name}', '*')}"
    return name_in(part.replace("{split}", "*").replace("\0", "{name}"), parts[number])


def _left_out(
    root: str, paths: Sequence[Path], pattern: str, masks: str, images: Mapping[str, Path]
) -> dict[str, list[Path]]:
    taken = {*images.values(), *(path for path in paths if _name_in_any_case(masks, path.relative_to(root).as_posix()))}
    suffix = Path(pattern).suffix
    base = pattern.removesuffix(suffix) if suffix.lower() in SUFFIXES else None
    skipped: dict[str, list[Path]] = {}
    for path in paths:
        if path.suffix.lower() in SUFFIXES and path not in taken:
            loose = pattern if base is None else f"{base}{path.suffix}"
            name = _name_in_any_case(loose, path.relative_to(root).as_posix())
            if name and name not in images:
                skipped.setdefault(name, []).append(path)
    return skipped


def _matching(root: str, paths: Sequence[Path], pattern: str) -> Iterator[tuple[str, Path]]:
    for path in paths:
        name = name_in(pattern, path.relative_to(root).as_posix())
        if name:
            yield name, path


def _name_in_any_case(pattern: str, path: str) -> str | None:
    span = _span(_lower(pattern), _lower(path))
    return span and path[span[0] : span[1]]


def _lower(text: str) -> str:
    """Return a text in lower case, with as many characters."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)


def name_in(pattern: str, path: str) -> str | None:
    """Return the text at ``{name}`` in a path that matches the whole pattern; None if it does not match.

    Of several ways to match, texts are as long as possible, the first one first, as in a regular expression.
    """
    span = _span(pattern, path)
    return span and path[span[0] : span[1]]


def shortest_name_in(pattern: str, path: str) -> str | None:
    """Return the text at ``{name}`` as :func:`name_in`, but it ends at the first possible place."""
    before, _, after = pattern.partition("{name}")
    literal = after.partition("*")[0]
    end = path.find(literal, 1) if literal else (1 if after else len(path))
    while 0 < end <= len(path):
        start = _last_start(before, path[: end - 1]) if _is_path_match(after, path[end:]) else None
        if start is not None and "\n" not in path[start:end]:
            return path[start:end]
        end = path.find(literal, end + 1)
    return None


def _is_path_match(pattern: str, path: str) -> bool:
    patterns, parts = pattern.split("/"), path.split("/")
    return len(patterns) == len(parts) and all(map(_is_match, patterns, parts))


def _span(pattern: str, path: str) -> tuple[int, int] | None:
    """Return the start and the end of ``{name}`` in a path.

    The longest name ends at the last possible place. The texts before it are longest if it starts at the last possible
    place before that.
    """
    before, _, after = pattern.partition("{name}")
    end = _last_end(after, path)
    start = _last_start(before, path[: end - 1]) if end else None
    return None if start is None or not end or "\n" in path[start:end] else (start, end)


def _last_end(after: str, path: str) -> int | None:
    """Return the last place from which the rest of a path matches a pattern of folders and a file name."""
    first, *folders = after.split("/")
    parts = path.split("/")
    place = len(parts) - len(folders) - 1
    if place < 0 or not all(map(_is_match, folders, parts[place + 1 :])):
        return None
    *pieces, last = first.split("*")
    end = len(parts[place]) - len(last) if parts[place].endswith(last) else -1
    for piece in reversed(pieces):
        end = parts[place].rfind(piece, 0, end) if end >= 0 else -1
    return None if end < 0 else len("/".join([*parts[:place], ""])) + end


def _last_start(before: str, path: str) -> int | None:
    """Return the last place up to which a path matches a pattern of folders and the beginning of a name."""
    *folders, last = before.split("/")
    parts = path.split("/")
    if len(parts) <= len(folders) or not all(map(_is_match, folders, parts)):
        return None
    length = _longest_match(last, parts[len(folders)])
    return None if length is None else len("/".join([*parts[: len(folders)], ""])) + length


def _is_match(pattern: str, text: str) -> bool:
    return _longest_match(pattern, text) == len(text)


def _longest_match(pattern: str, text: str) -> int | None:
    """Return the length of the longest beginning of a text that matches a pattern with ``*``; None without any."""
    first, *pieces = pattern.split("*")
    if not text.startswith(first):
        return None
    length = len(first)
    for number, piece in enumerate(pieces, start=1):
        start = text.find(piece, length) if number < len(pieces) else text.rfind(piece, length)
        if start < 0:
            return None
        length = start + len(piece)
    return length


def _files(folder: Path) -> Iterator[Path]:
    """Yield files below a folder, following links except to parent folders, which would never end."""
    ways = {folder: (folder.resolve(),)}
    for parent, folders, files in os.walk(folder, followlinks=True):
        way = ways.pop(Path(parent))
        real = {name: Path(parent, name).resolve() for name in folders if not name.startswith(".")}
        folders[:] = [name for name, path in real.items() if path not in way]
        ways |= {Path(parent, name): (*way, real[name]) for name in folders}
        yield from (Path(parent) / name for name in files if not name.startswith("."))
