"""Test search storages from someone else: nothing outside of them is changed, and none of their SQL runs."""

import os
import shutil
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from fcnlab.errors import UserError
from fcnlab.sweeps import search_storage
from fcnlab.sweeps.search_storage import open_study

MAGIC = bytes.fromhex("d9d505f920a163d7")  # of a rollback journal, at its start and after a super-journal's name


@pytest.fixture(scope="module")
def optuna_storage(tmp_path_factory) -> Path:
    """Write the storage of a search of three trials, only with Optuna."""
    path = tmp_path_factory.mktemp("made") / "search.db"
    study = optuna.create_study(storage=f"sqlite:///{path}", study_name="fcnlab", direction="maximize")
    for value in (1.0, 2.0, 3.0):
        study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), value)
    return path


@pytest.fixture
def storage(optuna_storage, tmp_path) -> Path:
    (tmp_path / "s").mkdir()
    return Path(shutil.copy(optuna_storage, tmp_path / "s" / "search.db"))


@pytest.fixture
def victim(tmp_path) -> Path:
    (tmp_path / "thesis.tex").write_text("all my work")
    return tmp_path / "thesis.tex"


def change(storage: Path, *statements: str) -> None:
    with closing(sqlite3.connect(storage)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def values(study) -> list[float]:
    return [trial.value for trial in study.trials]


def refused(storage: Path, message: str) -> None:
    """Check that the storage is refused, and that all files of the folder are unchanged."""
    before = {path.name: path.read_bytes() for path in storage.parent.iterdir()}
    with pytest.raises(UserError, match=message):
        open_study(storage, "maximize")
    assert before == {path.name: path.read_bytes() for path in storage.parent.iterdir()}


def hot_journal(storage: Path, super_journal: bytes) -> bytes:
    """Return a journal without pages that ends with the name of a file that SQLite removes after playing it back."""
    (page,) = struct.unpack(">H", storage.read_bytes()[16:18])
    head = MAGIC + struct.pack(">IIIII", 0, 0, storage.stat().st_size // page, 512, page)
    end = struct.pack(">II", len(super_journal), sum(super_journal)) + MAGIC
    return head.ljust(512, b"\0") + struct.pack(">I", 0x40000000 // page + 1) + super_journal + end


def test_a_journal_removes_no_file(storage, victim):
    storage.with_name("search.db-journal").write_bytes(hot_journal(storage, os.fsencode(victim)))
    refused(storage, "search.db-journal names a file of another database")
    assert victim.read_text() == "all my work"


@pytest.mark.parametrize("name", ["search.db", "search.db-journal", "search.db-wal", "search.db-shm"])
@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_no_file_of_sqlite_is_written_through_a_link(storage, victim, name, link):
    change(storage, "PRAGMA journal_mode=WAL")
    path = storage.with_name(name)
    path.unlink(missing_ok=True)
    link(path, victim)
    with pytest.raises(UserError, match=rf"{name} is a (hard )?link"):
        open_study(storage, "maximize")
    assert victim.read_text() == "all my work"


def test_a_write_ahead_log_is_not_opened(storage):
    change(storage, "PRAGMA journal_mode=WAL")
    refused(storage, "it keeps a write-ahead log")


@pytest.mark.parametrize("end", ["wal", "shm"])
def test_files_of_a_write_ahead_log_are_refused(storage, end):
    storage.with_name(f"search.db-{end}").write_bytes(b"")
    refused(storage, f"search.db-{end} is there")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER fills AFTER INSERT ON trials BEGIN INSERT INTO trial_heartbeats SELECT 1, 1, 1; END",
        "CREATE VIEW more AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i FROM n",
        "CREATE TABLE more (x CHECK (randomblob(1000000000)))",
        "CREATE INDEX ix_more ON trials (hex(state))",
        "ALTER TABLE trials ADD COLUMN more AS (zeroblob(1000000000))",
    ],
)
def test_sql_that_is_not_optunas_is_refused(storage, statement):
    change(storage, statement)
    refused(storage, "which no storage of Optuna")


def test_a_view_in_the_place_of_a_table_does_not_block(storage):
    """Optuna requests the trials at once; meanwhile SQLite handles no signal."""
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT i AS version_num FROM n WHERE i<0"
    change(storage, "DROP TABLE alembic_version", f"CREATE VIEW alembic_version AS {endless}")
    refused(storage, "which no storage of Optuna")


def test_pages_with_many_references_are_refused(storage):
    """Twenty levels of pages that each refer to the next many times would give endless rows."""
    of_trials = "(SELECT rootpage FROM sqlite_master WHERE name='trials')"
    change(
        storage,
        "PRAGMA writable_schema=ON",
        f"UPDATE sqlite_master SET rootpage={of_trials} WHERE name='studies'",
    )
    refused(storage, "it is damaged: ")


def test_an_endless_check_is_aborted(storage, monkeypatch):
    monkeypatch.setattr(search_storage, "MOST_STEPS", 1)
    monkeypatch.setattr(search_storage, "STEPS", 10)
    refused(storage, r"not a readable Optuna storage \(interrupted\)")


@pytest.mark.parametrize("name", ["search.db", "search.db-journal"])
def test_a_large_file_is_not_read(storage, name):
    with storage.with_name(name).open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=rf"{name} has more than 67,108,864 bytes"):
        open_study(storage, "maximize")


