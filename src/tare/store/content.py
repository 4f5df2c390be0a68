"""Blobs: bytes named by their digest, written once, never changed. Runs in the daemon, as root.

A blob enters through `ingest()`: written to ingest/, then fsync, size and digest checked, renamed, folder fsynced
(containerd plugins/content/local/writer.go, Commit). So a file below blobs/ is whole by construction, and `blobs/`
with `oci-layout` and `index.json` is an OCI image layout that other tools may read.

Deliberately absent: who needs which blob (images.py has the rows), and large transfers: the store's worker process
writes those and hands them over by `adopt()`.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from errno import EIO
from pathlib import Path

import msgspec

from tare.errors import Invalid, NotFound
from tare.oci import digest as oci_digest
from tare.oci.image import DOCUMENT_LIMIT
from tare.store.leases import Leases
from tare.store.paths import Layout, fsync_directory

__all__ = ["Content", "Writer"]

log = logging.getLogger(__name__)


class Content:
    """The blobs of one data root. `leases` holds digests that a running action needs before any row names them."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.leases = Leases()
        if not layout.oci_layout.exists():
            self._replace(layout.oci_layout, b'{"imageLayoutVersion":"1.0.0"}')
        if not layout.index.exists():
            self.write_index(())

    def has(self, digest: str) -> bool:
        return self._layout.blob(digest).is_file()

    def size(self, digest: str) -> int:
        """Bytes of the blob. NotFound."""
        try:
            return self._layout.blob(digest).stat().st_size
        except FileNotFoundError:
            raise _missing(digest) from None

    def open(self, digest: str) -> int:
        """A descriptor to read the blob from; the caller closes it. NotFound."""
        try:
            return os.open(self._layout.blob(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise _missing(digest) from None

    def read(self, digest: str, limit: int = DOCUMENT_LIMIT) -> bytes:
        """A whole small blob, its digest checked again. NotFound; Invalid above `limit`; OSError if damaged."""
        with os.fdopen(self.open(digest), "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise Invalid(f"content {digest} is larger than {limit} bytes")
        if hashlib.new(digest.partition(":")[0], data).hexdigest() != digest.partition(":")[2]:
            raise OSError(EIO, "content is damaged on disk", str(self._layout.blob(digest)))
        return data

    def ingest(self) -> Writer:
        """A new blob. Use as a context manager: leaving the block without `commit` removes what was written."""
        return Writer(self, self._layout, f"blob-{os.urandom(8).hex()}")

    def write(self, data: bytes) -> str:
        """Store a small document; its sha256 digest. No error means it is stored, not that this call did it."""
        with self.ingest() as writer:
            writer.write(data)
            return writer.commit()

    def adopt(self, files: Mapping[str, Path]) -> None:
        """Take over finished files by digest: same file system, already fsynced and checked by their writer.

        No error means all the content is stored, not that these files were the ones: an existing blob wins, and the
        file stays where it is. One fsync per folder: milliseconds, so many files are a thread's work.
        """
        folders = set()
        for digest, path in files.items():
            target = self._layout.blob(digest)
            if target.exists():
                continue
            target.parent.mkdir(mode=0o700, exist_ok=True)
            path.chmod(0o640)
            path.rename(target)
            folders.add(target.parent)
        for folder in folders:
            fsync_directory(folder)

    def delete(self, digest: str) -> int:
        """Remove the blob; the bytes freed. 0 if there is none."""
        path = self._layout.blob(digest)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return size

    def walk(self) -> Iterator[str]:
        """Digests of all blobs. Files whose name is no digest are not ours and are passed over."""
        for folder in sorted(path for path in self._layout.blobs.iterdir() if path.is_dir()):
            for name in sorted(os.listdir(folder)):
                try:
                    yield oci_digest.parse(f"{folder.name}:{name}")
                except Invalid:
                    continue

    def write_index(self, manifests: Iterable[Mapping[str, object]]) -> None:
        """Replace `index.json`; the descriptors are dicts in OCI spelling. Derived: written anew at each start."""
        document = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": list(manifests),
        }
        self._replace(self._layout.index, msgspec.json.encode(document))

    def _replace(self, target: Path, data: bytes) -> None:
        """tmp + rename, mode 0640. Both files are derived: no fsync, and a full disk costs a line in the log only."""
        partial = self._layout.ingestion(f"{target.name}-{os.urandom(8).hex()}")
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with os.fdopen(os.open(partial, flags, 0o640), "wb") as file:
                file.write(data)
            partial.rename(target)
        except OSError as error:
            log.warning("%s is out of date: %s", target, error)
            partial.unlink(missing_ok=True)


class Writer:
    """A blob being written. One of `commit` and `abort` ends it."""

    def __init__(self, content: Content, layout: Layout, name: str) -> None:
        self._content = content
        self._path = layout.ingestion(name)
        self._lease = content.leases.take(name)
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.fdopen(os.open(self._path, flags, 0o600), "wb")
        except BaseException:
            self._lease.close()
            raise
        self._sha256 = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._size += len(data)

    def commit(self, digest: str = "", size: int = -1) -> str:
        """fsync, check size (-1: any) and sha256 digest ("": any), publish under the digest, which is returned.

        Invalid on a mismatch; then nothing is stored. No error means the content is stored, not that this call did it.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            actual = f"sha256:{self._sha256.hexdigest()}"
            if size not in (-1, self._size):
                raise Invalid(f"content has {self._size} bytes, expected {size}")
            if digest not in ("", actual):
                raise Invalid(f"content has the digest {actual}, expected {digest}")
            self._content.adopt({actual: self._path})
        finally:
            self.abort()
        return actual

    def abort(self) -> None:
        """Remove what was written and not published."""
        self._file.close()
        self._path.unlink(missing_ok=True)
        self._lease.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *details: object) -> None:
        self.abort()


def _missing(digest: str) -> NotFound:
    return NotFound(f"content {digest}: not found")
