"""Which files below a folder fit a pattern with ``{name}`` and ``*``, and which would but for suffix or case."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fcnlab.data.image_files import SUFFIXES, DataError


def find_images(root: str, pattern: str, masks: str) -> tuple[dict[str, Path], dict[str, list[Path]]]:
    """The images of a pattern by their ``{name}``, in the order of names, and by name those that were left out.

    A file that the pattern ``masks`` makes of another image's name is that image's mask, and no image. Left out are
    images that differ from the pattern in their suffix or in the case of letters, and whose name no image of the
    pattern has; files of the pattern ``masks`` are no such images. Hidden files are neither.

    Raises
    ------
    DataError
        Two files of one name.
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
    found: dict[str, Path] = {}
    for name, path in ((name, path) for name, same in files.items() for path in same if path not in of_another):
        if name in found:
            raise DataError(
                f"{path} and {found[name]} are both {name!r}: make data.dataset.images tell one from the other"
            )
        found[name] = path
    return found, _left_out(root, paths, pattern, masks, found)


def same_names(root: str, pattern: str, split: str) -> Iterator[tuple[Path, Path]]:
    """Images of a split, each with one of the same name that ``{split}`` in the pattern gives to another split."""
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
    root: str, paths: Sequence[Path], pattern: str, masks: str, found: Mapping[str, Path]
) -> dict[str, list[Path]]:
    as_masks = re.compile(_translated(masks), re.IGNORECASE)
    taken = {*found.values(), *(path for _, path in _matching(root, paths, as_masks))}
    others: dict[str, list[Path]] = {}
    for name, path in _matching(root, paths, _loosely(pattern)):
        if path.suffix.lower() in SUFFIXES and path not in taken and name not in found:
            others.setdefault(name, []).append(path)
    return others


def _matching(root: str, paths: Sequence[Path], regex: re.Pattern[str]) -> Iterator[tuple[str, Path]]:
    for path in paths:
        parts = regex.fullmatch(path.relative_to(root).as_posix())
        if parts is not None:
            yield parts["name"], path


def _loosely(pattern: str) -> re.Pattern[str]:
    """The pattern in any case of letters; if it ends in an image's suffix, with that of any image."""
    suffix = Path(pattern).suffix
    if suffix.lower() not in SUFFIXES:
        return re.compile(_translated(pattern), re.IGNORECASE)
    some = "|".join(map(re.escape, SUFFIXES))
    return re.compile(f"{_translated(pattern.removesuffix(suffix))}({some})", re.IGNORECASE)


def _translated(pattern: str) -> str:
    known = {"{name}": "(?P<name>.+)", "*": "[^/]*"}
    return "".join(known.get(part, re.escape(part)) for part in re.split(r"(\{name\}|\*)", pattern))


def _files(folder: Path) -> Iterator[Path]:
    """Through linked folders, too; a link to a folder that the way to it leads through would never end."""
    ways = {folder: (folder.resolve(),)}
    for parent, folders, files in os.walk(folder, followlinks=True):
        way = ways.pop(Path(parent))
        real = {name: Path(parent, name).resolve() for name in folders if not name.startswith(".")}
        folders[:] = [name for name, path in real.items() if path not in way]
        ways |= {Path(parent, name): (*way, real[name]) for name in folders}
        yield from (Path(parent) / name for name in files if not name.startswith("."))
