"""Garbage: whatever lies in the store and is reached from no root. Runs in the daemon, at each start and on prune.

Roots are the ledger's rows and the leases of running actions. From images: their blobs and their chains of layers;
from containers: the snapshot under their id and the layers below it. The rest of blobs/, snapshots/ and ingest/ goes:
this is what a killed load, pull or build leaves behind (a file without a row is garbage). Marking is quick and runs on
the daemon's thread, so nothing changes meanwhile; deleting trees is a thread's work.

After a damaged ledger was replaced by an older one or an empty one (`Database.restored`), a file without a row may be
somebody's only copy: such trees and blobs are moved to lost/ and never deleted from here.

Folders below containers/ are the engine's own: they go only at a start, when no create can be under way.

Deliberately absent: counters.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from tare.db import Database
from tare.store.content import Content
from tare.store.paths import Layout
from tare.store.snapshots import Snapshots

__all__ = ["collect", "sweep"]

log = logging.getLogger(__name__)


async def collect(
    db: Database, content: Content, snapshots: Snapshots, layout: Layout, *, starting: bool = False
) -> int:
    """`sweep`, then empty the trash; bytes freed on disk."""
    freed = sweep(db, content, snapshots, layout, starting=starting)
    return freed + await snapshots.trash.drain()


def sweep(db: Database, content: Content, snapshots: Snapshots, layout: Layout, *, starting: bool = False) -> int:
    """Drop rows and blobs nothing needs and move trees without a row to the trash; bytes of blobs freed.

    With `starting` no action can be under way: snapshots of containers that have no row go too.
    """
    with db.transaction():
        if starting:
            for (key,) in db.execute(
                "SELECT key FROM snapshots WHERE kind <> 'committed' AND key NOT IN (SELECT id FROM containers)"
            ):
                log.warning("snapshot %s has no container: removed", key)
                snapshots.remove(key)
        _drop_layers(db, snapshots)
    if db.restored:
        _set_aside(db, content, snapshots, layout)
    freed = _delete_blobs(db, content)
    if starting:
        for path in _unowned(db, layout):
            snapshots.trash.throw(path)
    for number in _orphans(db, snapshots, layout):
        snapshots.trash.throw(layout.snapshot(number))
    for name in os.listdir(layout.ingest):
        if name not in content.leases:
            snapshots.trash.throw(layout.ingestion(name))
    return freed


def _drop_layers(db: Database, snapshots: Snapshots) -> None:
    """Remove committed snapshots that no image and no other snapshot stands on, from the leaves down."""
    while True:
        leaves = db.execute(
            "SELECT key FROM snapshots s WHERE kind = 'committed'"
            " AND NOT EXISTS (SELECT 1 FROM images WHERE top = s.key)"
            " AND NOT EXISTS (SELECT 1 FROM snapshots WHERE parent = s.key)"
        )
        unneeded = [key for (key,) in leaves if key not in snapshots.leases]
        if not unneeded:
            return
        for key in unneeded:
            snapshots.remove(key)


def _delete_blobs(db: Database, content: Content) -> int:
    return sum(content.delete(digest) for digest in _unnamed(db, content))


def _unnamed(db: Database, content: Content) -> list[str]:
    """Blobs no image names and no lease holds."""
    named = {row[0] for row in db.execute("SELECT DISTINCT digest FROM image_blobs")}
    return [digest for digest in content.walk() if digest not in named and digest not in content.leases]


def _orphans(db: Database, snapshots: Snapshots, layout: Layout) -> list[int]:
    """Numbers of snapshot folders that have no row and no lease."""
    numbers = {str(row[0]) for row in db.execute("SELECT number FROM snapshots WHERE number IS NOT NULL")}
    names = [name for name in os.listdir(layout.snapshots) if name.isascii() and name.isdigit()]
    return [int(name) for name in names if name not in numbers and name not in snapshots.leases]


def _unowned(db: Database, layout: Layout) -> list[Path]:
    """Folders below containers/ whose container has no row: its create or remove was cut short."""
    owners = {row[0] for row in db.execute("SELECT id FROM containers")}
    return [layout.containers / name for name in os.listdir(layout.containers) if name not in owners]


def _set_aside(db: Database, content: Content, snapshots: Snapshots, layout: Layout) -> None:
    moves = [layout.snapshot(number) for number in _orphans(db, snapshots, layout)]
    moves += [layout.blob(digest) for digest in _unnamed(db, content)]
    moves += _unowned(db, layout)
    stamp = time.time_ns()
    for path in moves:
        path.rename(layout.lost / f"{path.name}-{stamp}")
    if moves:
        log.error("%d trees and blobs unknown to the restored ledger were moved to %s", len(moves), layout.lost)
