"""The file that a command writes where the user wants it: it never replaces another file without permission."""

from pathlib import Path

from fcnlab.errors import UserError, unwritable_reason


def check_output_file(path: Path, overwrite: bool, is_named: bool) -> None:
    """Check that a file can be written.

    ``is_named``: ``output=`` names it; otherwise the command names it, in the folder of ``hydra.run.dir``.

    Raises
    ------
    UserError
        It exists and ``overwrite`` is false, it is a folder, or its folder is not writable.
    """
    setting = f"output={path}" if is_named else f"hydra.run.dir={path.parent}"
    other = "another file" if is_named else "another folder, set output=FILE"
    if path.is_dir():
        raise UserError(f"{setting} {'is' if is_named else f'contains {path.name}, which is'} a folder: choose {other}")
    if reason := unwritable_reason(path.parent):
        raise UserError(f"{setting}: {reason}. Choose a file in another folder")
    if (path.exists() or path.is_symlink()) and not overwrite:
        found = "exists" if is_named else f"contains {path.name}"
        raise UserError(f"{setting} {found}: choose {other}, or add overwrite=true to replace it")
