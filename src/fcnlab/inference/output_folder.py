"""The folder that ``fcnlab predict`` fills, in which nothing is replaced that it did not write itself."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from fcnlab.errors import UserError, WriteError, unwritable_reason
from fcnlab.files.in_place import check_own, open_own
from fcnlab.files.reading import Unreadable, bytes_of
from fcnlab.files.writing import own_part, remove_own_parts

LIST = "predictions.jsonl"  # a line for each file written: its name below the folder, and a hash of what was written
LIST_BYTES, LARGEST = 256 << 20, 1 << 30  # bytes of the list, and of a file that was written
KINDS = ("labels", "overlays")


class PredictionFolder:
    """An output folder: ``labels/NAME`` and ``overlays/NAME`` for each image."""

    def __init__(self, folder: Path):
        self.folder = folder

    def check(self, names: Sequence[str], inputs: Sequence[Path], overwrite: bool) -> None:
        """Before any work: whether all can be written.

        ``overwrite`` allows to replace predictions that were changed since, and never what no prediction wrote, which
        may be ground truth; nor anything in a folder that holds the images: there, predictions that somebody has mended
        may be ground truth, too.

        Raises
        ------
        UserError
            A file would be replaced that no earlier prediction left as it is; an image would; a link leads elsewhere.
        """
        if reason := unwritable_reason(self.folder):
            raise UserError(f"output={self.folder}: {reason}. Name another folder")
        images = {path.resolve() for path in inputs}
        holds_images = any(image.is_relative_to(self.folder.resolve()) for image in images)
        known = self._written()
        for file in (f"{kind}/{name}" for name in names for kind in KINDS):
            path = self.folder / file
            if not path.resolve().is_relative_to(self.folder.resolve()):
                raise UserError(f"output={self.folder}: {path} leads elsewhere by a link: name another folder")
            if path.resolve() in images:
                raise UserError(f"output={self.folder}: {path} is one of the images: name another folder")
            allowed = overwrite and not holds_images and file in known
            if path.exists() and not allowed and not _is_ours(path, known.get(file, set())):
                raise UserError(self._refusal(path, holds_images, file in known))

    def _refusal(self, path: Path, holds_images: bool, was_ours: bool) -> str:
        said = f"output={self.folder}: {path} is there, and no earlier prediction left it so"
        if holds_images:
            return f"{said}. The folder holds the images, too, and may hold their masks: name another one"
        if was_ours:
            return f"{said}, though one wrote it: name another folder, or add overwrite=true to replace it"
        return (
            f"{said}. overwrite=true does not replace it, which may be ground truth: name another folder, or remove it"
        )

    def write(self, file: str, save: Callable[[Path], None]) -> None:
        """Have ``save`` write a file, and keep its name and hash; the hash comes first, should a kill come between."""
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        part = own_part(path.parent, path.suffix)  # save goes by its end
        part.unlink(missing_ok=True)
        save(part)
        with os.fdopen(open_own(self.folder / LIST, os.O_WRONLY | os.O_APPEND), "a", encoding="utf-8") as lines:
            lines.write(json.dumps([file, _hash(part)]) + "\n")
        part.replace(path)

    def remove_leftovers(self) -> None:
        """Remove what a prediction that was killed had half written."""
        for kind in KINDS:
            remove_own_parts(self.folder / kind)

    def _written(self) -> dict[str, set[str]]:
        """The hashes of what was written under each name; what is no line of ours is passed over."""
        path = self.folder / LIST
        try:
            check_own(path)
        except WriteError as error:
            raise UserError(f"output={self.folder}: {error}, or name another folder") from error
        found: dict[str, set[str]] = {}
        try:
            lines = bytes_of(path, LIST_BYTES).splitlines()
        except FileNotFoundError:
            return found
        except (OSError, Unreadable) as error:
            raise UserError(f"output={self.folder}: {error}: remove it, or name another folder") from error
        for line in lines:
            try:
                file, digest = json.loads(line)
                found.setdefault(file, set()).add(digest)
            except (ValueError, TypeError, RecursionError):
                continue
        return found


def check_report(folder: Path, names: Sequence[str]) -> None:
    """Before a report is made: whether its folder is new, or holds one already, known by the first of its files.

    Raises
    ------
    UserError
        It holds files of these names, and not the first: they are somebody else's, or a link, which is not followed.
    """
    there = [name for name in names if (folder / name).exists() or (folder / name).is_symlink()]
    if there and there[0] != names[0]:
        raise UserError(
            f"hydra.run.dir={folder} holds {there[0]} and no {names[0]}: it is no folder of such a report. Name another"
            " folder, or leave hydra.run.dir out"
        )


def _is_ours(path: Path, hashes: set[str]) -> bool:
    return path.is_file() and bool(hashes) and path.stat().st_size <= LARGEST and _hash(path) in hashes


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
