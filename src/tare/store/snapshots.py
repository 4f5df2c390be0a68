"""Snapshots: trees that stand on one another, as overlayfs wants them. Runs in the daemon, as root.

The words are containerd's (core/snapshots): `prepare(key, parent)` gives a writable (active) snapshot, `view` one to
read, `commit` makes a tree immutable under its chain id so that others may have it as parent, `remove` ends one. A key
is a container id (active, view) or a chain id (committed); a parent is a chain id, "" for none. `rootfs(key)` tells
the runtime what to mount; nothing is mounted here.

On disk a snapshot is snapshots/<n>/{fs,work}; the row is what makes it exist, and a folder without a row is garbage.
Numbers are never used twice within a life of the daemon. `prepare` and `remove` are on the path of start and rm: three
mkdir(2), or one rename into trash/ whose deletion happens later and elsewhere (ext4 needs milliseconds,
sometimes seconds).

Deliberately absent: unpacking (the worker process writes into `staging()`), mounting, and reference counts: the parent
column is a foreign key, so the ledger itself refuses to drop a parent.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tare.db import Database
from tare.errors import Conflict, NotFound
from tare.linux import libc
from tare.store.leases import Lease, Leases
from tare.store.paths import Layout
from tare.store.trash import Trash

__all__ = ["Snapshots", "Staging", "Usage"]

WALKERS = 2
"""Threads that measure trees: these may take minutes each, and must not keep others from the loop's own pool."""

_CHAIN = """
    WITH RECURSIVE chain (key, number, parent, kind, size, depth) AS (
        SELECT key, number, parent, kind, size, 0 FROM snapshots WHERE key = ?
        UNION ALL
        SELECT s.key, s.number, s.parent, s.kind, s.size, depth + 1
        FROM snapshots s JOIN chain ON s.key = chain.parent
    )
    SELECT key, number, kind, size FROM chain ORDER BY depth
"""


class Usage(NamedTuple):
    """Disk use of one layer: bytes as `ls -l` counts them, hard links once; number of inodes."""

    size: int
    inodes: int


@dataclass(frozen=True)
class Staging:
    """A folder for a worker to unpack into, leased until `close`: by then it has a row or it is thrown away."""

    number: int
    path: Path
    snapshots: Snapshots
    lease: Lease

    def close(self) -> None:
        """End the lease; a folder that got no row goes to the trash."""
        self.snapshots.discard_unless_committed(self.number)
        self.lease.close()

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


