"""Writes tar archives: a directory tree as a layer or as a plain export, and single files from memory or a descriptor.

Runs in the store's worker, as root. The same tree gives the same bytes: names in byte order, no user names (NSS could
load an image's library, CVE-2019-14271), whole seconds as Docker writes them. Headers are ustar; a PAX header comes in
front only of what ustar cannot say. The tree is walked by descriptors and no link is followed (N1).

An overlay upper directory becomes a layer: character devices 0:0 turn into `.wh.` entries, directories marked opaque
get `.wh..wh..opq` (image spec layer.md; kernel overlayfs.rst). It must come from a mount without redirect_dir and
metacopy: directories renamed by reference cannot be told in a layer. Deliberately absent: sparse entries; holes are
written as zeros.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

__all__ = ["Header", "Writer", "create"]

_BLOCK = 512
_FLUSH = 1 << 18
_CHUNK = 1 << 20
_OPAQUE_ATTRIBUTE = "trusted.overlay.opaque"
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_DIRECTORY_FLAGS = _FILE_FLAGS | os.O_DIRECTORY
_KINDS = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}


class Header(NamedTuple):
    """One entry; `kind` is tar's type flag, `mtime` in seconds, `xattrs` pairs of full name and value."""

    name: bytes
    kind: bytes = b"0"
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()

    def encode(self) -> bytes:
        """The header block, with a PAX header in front if it needs one."""
        pax: list[tuple[bytes, bytes]] = []
        prefix, name = _split(self.name)
        if len(name) > 100 or not self.name.isascii():
            pax.append((b"path", self.name))
            prefix, name = b"", name[-100:]
        if len(self.link) > 100 or not self.link.isascii():
            pax.append((b"linkpath", self.link))
        for key, value, digits in ((b"size", self.size, 11), (b"uid", self.uid, 7), (b"gid", self.gid, 7)):
            if value >= 8**digits:
                pax.append((key, b"%d" % value))
        mtime = max(self.mtime, 0)
        if mtime >= 8**11:
            pax.append((b"mtime", b"%d" % mtime))
        pax += [(b"SCHILY.xattr." + key, value) for key, value in self.xattrs]
        block = _block(
            name, self.kind, self.mode, _fitting(self.uid, 7), _fitting(self.gid, 7), _fitting(self.size, 11),
            _fitting(mtime, 11), self.link[:100], prefix, self.major, self.minor,
        )  # fmt: skip
        if not pax:
            return block
        records = b"".join(_record(key, value) for key, value in sorted(pax))
        label = b"PaxHeaders.0/" + bytes(byte if 32 < byte < 127 else 0x5F for byte in name[-80:])
        meta = _block(label, b"x", 0o644, 0, 0, len(records), 0, b"", b"", 0, 0)
        return meta + records + bytes(-len(records) % _BLOCK) + block


class Writer:
    """Assembles an archive and hands it to `out` in pieces of about 256 KiB."""

    def __init__(self, out: Callable[[bytes], object]) -> None:
        self._out = out
        self._buffer = bytearray()

    def add(self, header: Header, content: bytes = b"") -> None:
        """An entry with its whole content; `header.size` is set from it."""
        self._put(header._replace(size=len(content)).encode())
        self._put(content)
        self._put(bytes(-len(content) % _BLOCK))

    def add_from(self, header: Header, fd: int) -> None:
        """An entry of `header.size` bytes read from `fd`. A file that shrank meanwhile is filled up with zeros."""
        self._put(header.encode())
        left = header.size
        while left:
            chunk = os.read(fd, min(left, _CHUNK))
            if not chunk:
                break
            left -= len(chunk)
            self._put(chunk)
        while left:
            self._put(bytes(min(left, _CHUNK)))
            left -= min(left, _CHUNK)
        self._put(bytes(-header.size % _BLOCK))

    def close(self) -> None:
        """The end mark; the rest is handed out."""
        self._put(bytes(2 * _BLOCK))
        self._out(bytes(self._buffer))
        self._buffer.clear()

    def _put(self, data: bytes) -> None:
        if len(data) >= _FLUSH:
            if self._buffer:
                self._out(bytes(self._buffer))
                self._buffer.clear()
            self._out(data)
            return
        self._buffer += data
        if len(self._buffer) >= _FLUSH:
            self._out(bytes(self._buffer))
            self._buffer.clear()


def create(root_fd: int, out: Callable[[bytes], object], *, whiteouts: bool = True) -> int:
    """Write the tree below the directory `root_fd` as an uncompressed tar; the number of entries.

    With `whiteouts` the tree is an overlay upper directory and the tar a layer; without, character devices 0:0 are
    left out. Sockets are left out, as by Docker; the root directory itself gets no entry.
    """
    writer = Writer(out)
    links: dict[tuple[int, int], bytes] = {}
    count = 0
    for directory, name, path, status in _walk(root_fd):
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            if whiteouts:
                parent = path[: len(path) - len(name)]
                writer.add(Header(parent + b".wh." + name, mode=0, mtime=int(status.st_mtime)))
                count += 1
        elif not stat.S_ISSOCK(status.st_mode):
            with contextlib.suppress(FileNotFoundError):  # a live tree: gone since it was listed
                count += _add(writer, directory, name, path, status, links, whiteouts=whiteouts)
    writer.close()
    return count


