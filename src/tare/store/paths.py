"""The disk layout, drawn once. The only file that joins paths of the store; runs in the daemon, as root.

```
<root>/                       0710  the root given by the configuration, /var/lib/tare
|-- state.db                  0600  the ledger (db.py)
|-- oci-layout, index.json    0640  make <root> a valid OCI image layout
|-- blobs/sha256/<hex>        0640  content named by its digest, written once (content.py)
|-- ingest/<name>                   bytes on their way in; emptied at each start
|-- snapshots/<n>/fs          mode of the image's root directory
|-- snapshots/<n>/work        0700  overlay's scratch (snapshots.py)
|-- containers/<id>/          0700  log.json, hosts, hostname, resolv.conf (engine/)
|-- empty/                    0755  the lower directory of an image without layers
|-- seccomp/                  0700  compiled filters by hash (engine/)
|-- lost/                     0700  what the ledger forgot when it was damaged; the administrator's to judge (gc.py)
`-- trash/<n>                 0700  on its way out; emptied at each start (gc.py)
```
Every folder but those that carry a mode of their own is 0700: layers hold setuid programs (CVE-2021-41091). A name
that is no row's key is checked here before it becomes part of a path (N9).

Deliberately absent: what the files mean, and any deletion.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tare.errors import Invalid
from tare.oci import digest as oci_digest

__all__ = ["Layout", "fsync_directory"]

_CONTAINER_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Layout:
    """The folders below one data root, as absolute paths without symbolic links in the root itself."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()
        self.database = self.root / "state.db"
        self.oci_layout = self.root / "oci-layout"
        self.index = self.root / "index.json"
        self.blobs = self.root / "blobs"
        self.ingest = self.root / "ingest"
        self.snapshots = self.root / "snapshots"
        self.containers = self.root / "containers"
        self.empty = self.root / "empty"
        self.seccomp = self.root / "seccomp"
        self.lost = self.root / "lost"
        self.trash = self.root / "trash"

    def create(self) -> None:
        """Make what is missing and put every mode right, whatever the umask or a former life left. OSError if it can't.

        The data root's ancestors are made with 0755 when missing; the root itself ends up 0710.
        """
        self.root.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        private = (
            self.blobs,
            self.blobs / "sha256",
            self.ingest,
            self.snapshots,
            self.containers,
            self.seccomp,
            self.lost,
            self.trash,
        )
        for path, mode in ((self.root, 0o710), *((path, 0o700) for path in private), (self.empty, 0o755)):
            path.mkdir(mode=mode, exist_ok=True)
            # By descriptor and without following: a planted link must not pass its mode on (CVE-2015-1335).
            descriptor = os.open(path, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)

    def blob(self, digest: str) -> Path:
        """Where the content with that digest is, or would be. Invalid unless the digest has the full form."""
        checked = oci_digest.parse(digest)
        algorithm, _, encoded = checked.partition(":")
        return self.blobs / algorithm / encoded

    def ingestion(self, name: str) -> Path:
        """A file or folder on its way in; `name` is the engine's own, without a slash."""
        return self.ingest / _component(name)

    def snapshot(self, number: int) -> Path:
        return self.snapshots / str(number)

    def fs(self, number: int) -> Path:
        """The tree of a snapshot: overlay's upper directory while active, a lower one once committed."""
        return self.snapshots / str(number) / "fs"

    def work(self, number: int) -> Path:
        return self.snapshots / str(number) / "work"

    def container(self, container_id: str) -> Path:
        """The folder of a container. Invalid unless the id is 64 hex digits."""
        if not _CONTAINER_ID.fullmatch(container_id):
            raise Invalid(f"not a container id: {container_id!r}")
        return self.containers / container_id

    def discarded(self, name: str) -> Path:
        return self.trash / _component(name)


def fsync_directory(path: Path) -> None:
    """Make the names in a folder durable (fsync(2), notes)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _component(name: str) -> str:
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise Invalid(f"not a file name: {name!r}")
    return name
