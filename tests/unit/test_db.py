"""The ledger: transactions, and a damaged file at start."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tare.db import MIGRATIONS, Database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def db(path: Path) -> Iterator[Database]:
    database = Database(str(path))
    yield database
    database.close()


def put(db: Database, key: str) -> None:
    db.execute("INSERT INTO meta VALUES (?, ?)", (key, "x"))


def keys(db: Database) -> list[str]:
    return [row[0] for row in db.execute("SELECT key FROM meta WHERE key <> 'opened' ORDER BY key")]


def test_files_are_private(db: Database, path: Path) -> None:
    put(db, "a")
    modes = {name.name: name.stat().st_mode & 0o777 for name in path.parent.iterdir()}
    assert {"state.db", "state.db-wal", "state.db.bak"} <= set(modes)
    assert set(modes.values()) == {0o600}


def test_schema_is_strict_and_versioned(db: Database) -> None:
    assert db.execute("PRAGMA user_version") == [(len(MIGRATIONS),)]
    assert db.execute("PRAGMA journal_mode") == [("wal",)]
    assert db.execute("PRAGMA synchronous") == [(1,)]
    tables = db.execute("SELECT name, strict FROM pragma_table_list WHERE schema = 'main' AND name NOT LIKE 'sqlite_%'")
    assert {name for name, _ in tables} == {"meta", "containers", "snapshots", "images", "image_blobs", "tags"}
    assert all(strict for _, strict in tables)


def test_names_are_unique(db: Database) -> None:
    insert = "INSERT INTO containers VALUES (?, ?, '{}', 1)"
    db.execute(insert, ("a", "web"))
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(insert, ("b", "web"))


def test_transaction_commits_or_rolls_back(db: Database) -> None:
    with db.transaction():
        put(db, "a")
    with pytest.raises(ZeroDivisionError), db.transaction():
        put(db, "b")
        raise ZeroDivisionError
    assert keys(db) == ["a"]


def test_inner_transaction_joins_the_outer(db: Database) -> None:
    with pytest.raises(ZeroDivisionError), db.transaction():
        with db.transaction():
            put(db, "a")
        raise ZeroDivisionError
    assert keys(db) == []
    with db.transaction():
        put(db, "a")
        with db.transaction():
            put(db, "b")
    assert keys(db) == ["a", "b"]


def test_swallowed_inner_failure_dooms_the_outer(db: Database) -> None:
    with pytest.raises(RuntimeError), db.transaction():
        put(db, "a")
        try:
            with db.transaction():
                put(db, "b")
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
    assert keys(db) == []
    with db.transaction():
        put(db, "c")
    assert keys(db) == ["c"]


def test_acts_follow_the_outcome(db: Database) -> None:
    done: list[str] = []
    with db.transaction():
        with db.transaction():
            db.after_commit(lambda: done.append("commit"))
            db.after_rollback(lambda: done.append("rollback"))
        assert done == []
    assert done == ["commit"]
    with pytest.raises(ZeroDivisionError), db.transaction():
        db.after_commit(lambda: done.append("commit"))
        db.after_rollback(lambda: done.append("first"))
        db.after_rollback(lambda: done.append("second"))
        raise ZeroDivisionError
    assert done == ["commit", "second", "first"]
    db.after_commit(lambda: done.append("at once"))
    assert done[-1] == "at once"


def test_failing_act_does_not_undo_the_commit(db: Database) -> None:
    done: list[str] = []

    def fail() -> None:
        raise OSError("no")

    with db.transaction():
        put(db, "a")
        db.after_commit(fail)
        db.after_commit(lambda: done.append("next"))
    assert keys(db) == ["a"]
    assert done == ["next"]


def test_rows_survive_a_killed_process(path: Path) -> None:
    code = (
        "import os, sys; from tare.db import Database\n"
        "db = Database(sys.argv[1])\n"
        "with db.transaction(): db.execute(\"INSERT INTO meta VALUES ('kept', 'x')\")\n"
        "db._connection.execute('BEGIN IMMEDIATE'); db.execute(\"INSERT INTO meta VALUES ('lost', 'x')\")\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    db = Database(str(path))
    assert keys(db) == ["kept"]
    db.close()


def reopen_after(path: Path, damage: bytes | None) -> Database:
    """A ledger with one row in its backup, damaged, opened again."""
    db = Database(str(path))
    put(db, "a")
    db.close()
    Database(str(path)).close()
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    return Database(str(path))


@pytest.mark.parametrize("damage", [b"", b"\0" * 8192, b"not a database at all" * 300, None])
def test_torn_file_is_replaced_by_the_backup(
    path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    db = reopen_after(path, damage)
    assert keys(db) == ["a"]
    db.close()
    aside = [name for name in path.parent.iterdir() if ".corrupt-" in name.name]
    assert [name.read_bytes() for name in aside] == ([] if damage is None else [damage])
    assert f"{path} was restored from its backup" in caplog.text


def test_truncated_file_is_found_by_the_check(path: Path) -> None:
    db = Database(str(path))
    put(db, "a")
    db.close()
    Database(str(path)).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:5000])
    db = Database(str(path))
    assert keys(db) == ["a"]
    db.close()


def test_stale_log_is_not_replayed_into_the_restored_file(path: Path) -> None:
    db = Database(str(path))
    put(db, "a")
    db.close()
    db = Database(str(path))
    put(db, "b")
    log = Path(f"{path}-wal").read_bytes()
    assert log
    db.close()
    path.write_bytes(b"\xff" * 4096)
    Path(f"{path}-wal").write_bytes(log)
    db = Database(str(path))
    assert keys(db) == ["a"]
    db.close()


def test_damaged_backup_too_gives_an_empty_ledger(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    db = Database(str(path))
    put(db, "a")
    db.close()
    path.write_bytes(b"\xff" * 4096)
    path.with_name("state.db.bak").write_bytes(b"\xee" * 4096)
    db = Database(str(path))
    assert keys(db) == []
    db.close()
    assert "the backup" in caplog.text
    assert sorted(name.read_bytes()[:1] for name in path.parent.glob("*.corrupt-*")) == [b"\xee", b"\xff"]


def test_newer_schema_is_refused_without_damage(path: Path) -> None:
    db = Database(str(path))
    put(db, "a")
    db.execute("PRAGMA user_version = 999")
    db.close()
    with pytest.raises(RuntimeError, match="use a newer program"):
        Database(str(path))
    connection = sqlite3.connect(path)
    assert ("a",) in connection.execute("SELECT key FROM meta").fetchall()
    connection.close()


def test_full_disk_at_backup_keeps_the_old_generation(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Database(str(path)).close()
    before = path.with_name("state.db.bak").read_bytes()
    os.mkdir(path.with_name("state.db.bak.tmp"))
    db = Database(str(path))
    db.close()
    assert "no new backup" in caplog.text
    assert path.with_name("state.db.bak").read_bytes() == before


def test_a_full_disk_is_an_oserror_that_names_the_ledger(db: Database, path: Path) -> None:
    put(db, "a")
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count')[0][0]}")
    large = "x" * (1 << 20)
    for _ in range(2):
        with pytest.raises(OSError) as caught, db.transaction():
            db.execute("INSERT INTO meta VALUES ('large', ?)", (large,))
        assert (caught.value.errno, caught.value.strerror, caught.value.filename) == (
            errno.ENOSPC,
            "write the ledger",
            str(path),
        )
    assert keys(db) == ["a"]
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        db.execute("SELECT * FROM nowhere")


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "COMMIT"])
def test_begin_and_commit_fail_alike(db: Database, monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    real = db._connection

    class Broken:
        in_transaction = property(lambda self: real.in_transaction)

        def execute(self, sql: str, params: object = ()) -> object:
            if sql == statement:
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
                raise error
            return real.execute(sql, params)

    monkeypatch.setattr(db, "_connection", Broken())
    with pytest.raises(OSError, match="write the ledger") as caught, db.transaction():
        put(db, "a")
    assert caught.value.errno == errno.EIO
    monkeypatch.undo()
    assert keys(db) == []