def _walk(root_fd: int) -> Iterator[tuple[int, bytes, bytes, os.stat_result]]:
    """(descriptor of the directory, name, path, status) of everything below, a directory before what is in it."""
    stack: list[tuple[int, bytes, Iterator[bytes]]] = [(root_fd, b"", iter(_names(root_fd)))]
    try:
        while stack:
            directory, path, names = stack[-1]
            name = next(names, None)
            if name is None:
                stack.pop()
                if stack:
                    os.close(directory)
                continue
            try:
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                yield directory, name, path + name, status
                if stat.S_ISDIR(status.st_mode):
                    fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=directory)
                    stack.append((fd, path + name + b"/", iter(_names(fd))))
            except FileNotFoundError:
                continue  # a live tree: gone since it was listed
    finally:
        for directory, _, _ in stack[1:]:
            os.close(directory)


def _names(fd: int) -> list[bytes]:
    return sorted(os.fsencode(name) for name in os.listdir(fd))


def _add(
    writer: Writer,
    directory: int,
    name: bytes,
    path: bytes,
    status: os.stat_result,
    links: dict[tuple[int, int], bytes],
    *,
    whiteouts: bool,
) -> int:
    """Add one thing, and the opaque mark of a directory; the number of entries."""
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    header = Header(path, kind, status.st_mode & 0o7777, status.st_uid, status.st_gid, mtime=int(status.st_mtime))
    if kind == b"5":
        return _add_directory(writer, directory, name, header, whiteouts=whiteouts)
    if status.st_nlink > 1:
        first = links.setdefault((status.st_dev, status.st_ino), path)
        if first != path:
            writer.add(header._replace(kind=b"1", link=first))
            return 1
    if kind == b"0":
        fd = os.open(name, _FILE_FLAGS, dir_fd=directory)
        try:
            writer.add_from(header._replace(size=os.fstat(fd).st_size, xattrs=_attributes(fd)), fd)
        finally:
            os.close(fd)
    elif kind == b"2":
        writer.add(header._replace(link=os.readlink(name, dir_fd=directory)))
    elif kind in (b"3", b"4"):
        writer.add(header._replace(major=os.major(status.st_rdev), minor=os.minor(status.st_rdev)))
    else:
        writer.add(header)
    return 1


def _add_directory(writer: Writer, directory: int, name: bytes, header: Header, *, whiteouts: bool) -> int:
    fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=directory)
    try:
        writer.add(header._replace(name=header.name + b"/", xattrs=_attributes(fd)))
        if not (whiteouts and _opaque(fd)):
            return 1
        writer.add(Header(header.name + b"/.wh..wh..opq", mode=0, mtime=header.mtime))
        return 2
    finally:
        os.close(fd)


def _opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, _OPAQUE_ATTRIBUTE) == b"y"
    except OSError:
        return False


def _attributes(fd: int) -> tuple[tuple[bytes, bytes], ...]:
    """What belongs into an image: the same set that tar.apply accepts."""
    try:
        names = os.listxattr(fd)
    except OSError:
        return ()  # this file system has none
    kept = sorted(
        name
        for name in names
        if name in ("security.capability", "system.posix_acl_access", "system.posix_acl_default")
        or (name.startswith("user.") and not name.startswith("user.overlay."))
    )
    return tuple((os.fsencode(name), os.getxattr(fd, name)) for name in kept)


def _split(name: bytes) -> tuple[bytes, bytes]:
    """ustar's prefix and name; ("", name) if it does not fit, or need not."""
    if len(name) <= 100:
        return b"", name
    at = name.rfind(b"/", 0, 156)
    # the part after the slash must not be empty and the slash itself is not stored
    if at <= 0 or at == len(name) - 1 or len(name) - at - 1 > 100:
        return b"", name
    return name[:at], name[at + 1 :]


def _fitting(value: int, digits: int) -> int:
    return value if value < 8**digits else 0


def _record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + len(str(len(body)))
    if len(body) + len(str(length)) != length:
        length += 1
    return str(length).encode() + body


def _block(
    name: bytes, kind: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, link: bytes,
    prefix: bytes, major: int, minor: int,
) -> bytes:  # fmt: skip
    head = name[:100].ljust(100, b"\0") + b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, uid, gid, size, mtime)
    tail = kind + link.ljust(100, b"\0") + b"ustar\x0000" + bytes(64) + b"%07o\0%07o\0" % (major, minor)
    tail += prefix.ljust(155, b"\0") + bytes(12)
    checksum = sum(head) + sum(tail) + 256
    return head + b"%06o\0 " % checksum + tail