def test_a_journal_that_enlarges_the_storage_is_not_played_back(storage):
    journal = bytearray(hot_journal(storage, b""))
    journal[16:20] = struct.pack(">I", 0xFFFFFFF0)  # number of earlier pages
    storage.with_name("search.db-journal").write_bytes(journal[:512])
    refused(storage, "it would have more than 67,108,864 bytes")


def test_more_rows_than_a_search_can_have_are_refused(storage, monkeypatch):
    monkeypatch.setattr(search_storage, "MOST_TRIALS", 2)
    refused(storage, "3 trials, and a search has at most 2")
    monkeypatch.undo()
    monkeypatch.setattr(search_storage, "MOST_ROWS", 5)
    refused(storage, "more than 5 rows")


# --- storages of the user


@pytest.mark.parametrize(
    "name", ["a?b", "a#b", "a%20b", "a%b", "{SCHEMA_VERSION}", "{", "file:a?mode=memory", "a b'\""]
)
def test_the_storage_is_in_its_folder_whatever_its_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    open_study(tmp_path / name / "search.db", "maximize")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [f"{name}/search.db"]


def test_a_storage_of_optuna_is_opened(storage):
    study = open_study(storage, "maximize")
    assert values(study) == [1.0, 2.0, 3.0]
    study.tell(study.ask(), 4.0)
    assert values(open_study(storage, "maximize")) == [1.0, 2.0, 3.0, 4.0]


def test_an_interrupted_transaction_is_rolled_back(storage, tmp_path):
    """The storage on the disk in the middle of a transaction, with some pages already written."""
    with closing(sqlite3.connect(storage, isolation_level=None)) as database:
        for statement in ("PRAGMA cache_size=1", "BEGIN", "UPDATE trial_values SET value=9"):
            database.execute(statement)
        database.execute("CREATE TABLE filling (x)")
        database.executemany("INSERT INTO filling VALUES (?)", [(bytes(4000),)] * 50)
        (tmp_path / "killed").mkdir()
        for name in ("search.db", "search.db-journal"):
            shutil.copy(storage.with_name(name), tmp_path / "killed" / name)
    killed = tmp_path / "killed" / "search.db"
    assert killed.read_bytes() != storage.read_bytes()
    assert values(open_study(killed, "maximize")) == [1.0, 2.0, 3.0]
    assert not killed.with_name("search.db-journal").exists()


@pytest.mark.parametrize("tables", [0, 1, 5])
def test_an_interrupted_creation_of_tables_is_completed(optuna_storage, tmp_path, tables):
    """The tables are created one after the other."""
    with closing(sqlite3.connect(optuna_storage)) as database:
        query = "SELECT sql FROM sqlite_master WHERE type='table'"
        statements = [sql for (sql,) in database.execute(query)][:tables]
    (tmp_path / "search.db").touch()
    change(tmp_path / "search.db", *statements)
    assert open_study(tmp_path / "search.db", "maximize").trials == []
