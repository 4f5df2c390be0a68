"""The way out: a tree is renamed into trash/ at once and deleted later, off the path of any reply.

Runs in the daemon, as root; the deletion itself in a thread of its own, since the trees are a container's
work and may be of any size, depth and shape. They are deleted by descriptors: a link is removed, never followed, and
another file system is never entered (a forgotten mount must not cost the host's files).

Deliberately absent: rows. What lies in trash/ has none.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from errno import ENOTEMPTY
from pathlib import Path

from tare.linux import libc
from tare.store.paths import Layout

__all__ = ["Trash"]

log = logging.getLogger(__name__)

_DEPTH = 64
"""Folders below this depth are moved up to trash/ and deleted from there, so descriptors and recursion stay bounded."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Trash:
    """The trash/ folder of one data root."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._names = itertools.count(1)
        self._prefix = os.urandom(4).hex()
        self._thread = ThreadPoolExecutor(1, "trash")
        self._running: asyncio.Future[int] | None = None
        self._again = False

    def throw(self, path: Path) -> None:
        """Move a folder of this data root to the trash; nothing if there is none. Deletion starts soon after."""
        try:
            path.rename(self._layout.discarded(self._name()))
        except FileNotFoundError:
            return
        self._schedule()

    def empty(self) -> int:
        """Delete everything in the trash, now; bytes freed. What cannot be deleted stays, with a line in the log."""
        freed = 0
        root = os.open(self._layout.trash, _FOLDER | os.O_CLOEXEC)
        try:
            stuck: set[str] = set()
            # Deep trees put further folders here while they are taken apart.
            while names := [name for name in os.listdir(root) if name not in stuck]:
                for name in names:
                    try:
                        freed += self._delete(root, root, name, 0)
                    except OSError as error:
                        log.warning("cannot delete %s/%s: %s", self._layout.trash, name, error)
                        stuck.add(name)
        finally:
            os.close(root)
        return freed

    async def drain(self) -> int:
        """Empty the trash in a thread, after a deletion that runs already; bytes freed. Also for a shutdown."""
        self._schedule()
        freed = 0
        while self._running is not None:
            running = self._running
            await asyncio.wait([running])
            freed += running.result() if running.exception() is None else 0
            # Its own callback clears the field, and may start the next one.
            await asyncio.sleep(0)
        return freed

    def _name(self) -> str:
        return f"{self._prefix}-{next(self._names)}"

    def _schedule(self) -> None:
        """One deletion at a time, in the thread for it. Without a loop the next start's collection does it."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._running is not None and self._running.get_loop() is loop:
            self._again = True
            return
        self._running = loop.run_in_executor(self._thread, self.empty)
        self._running.add_done_callback(self._done)

    def _done(self, finished: asyncio.Future[int]) -> None:
        self._running = None
        if not finished.cancelled() and (error := finished.exception()) is not None:
            log.warning("emptying the trash failed: %s", error)
        if self._again:
            self._again = False
            self._schedule()

    def _delete(self, root: int, folder: int, name: str, depth: int) -> int:
        """Delete one entry of `folder` with everything below; bytes freed."""
        entry = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISDIR(entry.st_mode):
            os.unlink(name, dir_fd=folder)
            return entry.st_blocks * 512 if entry.st_nlink == 1 else 0
        try:
            os.rmdir(name, dir_fd=folder)
            return entry.st_blocks * 512
        except OSError as error:
            if error.errno != ENOTEMPTY:
                raise
        if depth >= _DEPTH:
            os.rename(name, self._name(), src_dir_fd=folder, dst_dir_fd=root)
            return 0
        freed = 0
        resolve = libc.RESOLVE_BENEATH | libc.RESOLVE_NO_SYMLINKS | libc.RESOLVE_NO_XDEV
        descriptor = libc.openat2(folder, name, _FOLDER, 0, resolve)
        try:
            for child in os.listdir(descriptor):
                freed += self._delete(root, descriptor, child, depth + 1)
        finally:
            os.close(descriptor)
        os.rmdir(name, dir_fd=folder)
        return freed + entry.st_blocks * 512
