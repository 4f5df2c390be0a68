"""System calls that Python does not offer, by ctypes; each raises OSError(errno, "what was done", path).

Names, argument order and flags are those of the man pages. Structures are packed with `struct` instead of
ctypes.Structure: class objects would be paid for in every shim. Symbols are resolved at import, because the first use
of one in a forked child costs ~140 us of copy-on-write faults. Nothing here decides anything.
"""

from __future__ import annotations

import ctypes
import os
from errno import EAGAIN, EINTR
from struct import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "bpf",
    "capget_permitted",
    "capset",
    "close_range",
    "fsconfig_create",
    "fsconfig_set_flag",
    "fsconfig_set_string",
    "fsmount",
    "fsopen",
    "inotify_add_watch",
    "inotify_init1",
    "inotify_rm_watch",
    "keyctl_join_session",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_in_root",
    "open_tree",
    "openat2",
    "pidfd_open",
    "pivot_root",
    "prctl",
    "raise_errno",
    "renameat2",
    "reset_signal",
    "seccomp_set_mode_filter",
    "set_name",
    "setdomainname",
    "sethostname",
    "setns",
    "syscall",
    "umount2",
    "unshare",
]

Path = str | bytes

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# openat2(2), resolve
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# mount(2), umount2(2)
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2

# mount_setattr(2), fsmount(2)
MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_RELATIME = 0x00
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
OPEN_TREE_CLONE = 1

# clone(2), unshare(2), setns(2)
CLONE_NEWTIME = 0x80
CLONE_PIDFD = 0x1000
CLONE_PARENT = 0x8000
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

# prctl(2)
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

CLOSE_RANGE_CLOEXEC = 4
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4
KEYCTL_JOIN_SESSION_KEYRING = 1

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800

_MACHINE = os.uname().machine
# Numbers below 424 differ by architecture: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h.
_OLD = {"x86_64": (155, 317, 321, 250, 125, 126), "aarch64": (41, 277, 280, 219, 90, 91)}
if _MACHINE not in _OLD:
    raise ImportError(f"tare knows the system call numbers of {', '.join(_OLD)}, not of {_MACHINE}")
_NR_PIVOT_ROOT, _NR_SECCOMP, _NR_BPF, _NR_KEYCTL, _NR_CAPGET, _NR_CAPSET = _OLD[_MACHINE]
_NR_RT_SIGACTION = {"x86_64": 13, "aarch64": 134}[_MACHINE]
_NR_OPEN_TREE, _NR_MOVE_MOUNT, _NR_FSOPEN, _NR_FSCONFIG, _NR_FSMOUNT = 428, 429, 430, 431, 432
_NR_CLOSE_RANGE, _NR_OPENAT2, _NR_MOUNT_SETATTR = 436, 437, 442

_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6

# PyDLL keeps the interpreter lock across the call: every one here is short, and in a single-threaded process handing
# the lock over would be two needless futex calls.
_libc = ctypes.PyDLL(None, use_errno=True)
_long = ctypes.c_long
_P, _I, _U, _N = ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_size_t


def _typed(number: int, *types: Any) -> Any:
    """syscall(2) with fixed argument types: conversion in C takes a third of the time of converting here."""
    function = _libc["syscall"]  # indexing, unlike an attribute, makes a new function object each time
    function.restype = _long
    function.argtypes = (_long, *types)
    return lambda *arguments: function(number, *arguments)


