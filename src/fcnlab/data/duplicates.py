"""Files that are in two splits."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from os.path import isfile, islink  # False for a name that no file can have, where Path's raise an OSError
from pathlib import Path

from fcnlab.cores import visible_cores
from fcnlab.data.image_headers import LARGEST
from fcnlab.files.reading import Unreadable, open_regular


def find_duplicates(paths: Sequence[Path], others: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Each path that is one of the others, with that one: the same file behind links, or a copy of it.

    Only files whose size in bytes occurs on both sides are read; empty ones are left to be told as broken.
    """
    by_place = dict(zip(real_paths(others), others, strict=True))
    sizes, other_sizes = file_sizes(paths), file_sizes(others)
    common = set(sizes.values()) & set(other_sizes.values()) - {0}
    digests, other_digests = (
        file_digests([path for path, size in found.items() if size in common]) for found in (sizes, other_sizes)
    )
    by_bytes = {digest: path for path, digest in other_digests.items()}
    found = (
        (path, by_place.get(real) or by_bytes.get(digests.get(path, b"")))
        for path, real in zip(paths, real_paths(paths), strict=True)
    )
    return [(path, twin) for path, twin in found if twin is not None]


def file_sizes(paths: Sequence[Path]) -> dict[Path, int]:
    """In bytes, of those that are files, and no larger than images are."""
    found = ((path, path.stat().st_size) for path in filter(isfile, paths))
    return {path: size for path, size in found if size <= LARGEST}


def file_digests(paths: Sequence[Path]) -> dict[Path, bytes]:
    """A hash of each file's bytes, of those that can be read and are no larger than images are."""

    def digest(path: Path) -> bytes | None:
        with suppress(OSError, Unreadable), open_regular(path) as file:
            if os.fstat(file.fileno()).st_size <= LARGEST:
                return hashlib.file_digest(file, hashlib.blake2b).digest()

    with ThreadPoolExecutor(visible_cores()) as pool:
        found = zip(paths, pool.map(digest, paths), strict=True)
        return {path: one for path, one in found if one is not None}


def real_paths(paths: Sequence[Path]) -> list[Path]:
    """Where files really lie, behind links; each folder is asked once."""
    folders = {folder: folder.resolve() for folder in {path.parent for path in paths}}
    return [path.resolve() if islink(path) else folders[path.parent] / path.name for path in paths]  # noqa: PTH114