class Snapshots:
    """The snapshots of one data root. `leases` holds chain ids and numbers that a running action relies on."""

    def __init__(self, db: Database, layout: Layout) -> None:
        self._db = db
        self._layout = layout
        self.leases = Leases()
        self.trash = Trash(layout)
        self._walkers = ThreadPoolExecutor(WALKERS, "walk")
        self._walks: dict[int, asyncio.Future[Usage]] = {}
        on_disk = [int(name) for name in os.listdir(layout.snapshots) if name.isascii() and name.isdigit()]
        in_rows = db.execute("SELECT coalesce(max(number), 0) FROM snapshots")
        # Above the rows as well as the folders: after a crash either may be ahead of the other.
        self._numbers = itertools.count(max([*on_disk, in_rows[0][0]]) + 1)

    def exists(self, key: str) -> bool:
        return bool(self._db.execute("SELECT 1 FROM snapshots WHERE key = ?", (key,)))

    def prepare(self, key: str, parent: str = "") -> None:
        """A writable snapshot on top of `parent`. Conflict when the key is taken, NotFound for the parent.

        The upper directory becomes the container's "/", so it takes mode and owner of the parent's root (overlayfs
        shows the upper's); without a parent 0755 root:root.
        """
        with self._db.transaction():
            lower = self._layout.empty if not parent else self._layout.fs(self._parent_number(parent))
            number = next(self._numbers)
            self._insert(key, number, parent, "active")
            self._db.after_rollback(lambda: self.trash.throw(self._layout.snapshot(number)))
            self._make(number, lower)

    def view(self, key: str, parent: str = "") -> None:
        """A read-only look at `parent`; owns no folder. Conflict, NotFound as `prepare`."""
        with self._db.transaction():
            if parent:
                self._parent_number(parent)
            self._insert(key, None, parent, "view")

    def rootfs(self, key: str) -> dict[str, object]:
        """{"lower": [top..base], "upper": path, "work": path}, absolute; upper and work "" unless active. NotFound."""
        chain = self._db.execute(_CHAIN, (key,))
        if not chain:
            raise _missing(key)
        active = chain[0][2] == "active"
        below = chain if chain[0][2] == "committed" else chain[1:]
        lower = [str(self._layout.fs(row[1])) for row in below] or [str(self._layout.empty)]
        number = chain[0][1] if active else 0
        return {
            "lower": lower,
            "upper": str(self._layout.fs(number)) if active else "",
            "work": str(self._layout.work(number)) if active else "",
        }

    def chain(self, key: str) -> list[str]:
        """The keys from `key` itself down to the base; [] if there is no such snapshot."""
        return [row[0] for row in self._db.execute(_CHAIN, (key,))]

    def staging(self) -> Staging:
        """A fresh folder snapshots/<n>/fs for a worker; `commit` gives it a row, closing it without one discards it."""
        number = next(self._numbers)
        lease = self.leases.take(str(number))
        try:
            self._make(number, self._layout.empty)
        except BaseException:
            lease.close()
            raise
        return Staging(number, self._layout.fs(number), self, lease)

    def commit(self, chain_id: str, number: int, parent: str, size: int, inodes: int = 0) -> None:
        """Make the unpacked folder `number` the committed snapshot `chain_id`. NotFound for the parent.

        Joins the caller's transaction. No error means the snapshot exists, not that this folder became it: of two
        loads of one layer the first commit wins, and the other's folder goes when its Staging is closed.
        """
        with self._db.transaction():
            if self.exists(chain_id):
                return
            if parent:
                self._parent_number(parent)
            self._db.execute(
                "INSERT INTO snapshots (key, number, parent, kind, size, inodes, created)"
                " VALUES (?, ?, ?, 'committed', ?, ?, ?)",
                (chain_id, number, parent or None, size, inodes, time.time_ns()),
            )

    def discard_unless_committed(self, number: int) -> None:
        """Throw the folder away if no row names it."""
        if not self._db.execute("SELECT 1 FROM snapshots WHERE number = ?", (number,)):
            self.trash.throw(self._layout.snapshot(number))

    def remove(self, key: str) -> None:
        """End a snapshot. Nothing happens if there is none; Conflict while another stands on it.

        Inside a transaction the folder moves when that commits.
        """
        with self._db.transaction():
            row = self._db.execute("SELECT number FROM snapshots WHERE key = ?", (key,))
            if not row:
                return
            if self._db.execute("SELECT 1 FROM snapshots WHERE parent = ? LIMIT 1", (key,)):
                raise Conflict(f"cannot remove snapshot {key}: another one stands on it")
            self._db.execute("DELETE FROM snapshots WHERE key = ?", (key,))
            number = row[0][0]
            if number is not None:
                self._db.after_commit(lambda: self.trash.throw(self._layout.snapshot(number)))

    def layer_usage(self, chain_id: str) -> Usage:
        """What a committed layer takes by itself, as counted when it was unpacked. NotFound."""
        row = self._db.execute("SELECT size, inodes FROM snapshots WHERE key = ? AND kind = 'committed'", (chain_id,))
        if not row:
            raise _missing(chain_id)
        return Usage(row[0][0], row[0][1])

    async def usage(self, key: str) -> Usage:
        """What a snapshot takes by itself; an active one is walked, in a thread. NotFound.

        All who ask while it is walked share that walk.
        """
        row = self._db.execute("SELECT kind, number, size, inodes FROM snapshots WHERE key = ?", (key,))
        if not row:
            raise _missing(key)
        kind, number, size, inodes = row[0]
        if kind != "active":
            return Usage(size, inodes)
        walk = self._walks.get(number)
        if walk is None:
            loop = asyncio.get_running_loop()
            walk = self._walks[number] = loop.run_in_executor(self._walkers, measure, self._layout.fs(number))
            walk.add_done_callback(lambda done: self._walked(number, done))
        # Who leaves must not end it for the others.
        return await asyncio.shield(walk)

    def _walked(self, number: int, done: asyncio.Future[Usage]) -> None:
        del self._walks[number]
        if not done.cancelled():
            done.exception()  # whoever waits has it; there may be nobody left

    def _parent_number(self, parent: str) -> int:
        row = self._db.execute("SELECT number FROM snapshots WHERE key = ? AND kind = 'committed'", (parent,))
        if not row:
            raise NotFound(f"parent snapshot {parent} does not exist")
        number: int = row[0][0]
        return number

    def _insert(self, key: str, number: int | None, parent: str, kind: str) -> None:
        if self.exists(key):
            raise Conflict(f"snapshot {key} already exists")
        self._db.execute(
            "INSERT INTO snapshots (key, number, parent, kind, created) VALUES (?, ?, ?, ?, ?)",
            (key, number, parent or None, kind, time.time_ns()),
        )

    def _make(self, number: int, lower: Path) -> None:
        """snapshots/<n>/{fs,work}; fs with mode and owner of `lower`."""
        base, fs = str(self._layout.snapshot(number)), str(self._layout.fs(number))
        os.mkdir(base, 0o700)
        os.mkdir(f"{base}/work", 0o700)
        os.mkdir(fs, 0o700)
        model = os.stat(lower, follow_symlinks=False)
        if not stat.S_ISDIR(model.st_mode):
            raise NotADirectoryError(f"the root of {lower} is not a directory")
        # The owner first: chown(2) clears set-id bits.
        os.chown(fs, model.st_uid, model.st_gid, follow_symlinks=False)
        os.chmod(fs, stat.S_IMODE(model.st_mode))


def measure(root: Path) -> Usage:
    """Count a tree by descriptors, one open at a time: links are not followed, other mounts not entered.

    What lies deeper than PATH_MAX (4096 bytes) is not counted: only a container that means to can build it.
    """
    size, seen = 0, set[int]()
    top = os.open(root, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        pending = deque([b"."])
        while pending:
            folder = pending.popleft()
            try:
                resolve = libc.RESOLVE_BENEATH | libc.RESOLVE_NO_SYMLINKS | libc.RESOLVE_NO_XDEV
                descriptor = libc.openat2(top, folder, os.O_RDONLY | os.O_DIRECTORY, 0, resolve)
            except OSError:
                continue  # removed meanwhile, a mount point, or too deep
            try:
                for name in os.listdir(descriptor):
                    try:
                        entry = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    except OSError:
                        continue
                    if stat.S_ISDIR(entry.st_mode):
                        pending.append(folder + b"/" + os.fsencode(name))
                    elif entry.st_ino not in seen:
                        size += entry.st_size
                    seen.add(entry.st_ino)
            finally:
                os.close(descriptor)
    finally:
        os.close(top)
    return Usage(size, len(seen))


def _missing(key: str) -> NotFound:
    return NotFound(f"snapshot {key} does not exist")
