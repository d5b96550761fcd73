"""The output folder of ``fcnlab predict``, in which it replaces only files that it wrote itself."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from fcnlab.errors import UserError, WriteError, unwritable_reason
from fcnlab.files.in_place import check_own, open_own
from fcnlab.files.reading import Unreadable, bytes_of
from fcnlab.files.writing import own_part, remove_own_parts

LIST = "predictions.jsonl"  # one line for each written file: its relative name and its hash
LIST_BYTES, LARGEST = 256 << 20, 1 << 30  # limits: bytes of the list, and of a written file
KINDS = ("labels", "overlays")


class PredictionFolder:
    """An output folder: ``labels/NAME`` and ``overlays/NAME`` for each image."""

    def __init__(self, folder: Path):
        self.folder = folder

    def check(self, names: Sequence[str], inputs: Sequence[Path], overwrite: bool) -> None:
        """Check that all predictions can be written without replacing foreign files.

        ``overwrite`` allows to replace predictions that were changed since. It never allows to replace other files,
        which may be ground truth, nor files in a folder with the input images, where corrected predictions may be
        ground truth, too.

        Raises
        ------
        UserError
            A file that is not an unchanged earlier prediction or an input image would be replaced, or a link leads out
            of the folder.
        """
        if reason := unwritable_reason(self.folder):
            raise UserError(f"output={self.folder}: {reason}. Choose another folder")
        images = {path.resolve() for path in inputs}
        holds_images = any(image.is_relative_to(self.folder.resolve()) for image in images)
        known = self._written()
        for file in (f"{kind}/{name}" for name in names for kind in KINDS):
            path = self.folder / file
            if not path.resolve().is_relative_to(self.folder.resolve()):
                raise UserError(
                    f"output={self.folder}: {path} leads to another folder by a link: choose another folder"
                )
            if path.resolve() in images:
                raise UserError(f"output={self.folder}: {path} is one of the input images: choose another folder")
            allowed = overwrite and not holds_images and file in known
            if path.exists() and not allowed and not _is_unchanged(path, known.get(file, set())):
                raise UserError(self._refusal(path, holds_images, file in known))

    def _refusal(self, path: Path, holds_images: bool, was_predicted: bool) -> str:
        exists = f"output={self.folder}: {path} exists"
        if holds_images:
            return (
                f"{exists} and is not an unchanged prediction. The folder also contains the input images, and perhaps"
                " their masks: choose another folder"
            )
        if was_predicted:
            return (
                f"{exists}: an earlier prediction that was changed since. Choose another folder, or add overwrite=true"
                " to replace it"
            )
        return (
            f"{exists} and is not a prediction of fcnlab. overwrite=true does not replace it, because it may be ground"
            " truth: choose another folder, or remove it"
        )

    def write(self, file: str, save: Callable[[Path], None]) -> None:
        """Write a file with ``save``; its hash is recorded first, in case of a kill in between."""
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        part = own_part(path.parent, path.suffix)  # save chooses the format by the suffix
        part.unlink(missing_ok=True)
        save(part)
        with os.fdopen(open_own(self.folder / LIST, os.O_WRONLY | os.O_APPEND), "a", encoding="utf-8") as lines:
            lines.write(json.dumps([file, _hash(part)]) + "\n")
        part.replace(path)

    def remove_leftovers(self) -> None:
        """Remove incomplete files of a killed command."""
        for kind in KINDS:
            remove_own_parts(self.folder / kind)

    def _written(self) -> dict[str, set[str]]:
        """Return the recorded hashes by file name; invalid lines are skipped."""
        path = self.folder / LIST
        try:
            check_own(path)
        except WriteError as error:
            raise UserError(f"output={self.folder}: {error}, or choose another folder") from error
        hashes: dict[str, set[str]] = {}
        try:
            lines = bytes_of(path, LIST_BYTES).splitlines()
        except FileNotFoundError:
            return hashes
        except (OSError, Unreadable) as error:
            raise UserError(f"output={self.folder}: {error}: remove it, or choose another folder") from error
        for line in lines:
            try:
                file, digest = json.loads(line)
                hashes.setdefault(file, set()).add(digest)
            except (ValueError, TypeError, RecursionError):
                continue
        return hashes


def _is_unchanged(path: Path, hashes: set[str]) -> bool:
    return path.is_file() and bool(hashes) and path.stat().st_size <= LARGEST and _hash(path) in hashes


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
