"""Find files that are in two splits."""

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
    """Return the paths that are also among the others, with their duplicate: the same file behind links, or a copy.

    Only files whose size occurs on both sides are read; empty files are skipped, because other checks report them.
    """
    by_place = dict(zip(real_paths(others), others, strict=True))
    sizes, other_sizes = file_sizes(paths), file_sizes(others)
    common = set(sizes.values()) & set(other_sizes.values()) - {0}
    digests, other_digests = (
        file_digests([path for path, size in sizes_by_path.items() if size in common])
        for sizes_by_path in (sizes, other_sizes)
    )
    by_bytes = {digest: path for path, digest in other_digests.items()}
    pairs = (
        (path, by_place.get(real) or by_bytes.get(digests.get(path, b"")))
        for path, real in zip(paths, real_paths(paths), strict=True)
    )
    return [(path, twin) for path, twin in pairs if twin is not None]


def file_sizes(paths: Sequence[Path]) -> dict[Path, int]:
    """Return the size in bytes of each existing file that is not larger than images may be."""
    sizes = ((path, path.stat().st_size) for path in filter(isfile, paths))
    return {path: size for path, size in sizes if size <= LARGEST}


def file_digests(paths: Sequence[Path]) -> dict[Path, bytes]:
    """Return a hash of each readable file that is not larger than images may be."""

    def digest(path: Path) -> bytes | None:
        with suppress(OSError, Unreadable), open_regular(path) as file:
            if os.fstat(file.fileno()).st_size <= LARGEST:
                return hashlib.file_digest(file, hashlib.blake2b).digest()

    with ThreadPoolExecutor(visible_cores()) as pool:
        pairs = zip(paths, pool.map(digest, paths), strict=True)
        return {path: digest_or_none for path, digest_or_none in pairs if digest_or_none is not None}


def real_paths(paths: Sequence[Path]) -> list[Path]:
    """Return the resolved paths of files; each folder is resolved once."""
    folders = {folder: folder.resolve() for folder in {path.parent for path in paths}}
    return [path.resolve() if islink(path) else folders[path.parent] / path.name for path in paths]  # noqa: PTH114
