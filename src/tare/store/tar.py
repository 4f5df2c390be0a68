"""Unpacks a layer tar below a directory, and nowhere else.

Runs in the store's worker, as root. Every file is made relative to the descriptor of its directory with O_EXCL or its
like, so nothing that exists is opened, followed or written to; directories are found by openat2(RESOLVE_IN_ROOT), so a
link inside the archive leads at most to the root of the tree (N1; CVE-2014-9356, CVE-2018-15664, CVE-2025-47290).

Whiteouts become overlayfs' own marks: `.wh.x` a character device 0:0, `.wh..wh..opq` the attribute
trusted.overlay.opaque (image spec layer.md; kernel overlayfs.rst). They hide lower layers only: a name that the same
layer also brings survives, whichever comes first.

Stricter than Docker, each for a reason: trusted.overlay.* and user.overlay.* are stripped (an image must not steer
overlayfs), of the other attributes only security.capability, POSIX ACLs and user.* are kept; ids outside 0..2^32-2 are
refused (cut to 32 bits they would become root, or "unchanged"); ".." is refused everywhere. A path that comes twice is
refused as by Docker, except for directories.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from errno import EEXIST, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, ENOTSUP, EPERM, EXDEV
from typing import Literal, NamedTuple

from tare.linux.libc import open_in_root
from tare.store.tarread import DEFAULT_LIMITS, Limits, Member, Reader, Source, TarError, components, shown

__all__ = ["Applied", "Limits", "TarError", "apply"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_OPAQUE_ATTRIBUTE = "trusted.overlay.opaque"
_NOBODY = (1 << 32) - 2
"""The largest id: 2^32-1 means "leave as it is" to chown(2)."""
_CACHED_DIRECTORIES = 200
"""Descriptors kept open; a soft RLIMIT_NOFILE is 1024 almost everywhere. Deeper trees come back after eviction."""
_LINKS_FOLLOWED = 40
"""As many as the kernel follows before ELOOP."""


class Applied(NamedTuple):
    """`size` bytes of file content; `entries` members, not counting headers that only describe the next."""

    size: int
    entries: int


def apply(
    source: Source, root_fd: int, *, limits: Limits = DEFAULT_LIMITS, whiteouts: Literal["overlay", "none"] = "overlay"
) -> Applied:
    """Unpack an uncompressed tar into the directory `root_fd`; reads `source` to its end.

    With whiteouts "none", `.wh.` names are ordinary files. TarError if the archive is bad, OSError if the machine
    fails; the tree is then half made and the caller removes it. Sets the umask to 0 meanwhile: one thread only.
    """
    reader = Reader(source, limits)
    tree = _Tree(root_fd, limits, overlay=whiteouts == "overlay")
    umask = os.umask(0)
    members = 0
    try:
        for member in reader:
            tree.add(member, reader)
            members += 1
        tree.finish()
    finally:
        os.umask(umask)
        tree.close()
    reader.drain()
    return Applied(reader.content, members)


class _Tree:
    """The tree being made. Directories are known by their path in the archive, without leading "/"."""

    def __init__(self, root_fd: int, limits: Limits, *, overlay: bool) -> None:
        self._root = root_fd
        self._limits = limits
        self._overlay = overlay
        self._open: dict[bytes, int] = {b"": root_fd}
        self._directories: dict[bytes, tuple[int, int]] = {}  # path -> mtime, mode if it has setgid, else -1
        self._hidden: set[bytes] = set()  # paths this layer has whiteouts for
        self._opaque: set[bytes] = set()
        self._uid, self._gid = os.geteuid(), os.getegid()

    def add(self, member: Member, reader: Reader) -> None:
        parts = components(member.name, self._limits)
        if not (0 <= member.uid <= _NOBODY and 0 <= member.gid <= _NOBODY):
            raise TarError(f"{shown(member.name)} has an owner out of range: {member.uid}:{member.gid}")
        if not parts:
            self._set_root(member)
            return
        name = parts[-1]
        parent = b"/".join(parts[:-1])
        self._evict()
        try:
            if self._overlay and name.startswith(_WHITEOUT):
                self._whiteout(parent, name, member)
                return
            self._make(parent, name, member, reader)
        except OSError as error:
            raise _explained(error, member.name) from error

    def finish(self) -> None:
        """Directories get their times last, as every file made inside touched them; setgid too, as it is inherited."""
        for path, (mtime, mode) in self._directories.items():
            self._evict()
            if not path:
                if mode >= 0:
                    os.fchmod(self._root, mode)
                os.utime(self._root, ns=(mtime, mtime))
                continue
            parent, _, name = path.rpartition(b"/")
            fd = self._directory(parent)
            if mode >= 0:
                os.chmod(name, mode, dir_fd=fd)
            os.utime(name, ns=(mtime, mtime), dir_fd=fd, follow_symlinks=False)

    def close(self) -> None:
        for path, fd in self._open.items():
            if path:
                os.close(fd)
        self._open = {b"": self._root}

    # Entries

    def _make(self, parent: bytes, name: bytes, member: Member, reader: Reader) -> None:
        kind = member.kind
        fd = self._open.get(parent)
        if fd is None:
            fd = self._directory(parent)
        if kind == 0x30:
            self._file(fd, parent, name, member, reader)
            return
        if kind == 0x35:
            self._make_directory(fd, parent, name, member)
            return
        try:
            self._node(fd, name, member)
        except FileExistsError:
            self._replace(fd, parent, name, member)
            self._node(fd, name, member)
        if kind == 0x31:
            return  # the file is there already, with owner, mode and times
        if member.uid != self._uid or member.gid != self._gid:
            os.chown(name, member.uid, member.gid, dir_fd=fd, follow_symlinks=False)
        os.utime(name, ns=(member.mtime, member.mtime), dir_fd=fd, follow_symlinks=False)

    def _file(self, directory: int, parent: bytes, name: bytes, member: Member, reader: Reader) -> None:
        mode = member.mode
        try:
            fd = os.open(name, _NEW_FILE, mode & 0o1777, dir_fd=directory)
        except FileExistsError:
            self._replace(directory, parent, name, member)
            fd = os.open(name, _NEW_FILE, mode & 0o1777, dir_fd=directory)
        try:
            if member.size:
                reader.copy(fd)
            # Owner, then mode, then attributes: chown(2) clears setuid and security.capability.
            if member.uid != self._uid or member.gid != self._gid:
                os.fchown(fd, member.uid, member.gid)
            if mode & 0o6000:
                os.fchmod(fd, mode)
            if member.xattrs:
                _set_attributes(fd, member.xattrs)
            os.utime(fd, ns=(member.mtime, member.mtime))
        finally:
            os.close(fd)

    def _node(self, directory: int, name: bytes, member: Member) -> None:
        """A link, device or FIFO; FileExistsError if the name is taken."""
        kind, mode = member.kind, member.mode & 0o1777
        if kind == 0x31:
            self._link(directory, name, member)
        elif kind == 0x32:
            if not member.link or len(member.link) > self._limits.name:
                raise TarError(f"{shown(member.name)} is a symbolic link with an invalid target")
            os.symlink(member.link, name, dir_fd=directory)
        elif kind == 0x36:
            os.mkfifo(name, mode, dir_fd=directory)
        else:
            major, minor = member.device
            if major >= 1 << 12 or minor >= 1 << 20:
                raise TarError(f"{shown(member.name)} has a device number out of range: {major}:{minor}")
            mode |= stat.S_IFCHR if kind == 0x33 else stat.S_IFBLK
            os.mknod(name, mode, os.makedev(major, minor), dir_fd=directory)

    def _link(self, directory: int, name: bytes, member: Member) -> None:
        try:
            parts = components(member.link, self._limits)
        except TarError:
            parts = []
        if not parts:
            raise TarError(f"invalid hardlink target {shown(member.link)}")
        try:
            source = self._find(b"/".join(parts[:-1]))
            os.link(parts[-1], name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno in (ENOENT, ENOTDIR):
                target = shown(member.link)
                raise TarError(f"hard link {shown(member.name)} to {target}: no such file in this layer") from None
            if error.errno in (EPERM, EXDEV):
                raise TarError(f"hard link {shown(member.name)} to {shown(member.link)}: not a file") from None
            raise

    def _make_directory(self, directory: int, parent: bytes, name: bytes, member: Member) -> None:
        path = parent + b"/" + name if parent else name
        mode = member.mode
        try:
            os.mkdir(name, mode & 0o1777, dir_fd=directory)
        except FileExistsError:
            if self._directory_there(directory, parent, name, member):
                os.chmod(name, mode & 0o1777, dir_fd=directory)
        if member.uid != self._uid or member.gid != self._gid:
            os.chown(name, member.uid, member.gid, dir_fd=directory, follow_symlinks=False)
        if member.xattrs:
            _set_attributes(self._directory(path), member.xattrs)
        self._directories[path] = (member.mtime, mode if mode & 0o6000 else -1)

    def _directory_there(self, directory: int, parent: bytes, name: bytes, member: Member) -> bool:
        """True if the taken name is a directory; if it was a whiteout, that is now an opaque directory."""
        if stat.S_ISDIR(_lstat(name, directory).st_mode):
            return True
        self._replace(directory, parent, name, member)
        os.mkdir(name, member.mode & 0o1777, dir_fd=directory)
        self._set_opaque(parent + b"/" + name if parent else name)
        return False

    def _set_root(self, member: Member) -> None:
        """The entry "./": owner, mode and time of the tree's root."""
        if member.kind != 0x35:
            raise TarError('cannot overwrite directory "." with non-directory')
        os.fchown(self._root, member.uid, member.gid)
        os.fchmod(self._root, member.mode & 0o1777)
        if member.xattrs:
            _set_attributes(self._root, member.xattrs)
        self._directories[b""] = (member.mtime, member.mode if member.mode & 0o6000 else -1)

    def _replace(self, directory: int, parent: bytes, name: bytes, member: Member) -> None:
        """Clear a taken name if only this layer's whiteout holds it; TarError otherwise."""
        path = parent + b"/" + name if parent else name
        if path in self._hidden:
            os.unlink(name, dir_fd=directory)
            self._hidden.remove(path)
            return
        if stat.S_ISDIR(_lstat(name, directory).st_mode):
            raise TarError(f"cannot overwrite directory {shown(member.name)} with non-directory")
        raise TarError(f"duplicates of file paths not supported: {shown(member.name)}")

    # Whiteouts

    def _whiteout(self, parent: bytes, name: bytes, member: Member) -> None:
        if name == _OPAQUE:
            self._directory(parent)
            if parent in self._opaque:
                raise TarError(f"duplicates of file paths not supported: {shown(member.name)}")
            self._set_opaque(parent)
            return
        hidden = name[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise TarError(f"invalid whiteout entry {shown(member.name)}")
        if hidden.startswith(_WHITEOUT):
            return  # AUFS kept its books under .wh..wh.*; nothing else may be named so (layer.md)
        path = parent + b"/" + hidden if parent else hidden
        if path in self._hidden:
            raise TarError(f"duplicates of file paths not supported: {shown(member.name)}")
        fd = self._directory(parent)
        try:
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=fd)
        except FileExistsError:
            # A file of this layer hides its lower name by being there; a directory would be merged.
            if stat.S_ISDIR(_lstat(hidden, fd).st_mode):
                self._set_opaque(path)
            return
        self._hidden.add(path)

    def _set_opaque(self, path: bytes) -> None:
        os.setxattr(self._directory(path), _OPAQUE_ATTRIBUTE, b"y")
        self._opaque.add(path)

    # Directories

    def _directory(self, path: bytes) -> int:
        """A descriptor of the directory, made with its parents if missing. It stays ours: do not close it."""
        fd = self._open.get(path)
        if fd is not None:
            return fd
        try:
            fd = open_in_root(self._root, path, _DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            fd = self._create(path, _LINKS_FOLLOWED)
        return self._keep(path, fd)

    def _find(self, path: bytes) -> int:
        """As `_directory`, but it has to be there."""
        fd = self._open.get(path)
        return fd if fd is not None else self._keep(path, open_in_root(self._root, path, _DIRECTORY))

    def _keep(self, path: bytes, fd: int) -> int:
        """Remember an open directory. A path keeps its meaning: nothing is renamed, no directory becomes a link."""
        self._open[path] = fd
        return fd

    def _evict(self) -> None:
        """Close the older half of the descriptors when there are many. Only between entries: they are in use within."""
        if len(self._open) > _CACHED_DIRECTORIES:
            for old in list(self._open)[1 : _CACHED_DIRECTORIES // 2]:
                os.close(self._open.pop(old))

    def _create(self, path: bytes, links: int) -> int:
        """Make the directory `path` and its parents, through dangling links too. A new descriptor."""
        if links < 0:
            raise OSError(ELOOP, "too many levels of symbolic links", path)
        directory, made = os.dup(self._root), b""
        try:
            parts = path.split(b"/")
            for index, name in enumerate(parts):
                made = made + b"/" + name if made else name
                try:
                    child = open_in_root(self._root, made, _DIRECTORY)
                except (FileNotFoundError, NotADirectoryError):
                    target = self._step(directory, made, name)
                    if target is not None:
                        return self._create(b"/".join([*target, *parts[index + 1 :]]), links - 1)
                    child = open_in_root(self._root, made, _DIRECTORY)
                os.close(directory)
                directory = child
            return os.dup(directory)
        finally:
            os.close(directory)

    def _step(self, directory: int, made: bytes, name: bytes) -> list[bytes] | None:
        """Make one missing directory; if a dangling link has its name, the path (from the root) it stands for."""
        try:
            os.mkdir(name, 0o755, dir_fd=directory)
            return None
        except FileExistsError:
            pass
        if made in self._hidden:
            os.unlink(name, dir_fd=directory)
            self._hidden.remove(made)
            os.mkdir(name, 0o755, dir_fd=directory)
            self._set_opaque(made)
            return None
        if not stat.S_ISLNK(_lstat(name, directory).st_mode):
            raise NotADirectoryError(ENOTDIR, "not a directory", made)
        link = os.readlink(name, dir_fd=directory)
        # ".." is cut as text: what is missing has no parents but those its name says. The kernel then resolves the
        # result from the root again, so a wrong guess is at worst another place inside the tree.
        found: list[bytes] = [] if link.startswith(b"/") else made.split(b"/")[:-1]
        for part in link.split(b"/"):
            if part == b"..":
                found = found[:-1]
            elif part not in (b"", b"."):
                found.append(part)
        if not found or len(found) > self._limits.depth:
            raise OSError(ENOENT, "no such directory", made)
        return found


def _lstat(name: bytes, directory: int) -> os.stat_result:
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def _set_attributes(fd: int, attributes: Iterable[tuple[bytes, bytes]]) -> None:
    """Set those that an image may have; a file system that knows no such attribute is no error, as in go-archive."""
    for name, value in attributes:
        kept = name in (b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default")
        if not kept and (not name.startswith(b"user.") or name.startswith(b"user.overlay.")):
            continue
        try:
            os.setxattr(fd, name, value)
        except OSError as error:
            if error.errno not in (ENOTSUP, EPERM):
                raise


def _explained(error: OSError, name: bytes) -> Exception:
    """What the archive is to blame for becomes a TarError; the rest stays the kernel's, with the entry's name."""
    if error.errno in (ELOOP, ENOTDIR, ENOENT, EEXIST, EINVAL, ENAMETOOLONG):
        return TarError(f"{shown(name)}: {os.strerror(error.errno).lower()}")
    return OSError(error.errno, f"unpack {shown(name)}: {os.strerror(error.errno or 0)}")
