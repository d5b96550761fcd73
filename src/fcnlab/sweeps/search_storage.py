"""The storage of a search, Optuna's ``search.db``, which may be anybody's: looked through before it is opened.

SQLite does what a file says: triggers and views are SQL that runs when Optuna reads or writes, a rollback journal may
name a file to be removed, a write-ahead log comes with a file that is written wherever it leads. So what is there is
first opened as a copy, where only Optuna's own tables pass.
"""

import logging
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from fcnlab.errors import UserError, first_line
from fcnlab.files.in_place import check_own
from fcnlab.files.reading import Unreadable, bytes_of, display_path

STORAGE = "search.db"  # in the sweep's folder
JOURNAL, *LOG = (f"{STORAGE}-{end}" for end in ("journal", "wal", "shm"))  # SQLite's own names; Optuna uses no log
NAME = "fcnlab"  # of the one study in it
MOST_TRIALS = 10_000  # in a search
LARGEST, MOST_ROWS = (
    64 << 20,
    500_000,
)  # bytes of a file, and rows of all tables; 10,000 trials of 10 settings have 16 MiB
MOST_STEPS, STEPS = 200, 1_000_000  # of SQLite's machine, for a storage to be looked through: some seconds
NAMES_ANOTHER = bytes.fromhex(
    "d9d505f920a163d7"
)  # how a journal ends that names another file, which SQLite would remove
SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master"


def open_study(path: Path, direction: Literal["maximize", "minimize"]) -> Any:
    """Optuna's study in a storage, which is made where it is not there.

    Raises
    ------
    UserError
        It is damaged, no storage of a search, over a limit, or holds what Optuna does not make.
    NotWritten
        It, or a file of SQLite's beside it, is a link, or another file as well.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    for name in (STORAGE, JOURNAL, *LOG):
        check_own(path.with_name(name))
    try:
        if path.exists():
            _check(path.parent)
        study = optuna.create_study(storage=_storage(path), study_name=NAME, direction=direction, load_if_exists=True)
        _ = study.trials  # which a damaged file may lack
    except Exception as error:  # SQLite's, SQLAlchemy's, alembic's and Optuna's, of a dozen kinds
        raise UserError(
            f"{display_path(path)} is not a readable Optuna storage ({first_line(error)}):"
            " restore it, or begin a new search in another hydra.sweep.dir"
        ) from error
    return study


def _storage(path: Path) -> Any:
    """Optuna's, of the very file: in an address, "?", "#", "%" and braces of a folder's name would mean something."""
    from optuna.storages import RDBStorage

    def connect() -> sqlite3.Connection:
        return _connected(path, check_same_thread=False)  # SQLAlchemy's pool sees to it

    return RDBStorage(f"sqlite:///{STORAGE}", engine_kwargs={"creator": connect})


def _connected(path: Path, **options: Any) -> sqlite3.Connection:
    database = sqlite3.connect(path, **options)
    database.execute("PRAGMA trusted_schema=OFF")
    return database


def _check(folder: Path) -> None:
    """Look a storage through, in a copy and with the journal that a kill may have left: both stay as they are.

    SQLite plays the journal back there, and later in place: the same bytes give the same storage.

    Raises
    ------
    Exception
        Of any kind, where it is damaged; an Unreadable where it is not Optuna's own or over a limit.
    """
    for name in LOG:
        if (folder / name).exists():
            raise Unreadable(f"{name} is there, and a search keeps no write-ahead log")
    with TemporaryDirectory(prefix="fcnlab-search-") as aside:
        copy = Path(aside, STORAGE)
        copy.write_bytes(bytes_of(folder / STORAGE, LARGEST))
        if (folder / JOURNAL).exists():
            journal = bytes_of(folder / JOURNAL, LARGEST)
            if journal.endswith(NAMES_ANOTHER):
                raise Unreadable(f"{JOURNAL} names a file of another database, and a search has one")
            copy.with_name(JOURNAL).write_bytes(journal)
        with closing(_connected(copy)) as database:
            rounds = count()
            database.set_progress_handler(lambda: next(rounds) >= MOST_STEPS, STEPS)
            database.execute("PRAGMA page_count")  # before it answers, SQLite has played the journal back
            _check_header(copy)
            _check_content(database)


def _check_header(copy: Path) -> None:
    if copy.stat().st_size > LARGEST:
        raise Unreadable(f"it would have more than {LARGEST:,} bytes")
    with copy.open("rb") as file:
        versions = file.read(20)[18:]
    if versions not in (b"", b"\1\1"):  # to write and to read; an empty file is a start that was killed
        raise Unreadable("it keeps a write-ahead log, and a search has none")


def _check_content(database: sqlite3.Connection) -> None:
    own = _own_schema()
    for found in database.execute(SCHEMA):
        if found not in own:
            raise Unreadable(
                f"it has the {found[0]} {found[1]!r:.60}, which no storage of Optuna's has, as installed here"
            )
    faults = database.execute("PRAGMA quick_check(1)").fetchall()  # pages that belong to two tables, or to themselves
    if faults != [("ok",)]:
        raise Unreadable(f"it is damaged: {faults[0][0]}")
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'")]
    rows = _rows(database, tables)
    if rows.get("trials", 0) > MOST_TRIALS:
        raise Unreadable(f"it has {rows['trials']:,} trials, and a search has at most {MOST_TRIALS:,}")
    if sum(rows.values()) > MOST_ROWS:
        raise Unreadable(f"it has more than {MOST_ROWS:,} rows")


def _own_schema() -> set[tuple]:
    """What a new storage holds: tables, and their indexes."""
    from optuna.storages import RDBStorage

    with RDBStorage("sqlite://").engine.connect() as connection:  # in memory
        return {tuple(row) for row in connection.exec_driver_sql(SCHEMA)}


def _rows(database: sqlite3.Connection, tables: Iterable[str]) -> dict[str, int]:
    """How many each table has; their names are Optuna's own."""
    return {name: database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables}
