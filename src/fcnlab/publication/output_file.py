"""The file that a command writes where the user wants it: it never replaces another file without permission."""

from pathlib import Path

from fcnlab.errors import UserError, unwritable_reason


def check_output_file(path: Path, overwrite: bool, setting: str = "output") -> None:
    """Check that a file can be written.

    Raises
    ------
    UserError
        It exists and ``overwrite`` is false, it is a folder, or its folder is not writable.
    """
    if path.is_dir():
        raise UserError(f"{setting}={path} is a folder: choose a file in it")
    if reason := unwritable_reason(path.parent):
        raise UserError(f"{setting}={path}: {reason}. Choose a file in another folder")
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise UserError(f"{setting}={path} exists: choose another file, or add overwrite=true to replace it")
