"""The storage of a search, Optuna's ``search.db``."""

import logging
from pathlib import Path
from typing import Any

from fcnlab.errors import UserError, first_line
from fcnlab.files.in_place import check_own
from fcnlab.files.reading import display_path

STORAGE = "search.db"  # in the sweep's folder
NAME = "fcnlab"  # of the one study in it


def open_study(path: Path, direction: str) -> Any:
    """Optuna's study in a storage, which is made where it is not there.

    Raises
    ------
    UserError
        It is damaged, or no storage of a search.
    NotWritten
        It is a link, or another file as well.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    for name in (STORAGE, f"{STORAGE}-journal", f"{STORAGE}-wal"):
        check_own(path.with_name(name))
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{path}", study_name=NAME, direction=direction, load_if_exists=True
        )
        _ = study.trials  # which a damaged file may lack
    except Exception as error:  # SQLAlchemy's, alembic's and Optuna's, of a dozen kinds
        raise UserError(
            f"{display_path(path)} is no storage of a search that could be read ({first_line(error)}):"
            " restore it, or begin a new search in another hydra.sweep.dir"
        ) from error
    return study
