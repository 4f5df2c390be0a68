"""The ledger: one SQLite file for whatever must agree across nouns. Used by the daemon only, on its one thread.

This file owns the schema, its migrations, `transaction()` and the file's safety; what the rows mean belongs to the
rooms, which write their own SQL. One user action is one transaction. Nothing here blocks for long: a commit in WAL mode
with synchronous=NORMAL takes about 0.03 ms, survives a killed process, and after a power cut the file is consistent
though the last transactions may be missing.

A torn file never stops the start and is never lost silently: `state.db` is checked (`PRAGMA quick_check`) when opened;
a damaged one is set aside as `state.db.corrupt-<time>` and replaced by the last good generation, `state.db.bak`, which
is written anew at each clean opening and by `backup()`.

A full, broken or read-only disk is an OSError here as everywhere, never an error of sqlite3.

Deliberately absent: an object mapper, a second connection, and any knowledge of containers or images.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Database"]

log = logging.getLogger(__name__)

Value = str | int | float | bytes | None

_LOG_RESERVE = 1 << 20
"""Bytes; a transaction takes some 20 KB of log, so about 50 fit. A guess."""

_ERRNO = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_IOERR: errno.EIO, sqlite3.SQLITE_READONLY: errno.EROFS}
"""What the disk, not the statement, is to blame for: primary result code (sqlite.org/rescode.html) -> errno."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

    -- row: JSON of the engine's own type, opaque here. created: ns
    CREATE TABLE containers (
        id TEXT PRIMARY KEY, name TEXT UNIQUE NOT NULL, row TEXT NOT NULL, created INTEGER NOT NULL
    ) STRICT;

    -- key: container id (active, view) or chain id (committed). number: directory below snapshots/, NULL for a view.
    -- A parent is always committed. size, inodes: of this layer alone; 0 unless committed. created: ns
    CREATE TABLE snapshots (
        key TEXT PRIMARY KEY,
        number INTEGER UNIQUE,
        parent TEXT REFERENCES snapshots (key),
        kind TEXT NOT NULL CHECK (kind IN ('active', 'view', 'committed')),
        size INTEGER NOT NULL DEFAULT 0,
        inodes INTEGER NOT NULL DEFAULT 0,
        created INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX snapshots_by_parent ON snapshots (parent);

    -- id: digest of the config. manifest: digest of the manifest. top: chain id, NULL for an image without layers.
    -- parent: image it was built on here, if known. stored, tagged: ns; tagged 0 = never by hand
    CREATE TABLE images (
        id TEXT PRIMARY KEY,
        manifest TEXT NOT NULL,
        manifest_type TEXT NOT NULL,
        manifest_size INTEGER NOT NULL,
        top TEXT REFERENCES snapshots (key),
        parent TEXT REFERENCES images (id) ON DELETE SET NULL,
        stored INTEGER NOT NULL,
        tagged INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX images_by_top ON images (top);
    CREATE INDEX images_by_parent ON images (parent);

    -- Every blob an image needs: its manifest, its config and its layers. A blob no row names is garbage.
    CREATE TABLE image_blobs (
        image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
        digest TEXT NOT NULL,
        PRIMARY KEY (image_id, digest)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX image_blobs_by_digest ON image_blobs (digest);

    -- reference: normalised, "docker.io/library/busybox:latest" or "...@sha256:..."; repository: the part before.
    -- digest: '' for a tag
    CREATE TABLE tags (
        reference TEXT PRIMARY KEY,
        image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
        repository TEXT NOT NULL,
        digest TEXT NOT NULL
    ) STRICT;
    CREATE INDEX tags_by_image ON tags (image_id);
    CREATE INDEX tags_by_repository ON tags (repository);
    """,
)
"""Step n brings `PRAGMA user_version` from n to n+1. A published step is never edited; a new one is appended."""


class Database:
    """The open ledger. Every method must be called from the thread that made it (sqlite3 checks this)."""

    def __init__(self, path: str) -> None:
        """Open or create `path` (0600), repair it from its backup if it is torn, and bring the schema up to date.

        Raises OSError when the folder cannot be written, sqlite3.Error when there is neither a sound file nor a
        sound backup to fall back on and a new file cannot be made, RuntimeError for a schema newer than this program.
        """
        self.path = Path(path)
        self.restored = False
        """The ledger was damaged: it is an older generation or empty, and a file without a row need not be garbage."""
        self._depth = 0
        self._doomed = False
        self._after_commit: list[Callable[[], None]] = []
        self._after_rollback: list[Callable[[], None]] = []
        self._connection = self._open()
        try:
            self._migrate()
            self.backup()
            self._reserve()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Fold the write-ahead log into the file and close it. A second call does nothing."""
        self._connection.close()

    def execute(self, sql: str, params: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        """Run one statement; all rows. Outside `transaction()` it commits by itself. OSError if the disk fails."""
        try:
            return self._connection.execute(sql, params).fetchall()
        except sqlite3.OperationalError as error:
            number = _ERRNO.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
            if number is None:
                raise
            raise OSError(number, "write the ledger", str(self.path)) from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """BEGIN IMMEDIATE ... COMMIT, or ROLLBACK when the block raises.

        Re-entrant: an inner block joins the outer one, and commits or rolls back with it. An outer block that swallows
        an inner block's exception must not commit half of it: it is rolled back and raises RuntimeError. Never await
        inside: another task would join by accident. OSError, and nothing changed, if the disk fails.
        """
        if self._depth:
            self._depth += 1
            try:
                yield
            except BaseException:
                self._doomed = True
                raise
            finally:
                self._depth -= 1
            return
        self.execute("BEGIN IMMEDIATE")
        self._depth, self._doomed = 1, False
        committed = False
        try:
            yield
            if self._doomed:
                raise RuntimeError("transaction rolled back: an inner one failed")
            self.execute("COMMIT")
            committed = True
        finally:
            self._depth = 0
            if not committed and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._settle(committed)

    def after_commit(self, act: Callable[[], None]) -> None:
        """Call `act` once the outermost transaction has committed, or now if none is open. For deletes of files."""
        if self._depth:
            self._after_commit.append(act)
        else:
            act()

    def after_rollback(self, act: Callable[[], None]) -> None:
        """Call `act` if the open transaction is rolled back, latest first: it undoes what was made on disk."""
        if self._depth:
            self._after_rollback.append(act)

    def backup(self) -> None:
        """Write `state.db.bak`: tmp + fsync + rename. Skipped, with a log line, when the disk does not allow it."""
        target, partial = self.path.with_name(self.path.name + ".bak"), self.path.with_name(self.path.name + ".bak.tmp")
        try:
            partial.unlink(missing_ok=True)
            _touch(partial)
            copy = sqlite3.connect(partial)
            try:
                self._connection.backup(copy)
            finally:
                copy.close()
            _publish(partial, target)
        except (OSError, sqlite3.Error) as error:
            # A full or read-only disk must not stop the start: the previous generation is still there.
            log.warning("no new backup of %s: %s", self.path, error)
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def _reserve(self) -> None:
        """Give the write-ahead log blocks of its own, so that stop and rm can be recorded on a disk that is full.

        What lies behind the last frame has no valid checksum and is ignored by SQLite (fileformat2.html, 4.3). The log
        starts again from its beginning after each checkpoint and keeps its size until `close`.
        """
        self._connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_RESERVE // 4096 // 4}")
        try:
            # The first write makes the file.
            self.execute("INSERT INTO meta VALUES ('opened', ?1) ON CONFLICT DO UPDATE SET value = ?1", (time.ctime(),))
            # Opening another descriptor is safe for this file alone: SQLite's locks are on the database, and closing
            # any descriptor of that would drop them (fcntl(2)).
            descriptor = os.open(f"{self.path}-wal", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.posix_fallocate(descriptor, 0, _LOG_RESERVE)
            finally:
                os.close(descriptor)
        except (OSError, sqlite3.OperationalError) as error:
            log.warning("no space is reserved for the log of %s: %s", self.path, error)

    def _settle(self, committed: bool) -> None:
        acts = self._after_commit if committed else self._after_rollback[::-1]
        self._after_commit, self._after_rollback = [], []
        for act in acts:
            try:
                act()
            except OSError as error:
                # The rows are settled; what stays on disk is garbage, and gc finds it at the next start.
                log.warning("left for the garbage collector: %s", error)

    def _open(self) -> sqlite3.Connection:
        """A sound connection: the file itself, else its backup, else a new and empty one, each step in the log."""
        spare = self.path.with_name(self.path.name + ".bak")
        # A clean opening always leaves a backup, so an empty or missing file beside one was lost or torn to 0 bytes.
        fresh = not self.path.exists() or self.path.stat().st_size == 0
        if not (fresh and spare.exists()):
            try:
                return _connect(self.path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError) and not _torn(error):
                    raise
                log.error("%s is damaged (%s)", self.path, error)
        self.restored = True
        self._set_aside()
        if spare.exists():
            restored = self.path.with_name(self.path.name + ".restored")
            restored.unlink(missing_ok=True)
            _touch(restored)
            restored.write_bytes(spare.read_bytes())
            _publish(restored, self.path)
            try:
                connection = _connect(self.path)
            except sqlite3.DatabaseError as error:
                log.error("the backup %s is damaged too (%s): starting with an empty ledger", spare, error)
                self._set_aside()
            else:
                log.error("%s was restored from its backup of %s", self.path, time.ctime(spare.stat().st_mtime))
                return connection
        return _connect(self.path)

    def _set_aside(self) -> None:
        """Rename the file, then its write-ahead log, to *.corrupt-<time>.

        The log must not stay: SQLite would replay it into whatever file takes this name next. It goes second, so that
        a crash in between leaves a missing file, which the next opening treats the same way.
        """
        stamp = f".corrupt-{time.time_ns()}"
        for suffix in ("", "-wal"):
            damaged = self.path.with_name(self.path.name + suffix)
            with contextlib.suppress(FileNotFoundError):
                damaged.rename(self.path.with_name(self.path.name + stamp + suffix))
                log.error("%s was set aside as %s", damaged, self.path.name + stamp + suffix)

    def _migrate(self) -> None:
        version = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
        if version > len(MIGRATIONS):
            raise RuntimeError(
                f"{self.path} has schema {version}, this program knows up to {len(MIGRATIONS)}: use a newer program"
            )
        for number, step in enumerate(MIGRATIONS[version:], version + 1):
            # executescript() would commit before it runs: the statements must join one transaction with the version.
            with self.transaction():
                for statement in _statements(step):
                    self.execute(statement)
                self.execute(f"PRAGMA user_version = {number}")


def _connect(path: Path) -> sqlite3.Connection:
    """Open, set the pragmas, check every page. Raises sqlite3.DatabaseError when a check fails."""
    _touch(path)
    connection = sqlite3.connect(path, timeout=1, isolation_level=None, cached_statements=256)
    try:
        # One process, one connection: the index of the log then lives in memory instead of a -shm file, so that a
        # full disk can still be opened and read; and a second daemon by mistake is refused ("database is locked").
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(str(verdict))
    except BaseException:
        connection.close()
        raise
    return connection


def _statements(step: str) -> Iterator[str]:
    """The single statements of a script whose comments may hold semicolons."""
    pending = ""
    for line in step.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""


def _torn(error: sqlite3.OperationalError) -> bool:
    """SQLite reports some damage as an operational error; a lock, a full or a read-only disk is not damage."""
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _touch(path: Path) -> None:
    """Make the file with 0600 before SQLite would with the umask's mode; its -wal copies the mode."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))


def _publish(partial: Path, target: Path) -> None:
    """fsync + rename + fsync(folder): `target` is the old file or the new one at any instant."""
    for path, flags in ((partial, os.O_RDWR), (partial.parent, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(path, flags | os.O_CLOEXEC)
        try:
            if path is partial:
                os.fsync(descriptor)
                partial.rename(target)
            else:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
