"""Find the files that match a pattern with ``{name}`` and ``*``, and those that differ only in suffix or case."""

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
    for name, path in _matching(root, paths, re.compile(_translated(pattern))):
        files.setdefault(name, []).append(path)
    of_another = {
        path
        for name, path in _matching(root, paths, re.compile(_translated(masks)))
        if any(image != path for image in files.get(name, []))
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
    once = _translated(pattern).replace(re.escape("{split}"), "(?P<split>[^/]+)", 1)
    regex = re.compile(once.replace(re.escape("{split}"), "(?P=split)"))
    by_name: dict[str, dict[str, Path]] = {}
    for path in sorted(_files(start)):
        parts = regex.fullmatch(path.relative_to(root).as_posix())
        if parts is not None:
            by_name.setdefault(parts["name"], {}).setdefault(parts["split"], path)
    for paths in by_name.values():
        others = [path for other, path in paths.items() if other != split]
        if split in paths and others:
            yield paths[split], others[0]


def _left_out(
    root: str, paths: Sequence[Path], pattern: str, masks: str, images: Mapping[str, Path]
) -> dict[str, list[Path]]:
    as_masks = re.compile(_translated(masks), re.IGNORECASE)
    taken = {*images.values(), *(path for _, path in _matching(root, paths, as_masks))}
    skipped: dict[str, list[Path]] = {}
    for name, path in _matching(root, paths, _loosely(pattern)):
        if path.suffix.lower() in SUFFIXES and path not in taken and name not in images:
            skipped.setdefault(name, []).append(path)
    return skipped


def _matching(root: str, paths: Sequence[Path], regex: re.Pattern[str]) -> Iterator[tuple[str, Path]]:
    for path in paths:
        parts = regex.fullmatch(path.relative_to(root).as_posix())
        if parts is not None:
            yield parts["name"], path


def _loosely(pattern: str) -> re.Pattern[str]:
    """Return the pattern ignoring case, and with any image suffix if it ends in one."""
    suffix = Path(pattern).suffix
    if suffix.lower() not in SUFFIXES:
        return re.compile(_translated(pattern), re.IGNORECASE)
    some = "|".join(map(re.escape, SUFFIXES))
    return re.compile(f"{_translated(pattern.removesuffix(suffix))}({some})", re.IGNORECASE)


def _translated(pattern: str) -> str:
    known = {"{name}": "(?P<name>.+)", "*": "[^/]*"}
    return "".join(known.get(part, re.escape(part)) for part in re.split(r"(\{name\}|\*)", pattern))


def _files(folder: Path) -> Iterator[Path]:
    """Yield files below a folder, following links except to parent folders, which would never end."""
    ways = {folder: (folder.resolve(),)}
    for parent, folders, files in os.walk(folder, followlinks=True):
        way = ways.pop(Path(parent))
        real = {name: Path(parent, name).resolve() for name in folders if not name.startswith(".")}
        folders[:] = [name for name, path in real.items() if path not in way]
        ways |= {Path(parent, name): (*way, real[name]) for name in folders}
        yield from (Path(parent) / name for name in files if not name.startswith("."))
