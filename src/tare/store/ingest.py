"""The files of an archive on disk: every member of an outer tar streamed into the ingest folder, hashed on the way.

Runs in the store's worker. Members are written under names of ours, so nothing in the archive can choose a path;
afterwards they are found by the name they had in the archive, as plain text, and links are followed inside that table
only (CVE-2025-47290 and the class of Incus' symlinked backup.yaml). What the files mean is archive.py's.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import PurePosixPath
from typing import NamedTuple

from tare.errors import Invalid
from tare.oci.digest import Digest
from tare.oci.image import DOCUMENT_LIMIT
from tare.store.jobs import Blob
from tare.store.tarread import Limits, Member, Reader, Source, TarError, components, shown

__all__ = ["Ingest", "Stored", "Tee", "write_all"]

_MEMBERS = Limits(entries=100_000, depth=32)
_LINKS_FOLLOWED = 8
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Stored(NamedTuple):
    """A file in the ingest folder."""

    file: str
    digest: Digest
    size: int


class Tee:
    """A source that keeps a copy of all that passes in a new file of the ingest folder, with its digest."""

    def __init__(self, ingest: Ingest, source: Source) -> None:
        self._ingest = ingest
        self._source = source
        self._hash = hashlib.sha256()
        self._size = 0
        self._file, self._fd = ingest.create()

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        if self._fd >= 0:
            self._hash.update(data)
            self._size += len(data)
            write_all(self._fd, data)
        return data

    def finish(self) -> Stored:
        """The file is complete: nothing may be read any more."""
        os.close(self._fd)
        self._fd = -1
        return Stored(self._file, Digest(f"sha256:{self._hash.hexdigest()}"), self._size)

    def discard(self) -> None:
        """Pass on what comes, keep no copy."""
        os.close(self._fd)
        self._fd = -1
        self._ingest.remove(self._file)


class Ingest:
    """The job's folder, empty at the start and thrown away by the daemon when the job is over."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._count = 0
        self._members: dict[str, Stored] = {}
        self._links: dict[str, str] = {}
        self._others: dict[str, int] = {}
        self._by_digest: dict[Digest, Stored] = {}
        self._used: dict[Digest, Stored] = {}

    @property
    def fd(self) -> int:
        return self._fd

    def create(self) -> tuple[str, int]:
        """A new empty file: its name in the folder and a descriptor, which belongs to the caller."""
        self._count += 1
        name = f"{self._count:06d}"
        return name, os.open(name, _NEW, 0o600, dir_fd=self._fd)

    def remove(self, file: str) -> None:
        os.unlink(file, dir_fd=self._fd)

    def open(self, stored: Stored) -> int:
        return os.open(stored.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)

    def receive(self, source: Source) -> None:
        """Store every member of the tar. TarError."""
        reader = Reader(source, _MEMBERS)
        for member in reader:
            path = _path(member)
            if not path:
                continue
            if path in self._members or path in self._links or (path in self._others and member.kind != 0x35):
                raise TarError(f"duplicates of file paths not supported: {shown(member.name)}")
            if member.kind == 0x30:
                self._members[path] = self._keep(reader)
            elif member.kind == 0x32:
                self._links[path] = _inside(str(PurePosixPath(path).parent), member)
            elif member.kind == 0x31:
                self._links[path] = _inside("", member)
            else:
                self._others[path] = member.kind
        reader.drain()

    def _keep(self, reader: Reader) -> Stored:
        hashed, size = hashlib.sha256(), 0
        file, fd = self.create()
        try:
            for chunk in reader.chunks():
                hashed.update(chunk)
                size += len(chunk)
                write_all(fd, chunk)
        finally:
            os.close(fd)
        stored = Stored(file, Digest(f"sha256:{hashed.hexdigest()}"), size)
        # Old archives hold the same layer several times; one copy will do.
        if (known := self._by_digest.get(stored.digest)) is not None:
            self.remove(file)
            return known
        self._by_digest[stored.digest] = stored
        return stored

    def has(self, path: str) -> bool:
        return path in self._members or path in self._links or path in self._others

    def get(self, path: str) -> Stored:
        """The regular file of that name, as the archive spells it. Invalid if there is none, or if it is a link."""
        name = _normal(path)
        if name in self._members:
            return self._members[name]
        if name in self._links or name in self._others:
            raise Invalid(f"archive member {_quoted(path)} is not a regular file")
        raise Invalid(f"archive member {_quoted(path)} is missing")

    def follow(self, path: str) -> Stored:
        """As `get`, but a link leads to another member of the archive: old `docker save` wrote shared layers so."""
        name = _normal(path)
        for _ in range(_LINKS_FOLLOWED):
            if name not in self._links:
                return self.get(name)
            name = self._links[name]
        raise Invalid(f"archive member {_quoted(path)}: too many levels of links")

    def find(self, digest: Digest) -> Stored | None:
        """The blob of that digest in the archive's OCI layout. Invalid if the bytes there have another digest."""
        algorithm, _, encoded = digest.partition(":")
        path = f"blobs/{algorithm}/{encoded}"
        if not self.has(path):
            return None
        stored = self.get(path)
        actual: str = stored.digest
        if algorithm != "sha256":
            with os.fdopen(self.open(stored), "rb") as file:
                actual = f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
        if actual != digest:
            raise Invalid(f"archive member {_quoted(path)} has the digest {actual}")
        return stored

    def document(self, stored: Stored, what: str) -> bytes:
        """The bytes of a small file. Invalid if it is larger than 4 MiB."""
        if stored.size > DOCUMENT_LIMIT:
            raise Invalid(f"{what} is larger than {DOCUMENT_LIMIT} bytes")
        with os.fdopen(self.open(stored), "rb") as file:
            return file.read()

    def write(self, data: bytes) -> Stored:
        """Add a document of our own."""
        file, fd = self.create()
        try:
            write_all(fd, data)
        finally:
            os.close(fd)
        return Stored(file, Digest(f"sha256:{hashlib.sha256(data).hexdigest()}"), len(data))

    def use(self, stored: Stored, digest: Digest | None = None) -> None:
        """Mark a file as one of the job's results, under `digest` if its name is not the sha256 one."""
        self._used[digest or stored.digest] = stored

    def blobs(self) -> tuple[Blob, ...]:
        """All results; each file is named once."""
        return tuple(Blob(digest, stored.size, stored.file) for digest, stored in self._used.items())


def write_all(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])


def _path(member: Member) -> str:
    try:
        return b"/".join(components(member.name, _MEMBERS)).decode("utf-8")
    except UnicodeDecodeError:
        raise TarError(f"invalid entry name {shown(member.name)}") from None


def _inside(directory: str, member: Member) -> str:
    """The path in the archive that a link leads to. TarError if it leads out."""
    parts = [] if member.link.startswith(b"/") else [part for part in directory.split("/") if part not in ("", ".")]
    for part in member.link.decode("utf-8", "surrogateescape").split("/"):
        if part == ".." and not parts:
            raise TarError(f"archive member {shown(member.name)} is a link out of the archive")
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _normal(path: str) -> str:
    """The name under which `receive` filed a path of a document."""
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _quoted(path: str) -> str:
    return shown(path.encode("utf-8", "backslashreplace"))
