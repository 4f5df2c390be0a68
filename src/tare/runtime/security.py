"""Rights of the process about to become the user's: identity, capabilities, rlimits, seccomp. No I/O by name.

Runs in init, after the root is the image's: nothing is imported, looked up by NSS or executed here (rule 2, N6, N8).
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Mapping
from contextlib import suppress

from tare.linux import libc, proc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["CAPABILITIES", "Identity", "NoSuchUser", "become", "capability_mask", "resolve_user", "set_rlimits"]

CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
    "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split(" ")
"""Names by number, capabilities(7)."""

_FILE_LIMIT = 1 << 20
"""Bytes of passwd or group that are read (N6); a larger file is refused, not cut."""
_LAST_CAPABILITY = int(proc.read("/proc/sys/kernel/cap_last_cap"))
"""Read once on the host: later /proc is the container's (N2)."""
_ID_MAX = (1 << 31) - 1


class NoSuchUser(Exception):
    """The name is in neither file, or is no valid number; the text is Docker's."""


class Identity:
    """Numbers a process runs with."""

    __slots__ = ("gid", "groups", "home", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], home: str) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home


def _number(text: str) -> int | None:
    """Strict ASCII digits within 0..2^31-1 (CVE-2024-40635), None for a name."""
    if not text.isascii() or not text.isdigit():
        return None
    value = int(text) if len(text) <= 10 else _ID_MAX + 1
    if value > _ID_MAX:
        raise NoSuchUser(f"uids and gids must be in range 0-{_ID_MAX}")
    return value


def _records(root: int, path: str, fields: int) -> list[list[str]]:
    """Lines of a passwd-like file of the image; a missing file has none. Only a regular file is read (N3)."""
    try:
        fd = libc.open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise NoSuchUser(f"/{path} of the image is not a regular file")
        if found.st_size > _FILE_LIMIT:
            raise NoSuchUser(f"/{path} of the image is larger than {_FILE_LIMIT} bytes")
        data = b""
        while len(data) <= _FILE_LIMIT and (chunk := os.read(fd, 65536)):
            data += chunk
    finally:
        os.close(fd)
    split = [line.split(":") for line in data.decode("utf-8", "surrogateescape").split("\n")]
    return [record for record in split if len(record) >= fields]


def resolve_user(root: int, user: str, further: list[str]) -> Identity:
    """ "name|uid[:group|gid]" and --group-add by the image's own files, as Docker: numbers are never taken for names.

    A number without an entry has gid 0 and HOME "/"; groups that list the user's name are joined unless a group was
    given.
    """
    name, colon, group = user.partition(":")
    passwd = _records(root, "etc/passwd", 7)
    uid = _number(name) if name else 0
    entry = next(
        (r for r in passwd if (r[0] == name if uid is None else _plain(r[2]) == uid)),
        None,
    )
    if entry is None and uid is None:
        raise NoSuchUser(f"unable to find user {name}: no matching entries in passwd file")
    if uid is None:
        assert entry is not None
        uid = _plain(entry[2])
        if uid is None:
            raise NoSuchUser(f"unable to find user {name}: its entry in the passwd file has no valid uid")
    gid = (_plain(entry[3]) or 0) if entry else 0
    home = entry[5] if entry and entry[5] else "/"
    groups: list[int] = []
    records = _records(root, "etc/group", 4) if group or further or entry else []
    if group:
        gid = _group(records, group)
    elif entry:
        member = entry[0]
        groups = [g for r in records if member in r[3].split(",") and (g := _plain(r[2])) is not None]
    groups += [_group(records, extra) for extra in further]
    return Identity(uid, gid, sorted({gid, *groups}), home)


def _plain(text: str) -> int | None:
    try:
        return _number(text)
    except NoSuchUser:
        return None


def _group(records: list[list[str]], group: str) -> int:
    number = _number(group)
    if number is not None:
        return number
    for record in records:
        if record[0] == group and (gid := _plain(record[2])) is not None:
            return gid
    raise NoSuchUser(f"unable to find group {group}: no matching entries in group file")


def capability_mask(names: list[str]) -> int:
    """Bit mask of OCI names ("CAP_CHOWN"); unknown names are left out, as the runtime-spec allows."""
    mask = 0
    for name in names:
        short = name.removeprefix("CAP_")
        if short in CAPABILITIES:
            mask |= 1 << CAPABILITIES.index(short)
    return mask


def set_rlimits(rlimits: list[dict[str, Any]]) -> None:
    """OCI process.rlimits of this process. Above our own hard limit without CAP_SYS_RESOURCE: as much as there is."""
    for limit in rlimits:
        number = 10 if limit["type"] == "RLIMIT_LOCKS" else getattr(resource, limit["type"])  # not in the module
        soft, hard = (
            resource.RLIM_INFINITY if value < 0 or value >= 1 << 63 else value
            for value in (int(limit["soft"]), int(limit["hard"]))
        )
        try:
            resource.setrlimit(number, (soft, hard))
        except ValueError:  # Python's word for EPERM here
            own = resource.getrlimit(number)[1]
            resource.setrlimit(number, (own if soft < 0 or soft > own >= 0 else soft, own))


def become(identity: Identity, process: Mapping[str, Any], bpf: bytes) -> None:
    """Drop everything the user's program must not have. The order is the contract:

    bounding set while CAP_SETPCAP is there; seccomp before the capabilities go, because without no_new_privs it needs
    CAP_SYS_ADMIN (0.37 ms for the tree-shaped default), or last of all with it; groups before the uid.
    """
    capabilities = process.get("capabilities") or {}
    bounding = capability_mask(capabilities.get("bounding") or [])
    effective = capability_mask(capabilities.get("effective") or [])
    permitted = capability_mask(capabilities.get("permitted") or [])
    inheritable = capability_mask(capabilities.get("inheritable") or [])
    ambient = capability_mask(capabilities.get("ambient") or [])
    no_new_privs = bool(process.get("noNewPrivileges"))
    for number in range(_LAST_CAPABILITY + 1):
        if not bounding >> number & 1:
            libc.prctl(libc.PR_CAPBSET_DROP, number)
    if no_new_privs:
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    elif bpf:
        libc.seccomp_set_mode_filter(bpf)
    libc.prctl(libc.PR_SET_KEEPCAPS, 1)
    os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    libc.prctl(libc.PR_SET_KEEPCAPS, 0)
    # Docker too grants "all" as "all that this host's root has": a bounding set without CAP_SYS_RESOURCE is common.
    own = libc.capget_permitted()
    libc.capset(effective & own, permitted & own, inheritable & own)
    if ambient:
        for number in range(_LAST_CAPABILITY + 1):
            if ambient >> number & 1:
                with suppress(PermissionError):  # not inheritable or not ours: left out, as runc and crun do
                    libc.prctl(libc.PR_CAP_AMBIENT, libc.PR_CAP_AMBIENT_RAISE, number)
    if no_new_privs and bpf:
        libc.seccomp_set_mode_filter(bpf)