_syscall = _libc["syscall"]
_syscall.restype = _long
_openat2 = _typed(_NR_OPENAT2, _I, _P, _P, _N)
_open_tree = _typed(_NR_OPEN_TREE, _I, _P, _U)
_move_mount = _typed(_NR_MOVE_MOUNT, _I, _P, _I, _P, _U)
_fsopen = _typed(_NR_FSOPEN, _P, _U)
_fsconfig = _typed(_NR_FSCONFIG, _I, _U, _P, _P, _I)
_fsmount = _typed(_NR_FSMOUNT, _I, _U, _U)
_mount_setattr = _typed(_NR_MOUNT_SETATTR, _I, _P, _U, _P, _N)
_mount, _umount2, _unshare, _setns, _prctl = _libc.mount, _libc.umount2, _libc.unshare, _libc.setns, _libc.prctl
_prctl.argtypes = (_I, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_renameat2 = _libc.renameat2
_inotify_init1, _inotify_add_watch, _inotify_rm_watch = (
    _libc.inotify_init1,
    _libc.inotify_add_watch,
    _libc.inotify_rm_watch,
)


def _bytes(path: Path) -> bytes:
    data = path if isinstance(path, bytes) else os.fsencode(path)
    if b"\0" in data:
        raise ValueError("embedded NUL in a path")
    return data


def raise_errno(act: str, path: Path | None = None) -> None:
    """Raise OSError for the errno of the last call."""
    number = ctypes.get_errno()
    text = f"{act}: {os.strerror(number)}"
    raise OSError(number, text, path) if path is not None else OSError(number, text)


def syscall(act: str, number: int, *arguments: int | bytes | None, path: Path | None = None) -> int:
    """The raw call; integers are passed as long, bytes as a pointer to them."""
    converted = [_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = _syscall(_long(number), *converted)
    if result == -1:
        raise_errno(act, path)
    return result


def openat2(dirfd: int, path: Path, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2) with O_CLOEXEC always set. A new descriptor."""
    # struct open_how: flags, mode, resolve
    fd: int = _openat2(dirfd, _bytes(path), pack("QQQ", flags | os.O_CLOEXEC, mode, resolve), 24)
    if fd < 0:
        raise_errno("openat2", path)
    return fd


def open_in_root(rootfd: int, path: Path, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` as a process chrooted to `rootfd` would, magic links refused (N1). A new descriptor.

    RESOLVE_IN_ROOT answers EAGAIN when a rename somewhere made ".." unprovable; such a race is retried.
    """
    for _ in range(128):
        try:
            return openat2(rootfd, path, flags, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | resolve)
        except OSError as error:
            if error.errno not in (EAGAIN, EINTR):
                raise
    raise OSError(EAGAIN, "openat2: the path keeps changing", path)


def fsopen(fstype: str) -> int:
    """fsopen(2): a configuration context. A new descriptor."""
    fd: int = _fsopen(fstype.encode(), 1)  # FSOPEN_CLOEXEC
    if fd < 0:
        raise_errno(f"open file system {fstype}")
    return fd


def fsconfig_set_string(fd: int, key: str, value: Path) -> None:
    if _fsconfig(fd, _FSCONFIG_SET_STRING, key.encode(), _bytes(value), 0):
        raise_errno(f"set mount option {key}", value)


def fsconfig_set_flag(fd: int, key: str) -> None:
    if _fsconfig(fd, _FSCONFIG_SET_FLAG, key.encode(), None, 0):
        raise_errno(f"set mount option {key}")


def fsconfig_create(fd: int) -> None:
    """Make the superblock of the context."""
    if _fsconfig(fd, _FSCONFIG_CMD_CREATE, None, None, 0):
        raise_errno("create file system")


def fsmount(fd: int, attributes: int = 0) -> int:
    """A detached mount of the context. A new descriptor."""
    mounted: int = _fsmount(fd, 1, attributes)  # FSMOUNT_CLOEXEC
    if mounted < 0:
        raise_errno("fsmount")
    return mounted


def open_tree(dirfd: int, path: Path, flags: int) -> int:
    """open_tree(2) with O_CLOEXEC; OPEN_TREE_CLONE makes a detached bind mount. A new descriptor."""
    fd: int = _open_tree(dirfd, _bytes(path), flags | os.O_CLOEXEC)
    if fd < 0:
        raise_errno("open_tree", path or None)
    return fd


def move_mount(from_fd: int, to_fd: int) -> None:
    """Attach the detached mount `from_fd` at the place `to_fd` stands for; no name is looked up again."""
    # MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    if _move_mount(from_fd, b"", to_fd, b"", 0x04 | 0x40):
        raise_errno("move_mount")


def mount_setattr(
    fd: int, attr_set: int = 0, attr_clr: int = 0, *, propagation: int = 0, userns_fd: int = 0, recursive: bool = False
) -> None:
    """Change mount attributes of the mount `fd` stands for; `propagation` is one of MS_PRIVATE, MS_SLAVE, MS_SHARED."""
    attributes = pack("QQQQ", attr_set, attr_clr, propagation, userns_fd)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    if _mount_setattr(fd, b"", flags, attributes, len(attributes)):
        raise_errno("mount_setattr")


def mount(source: Path, target: Path, fstype: str, flags: int, data: str = "") -> None:
    """mount(2). `data` of more than 4095 bytes is refused: the kernel would cut it without a word."""
    if len(data) > 4095:
        raise ValueError(f"mount options of {len(data)} bytes exceed one page")
    result = _mount(_bytes(source), _bytes(target), fstype.encode(), ctypes.c_ulong(flags), data.encode() or None)
    if result:
        raise_errno("mount", target)


def umount2(target: Path, flags: int) -> None:
    if _umount2(_bytes(target), flags):
        raise_errno("umount2", target)


def pivot_root(new_root: Path, put_old: Path) -> None:
    syscall("pivot_root", _NR_PIVOT_ROOT, _bytes(new_root), _bytes(put_old), path=new_root)


def unshare(flags: int) -> None:
    if _unshare(flags):
        raise_errno("unshare")


def setns(fd: int, nstype: int) -> None:
    """setns(2) with a namespace descriptor, or with a pidfd and any set of CLONE_NEW* flags."""
    if _setns(fd, nstype):
        raise_errno("setns")


def prctl(option: int, second: int = 0, third: int = 0) -> int:
    result: int = _prctl(option, second, third, 0, 0)
    if result == -1:
        raise_errno(f"prctl {option}")
    return result


def set_name(name: str) -> None:
    """The 15 bytes of /proc/self/comm (prctl(2), PR_SET_NAME)."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of this thread; bit masks by capability number."""
    header = pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    low, high = 0xFFFFFFFF, 32
    data = pack(
        "6I", effective & low, permitted & low, inheritable & low,
        effective >> high, permitted >> high, inheritable >> high,
    )  # fmt: skip
    syscall("capset", _NR_CAPSET, header, data)


def capget_permitted() -> int:
    """The permitted set of this thread as a bit mask, capget(2)."""
    header = pack("Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    if _syscall(_long(_NR_CAPGET), header, data):
        raise_errno("capget")
    return int.from_bytes(data.raw[4:8], "little") | int.from_bytes(data.raw[16:20], "little") << 32


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    syscall("close_range", _NR_CLOSE_RANGE, first, last, flags)


def pidfd_open(pid: int) -> int:
    """os.pidfd_open, under the name the rest of this module uses."""
    return os.pidfd_open(pid)


def sethostname(name: str) -> None:
    data = name.encode()
    if _libc.sethostname(data, len(data)):
        raise_errno("sethostname", name)


def setdomainname(name: str) -> None:
    data = name.encode()
    if _libc.setdomainname(data, len(data)):
        raise_errno("setdomainname", name)


def renameat2(olddirfd: int, oldpath: Path, newdirfd: int, newpath: Path, flags: int) -> None:
    if _renameat2(olddirfd, _bytes(oldpath), newdirfd, _bytes(newpath), flags):
        raise_errno("renameat2", newpath)


def seccomp_set_mode_filter(program: bytes) -> None:
    """Install `program`, an array of struct sock_filter (8 bytes each), on this thread. Irrevocable.

    SPEC_ALLOW as runc: without it kernels before 5.16 turn speculative store bypass off, at a price.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    syscall("seccomp", _NR_SECCOMP, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, fprog)


def reset_signal(number: int) -> None:
    """SIG_DFL by rt_sigaction(2) itself: also for 32 and 33, which libc keeps and a starter may have ignored."""
    # struct kernel_sigaction of zeros: handler, flags, restorer, mask
    syscall("rt_sigaction", _NR_RT_SIGACTION, number, bytes(32), None, 8)


def keyctl_join_session(name: str) -> None:
    """A fresh session keyring, so that the container cannot search its starter's."""
    syscall("keyctl", _NR_KEYCTL, KEYCTL_JOIN_SESSION_KEYRING, name.encode())


def bpf(command: int, attributes: bytes) -> int:
    """bpf(2) with a packed union bpf_attr. A new descriptor or 0."""
    return syscall("bpf", _NR_BPF, command, attributes, len(attributes))


def inotify_init1(flags: int = os.O_CLOEXEC | os.O_NONBLOCK) -> int:
    fd: int = _inotify_init1(flags)
    if fd == -1:
        raise_errno("inotify_init1")
    return fd


def inotify_add_watch(fd: int, path: Path, mask: int) -> int:
    watch: int = _inotify_add_watch(fd, _bytes(path), ctypes.c_uint32(mask))
    if watch == -1:
        raise_errno("inotify_add_watch", path)
    return watch


def inotify_rm_watch(fd: int, watch: int) -> None:
    if _inotify_rm_watch(fd, watch):
        raise_errno("inotify_rm_watch")
