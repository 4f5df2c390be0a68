"""Names of users and groups by the passwd(5) and group(5) of some root, through its descriptor: never by NSS.

A lookup by the C library would dlopen what the image offers as a library (CVE-2019-14271). Numbers are parsed strictly
and never taken for names (N6); only a regular file of bounded size is read (N3).
"""

from __future__ import annotations

import os
import stat

from . import libc

__all__ = ["Identity", "NoSuchUser", "resolve_user"]

_FILE_LIMIT = 1 << 20
"""Bytes of passwd or group that are read (N6); a larger file is refused, not cut."""
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
