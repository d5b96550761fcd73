"""Open the storage of an Optuna search (search.db), after a check: the file may come from someone else.

SQLite executes what a file contains: triggers and views run when Optuna reads or writes, a rollback journal may name a
file that SQLite deletes, and a write-ahead log is written to other files. So a copy is checked first: it may contain
only Optuna's own tables.
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
JOURNAL, *LOG = (f"{STORAGE}-{end}" for end in ("journal", "wal", "shm"))  # SQLite's names; Optuna uses no log
NAME = "fcnlab"  # of the only study in the storage
MOST_TRIALS = 10_000  # in a search
MAX_BYTES = 64 << 20  # 10,000 trials of 10 settings have 16 MiB
MOST_ROWS = 500_000  # of all tables
MOST_STEPS, STEPS = 200, 1_000_000  # limit on SQLite's virtual machine instructions: some seconds
NAMES_ANOTHER = bytes.fromhex("d9d505f920a163d7")  # the end of a journal that names another file
SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master"


def open_study(path: Path, direction: Literal["maximize", "minimize"]) -> Any:
    """Return the Optuna study in a storage; create the storage if it does not exist.

    Raises
    ------
    UserError
        The storage is damaged, exceeds a limit, or contains anything but Optuna's own tables.
    WriteError
        The storage, or a file that SQLite keeps beside it, is a link or not a regular file.
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
        _ = study.trials  # fails if the file is damaged
    except Exception as error:  # of SQLite, SQLAlchemy, alembic or Optuna
        raise UserError(
            f"{display_path(path)} is not a readable Optuna storage ({first_line(error)}):"
            " restore it, or start a new search in another hydra.sweep.dir"
        ) from error
    return study


def _storage(path: Path) -> Any:
    """Return Optuna's storage of a file.

    The storage connects to the path itself, since "?", "#", "%" and braces have a meaning in a database URL.
    """
    from optuna.storages import RDBStorage

    def connect() -> sqlite3.Connection:
        return _connected(path, check_same_thread=False)  # SQLAlchemy's pool handles threads

    return RDBStorage(f"sqlite:///{STORAGE}", engine_kwargs={"creator": connect})


def _connected(path: Path, **options: Any) -> sqlite3.Connection:
    database = sqlite3.connect(path, **options)
    database.execute("PRAGMA trusted_schema=OFF")
    return database


def _check(folder: Path) -> None:
    """Check a copy of a storage and of its journal, which an interrupted search may have left.

    SQLite applies the journal to the copy, and later to the storage itself, with the same result.

    Raises
    ------
    Unreadable
        The storage exceeds a limit, or contains anything but Optuna's own tables.
    Exception
        The storage is damaged; the error may be of any class.
    """
    for name in LOG:
        if (folder / name).exists():
            raise Unreadable(f"{name} is there, but a search uses no write-ahead log")
    with TemporaryDirectory(prefix="fcnlab-search-") as folder_of_copy:
        copy = Path(folder_of_copy, STORAGE)
        copy.write_bytes(bytes_of(folder / STORAGE, MAX_BYTES))
        if (folder / JOURNAL).exists():
            journal = bytes_of(folder / JOURNAL, MAX_BYTES)
            if journal.endswith(NAMES_ANOTHER):
                raise Unreadable(f"{JOURNAL} names a file of another database, but a search has only one database")
            copy.with_name(JOURNAL).write_bytes(journal)
        with closing(_connected(copy)) as database:
            rounds = count()
            database.set_progress_handler(lambda: next(rounds) >= MOST_STEPS, STEPS)
            database.execute("PRAGMA page_count")  # SQLite applies the journal first
            _check_header(copy)
            _check_content(database)


def _check_header(copy: Path) -> None:
    if copy.stat().st_size > MAX_BYTES:
        raise Unreadable(f"it would have more than {MAX_BYTES:,} bytes")
    with copy.open("rb") as file:
        versions = file.read(20)[18:]
    if versions not in (b"", b"\1\1"):  # for writing and reading; a killed start may leave an empty file
        raise Unreadable("it keeps a write-ahead log, but a search uses none")


def _check_content(database: sqlite3.Connection) -> None:
    own = _own_schema()
    for entry in database.execute(SCHEMA):
        if entry not in own:
            kind, name, *_ = entry
            raise Unreadable(f"it has the {kind} {name!r:.60}, which no storage of Optuna's installed version has")
    faults = database.execute("PRAGMA quick_check(1)").fetchall()  # such as pages with several references
    if faults != [("ok",)]:
        raise Unreadable(f"it is damaged: {faults[0][0]}")
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'")]
    rows = _rows(database, tables)
    if rows.get("trials", 0) > MOST_TRIALS:
        raise Unreadable(f"it has {rows['trials']:,} trials, and a search has at most {MOST_TRIALS:,}")
    if sum(rows.values()) > MOST_ROWS:
        raise Unreadable(f"it has more than {MOST_ROWS:,} rows")


def _own_schema() -> set[tuple]:
    """Return the schema of a new storage: tables and their indexes."""
    from optuna.storages import RDBStorage

    with RDBStorage("sqlite://").engine.connect() as connection:  # in memory
        return {tuple(row) for row in connection.exec_driver_sql(SCHEMA)}


def _rows(database: sqlite3.Connection, tables: Iterable[str]) -> dict[str, int]:
    """Return the number of rows of each table. The names are Optuna's own."""
    return {name: database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables}
