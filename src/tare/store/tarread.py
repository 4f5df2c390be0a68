"""Reads tar archives: ustar, GNU (long names, sparse, base-256 numbers) and PAX. Knows no file system.

Runs in the store's worker. Every byte is a stranger's: each length is checked before it is used, each table has a cap
(`Limits`), and whatever is wrong ends in `TarError`, never in another exception. Names stay bytes; they are neither
decoded nor resolved here, `components` only cuts them and refuses what no honest archive holds.

Sources: POSIX.1-2017 pax "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar Format" and
"Storing Sparse Files"; libarchive tar(5). Where readers differ, Go's archive/tar is followed, because that is what
wrote and read most layers. Deliberately absent: tar's ancient `M`, `D`, `V`, `N` kinds, seeking, multi-volume.
"""

from __future__ import annotations

import binascii
import os
import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from tare.errors import Invalid

__all__ = ["DEFAULT_LIMITS", "Limits", "Member", "Reader", "Source", "TarError", "components", "shown"]

BLOCK = 512
_CHUNK = 1 << 20
_ZEROS = bytes(BLOCK)
_LARGEST = (1 << 63) - 1
_NO_CONTENT = frozenset(b"123456")  # Go ignores a size on links, devices, directories and FIFOs; so do we
_KINDS = frozenset(b"0\x007123456S")
_DIGITS = re.compile(rb"[0-9]{1,19}").fullmatch
_MAP = re.compile(rb"(?:[0-9]{1,19},[0-9]{1,19}(?:,(?!\Z)|\Z))*+").fullmatch
_TIME = re.compile(rb"(-?)([0-9]{1,19})(?:\.([0-9]{0,32}))?").fullmatch
_XATTR_PREFIXES = (b"SCHILY.xattr.", b"LIBARCHIVE.xattr.")


class TarError(Invalid):
    """The archive is not what it has to be; one sentence says why."""


class Source(Protocol):
    """What a Reader reads from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; b"" at the end and only there."""


class Limits(NamedTuple):
    """Caps of one archive (security N11). Bytes, but for `entries` and `depth`."""

    entries: int = 1_000_000
    name: int = 4096
    component: int = 255
    depth: int = 256
    pax: int = 1 << 20
    content: int = 256 << 30
    """Of all files together, holes included."""
    holes: int = 256 << 20
    hole_ratio: int = 200
    """A sparse file may be larger than what is stored for it by `holes` + `hole_ratio` times the stored bytes."""


DEFAULT_LIMITS = Limits()


class Member:
    """One entry. `kind` is the type flag as an int, ord("0") for every sort of file; `mode` without type bits.

    `size` in bytes after sparse expansion; `mtime` in ns, clamped to 1970..2262; `device` (major, minor); `sparse` is
    None or the (offset, length) pieces that are stored.
    """

    __slots__ = ("device", "gid", "kind", "link", "mode", "mtime", "name", "size", "sparse", "uid", "xattrs")

    def __init__(
        self, name: bytes, kind: int, mode: int, uid: int, gid: int, size: int, mtime: int, link: bytes
    ) -> None:
        self.name = name
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.mtime = mtime
        self.link = link
        self.device = (0, 0)
        self.xattrs: list[tuple[bytes, bytes]] | None = None
        self.sparse: list[tuple[int, int]] | None = None


class Reader:
    """Iterate to get the members; read a member's content before the next one, or it is skipped."""

    def __init__(self, source: Source, limits: Limits = DEFAULT_LIMITS) -> None:
        self._source = source
        self._limits = limits
        self._buffer = b""
        self._at = 0
        self._left = 0  # stored bytes of the current member not yet taken
        self._padding = 0
        self._member: Member | None = None
        self.entries = 0
        self.content = 0

    def __iter__(self) -> Iterator[Member]:
        while (member := self.next()) is not None:
            yield member

    def next(self) -> Member | None:
        """The next member, None after the last. TarError."""
        self._skip(self._left + self._padding)
        self._left = self._padding = 0
        pax: dict[bytes, bytes] | None = None
        pieces: list[bytes] = []
        name = link = None
        while True:
            header = self._header()
            if header is None:
                if pax is not None or name is not None or link is not None:
                    raise TarError("unexpected EOF")
                return None
            self.entries += 1
            if self.entries > self._limits.entries:
                raise TarError(f"archive has more than {self._limits.entries} entries")
            kind = header[156]
            if kind == 0x78:  # "x"
                pax, pieces = self._pax(self._meta(_number(header[124:136])))
            elif kind == 0x67:  # "g": git's comments and the like; Go hands them out unread
                self._pax(self._meta(_number(header[124:136])))
            elif kind == 0x4C:  # "L"
                name = self._meta(_number(header[124:136])).partition(b"\0")[0]
            elif kind == 0x4B:  # "K"
                link = self._meta(_number(header[124:136])).partition(b"\0")[0]
            else:
                break
        member = self._decode(header, name, link)
        if pax:
            self._override(member, pax)
        self._open(member, header, pax or {}, pieces)
        self._member = member
        return member

    def read(self, cap: int) -> bytes:
        """The whole content of the current member, which is at most `cap` bytes and not sparse. TarError."""
        if self._left > cap or (self._member is not None and self._member.sparse is not None):
            raise TarError(f"{shown(self._member.name if self._member else b'')} is larger than {cap} bytes")
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """What is stored for the current member, piece by piece; holes are left out."""
        while self._left:
            yield self._piece(self._left)

    def copy(self, fd: int) -> None:
        """Write the content of the current member to a new file, holes as holes."""
        sparse = self._member.sparse if self._member is not None else None
        if sparse is None:
            while self._left:
                _write(fd, self._piece(self._left))
            return
        for offset, length in sparse:
            os.lseek(fd, offset, os.SEEK_SET)
            while length:
                piece = self._piece(length)
                _write(fd, piece)
                length -= len(piece)
        os.ftruncate(fd, self._member.size if self._member is not None else 0)

    def drain(self) -> None:
        """Read the source to its end: what follows the archive's end is part of a layer's digest, and nothing else."""
        self._buffer, self._at = b"", 0
        while self._source.read(_CHUNK):
            pass

    def _piece(self, most: int) -> bytes:
        """Between 1 and `most` stored bytes of the current member."""
        at = self._at
        if at >= len(self._buffer):
            self._buffer, self._at = self._source.read(_CHUNK), 0
            at = 0
            if not self._buffer:
                raise TarError("unexpected EOF")
        piece = self._buffer[at : at + most]
        self._at = at + len(piece)
        self._left -= len(piece)
        return piece

    def _header(self) -> bytes | None:
        """The next header block, its checksum verified; None at the end mark or at the end of the source."""
        at = self._at
        block = self._buffer[at : at + BLOCK]
        if len(block) == BLOCK:
            self._at = at + BLOCK
        else:
            block = self._take(BLOCK, eof=True)
            if not block:
                return None
        if block == _ZEROS:
            following = self._take(BLOCK, eof=True)
            if following and following != _ZEROS:
                raise TarError("invalid tar header: a lone zero block inside the archive")
            return None
        field = block[148:156].strip(b" \0")
        if not field.isdigit() or len(field) > 8:
            raise TarError("invalid tar header")
        total = sum(block) - sum(block[148:156]) + 256
        if total != _octal(field) and _signed_sum(block) != _octal(field):
            raise TarError("invalid tar header: wrong checksum")
        return block

    def _take(self, size: int, *, eof: bool = False) -> bytes:
        """Exactly `size` bytes; b"" if `eof` and the source ends right here."""
        while len(self._buffer) - self._at < size:
            more = self._source.read(_CHUNK)
            if not more:
                if eof and self._at == len(self._buffer):
                    return b""
                raise TarError("unexpected EOF")
            self._buffer = self._buffer[self._at :] + more
            self._at = 0
        self._at += size
        return self._buffer[self._at - size : self._at]

    def _skip(self, size: int) -> None:
        while size:
            have = len(self._buffer) - self._at
            if have >= size:
                self._at += size
                return
            size -= have
            self._buffer, self._at = self._source.read(_CHUNK), 0
            if not self._buffer:
                raise TarError("unexpected EOF")

    def _meta(self, size: int) -> bytes:
        if size > self._limits.pax:
            raise TarError(f"header field too long: {size} bytes, at most {self._limits.pax} are allowed")
        data = self._take(size)
        self._skip(-size % BLOCK)
        return data

    @staticmethod
    def _pax(data: bytes) -> tuple[dict[bytes, bytes], list[bytes]]:
        """Records "length key=value\\n"; the second value holds the repeated pieces of GNU's sparse format 0.0."""
        records: dict[bytes, bytes] = {}
        pieces: list[bytes] = []
        at = 0
        while at < len(data):
            space = data.find(b" ", at, at + 8)
            length = data[at:space] if space > 0 else b""
            end = at + int(length) if length.isdigit() else 0
            key, separator, value = data[space + 1 : end - 1].partition(b"=")
            if end <= space + 1 or end > len(data) or data[end - 1] != 0x0A or not separator or not key:
                raise TarError("invalid tar header: malformed PAX record")
            at = end
            if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                if (len(pieces) % 2 == 0) != (key == b"GNU.sparse.offset"):
                    raise TarError("invalid tar header: malformed sparse map")
                pieces.append(value)
            else:
                records[key] = value
        return records, pieces

    def _decode(self, header: bytes, name: bytes | None, link: bytes | None) -> Member:
        kind = header[156]
        if kind not in _KINDS:
            raise TarError(f"unhandled tar header type {kind}")
        if name is None:
            name = header[:100].partition(b"\0")[0]
            if header[257:263] == b"ustar\0" and header[345]:
                name = header[345:500].partition(b"\0")[0] + b"/" + name
        if kind in (0, 0x37):
            kind = 0x30
        if kind == 0x30 and name.endswith(b"/"):
            kind = 0x35  # as version 7 tar wrote directories
        if link is None:
            link = header[157:257].partition(b"\0")[0]
        # Spelt out: this runs once for every file of every layer.
        mode = _number(header[100:108]) & 0o7777
        uid, gid = _number(header[108:116], signed=True), _number(header[116:124], signed=True)
        mtime = _clamp(_number(header[136:148], signed=True) * 1_000_000_000)
        member = Member(name, kind, mode, uid, gid, _number(header[124:136]), mtime, link)
        if kind in b"34":
            member.device = (_number(header[329:337]), _number(header[337:345]))
        return member

    def _override(self, member: Member, pax: dict[bytes, bytes]) -> None:
        """Let the PAX records replace what the header says; an empty value takes back an override."""
        for key, value in pax.items():
            if key.startswith(_XATTR_PREFIXES):
                if member.xattrs is None:
                    member.xattrs = []
                name = key.partition(b".xattr.")[2]
                if key.startswith(b"LIBARCHIVE"):
                    name, value = _from_percent(name), _from_base64(value)
                if b"\0" in name or not name or len(name) > 255 or len(value) > 65536:
                    raise TarError(f"{shown(member.name)} has an invalid extended attribute")
                member.xattrs.append((name, value))
            elif not value:
                continue
            elif key == b"path":
                member.name = _text(value)
                if member.kind == 0x30 and member.name.endswith(b"/"):
                    member.kind = 0x35
            elif key == b"linkpath":
                member.link = _text(value)
            elif key == b"size":
                member.size = _decimal(value)
            elif key == b"uid":
                member.uid = _decimal(value, signed=True)
            elif key == b"gid":
                member.gid = _decimal(value, signed=True)
            elif key == b"mtime":
                member.mtime = _timestamp(value)

    def _open(self, member: Member, header: bytes, pax: dict[bytes, bytes], pieces: list[bytes]) -> None:
        """Find out how many bytes are stored for the member and, if it is sparse, where they belong."""
        limits = self._limits
        if member.kind in _NO_CONTENT:
            member.size = 0
            return
        self._left = member.size
        self._padding = -member.size % BLOCK
        if member.kind == 0x53 or b"GNU.sparse.size" in pax or b"GNU.sparse.realsize" in pax:
            self._sparse(member, header, pax, pieces)
            if member.size > self._left * (limits.hole_ratio + 1) + limits.holes:
                raise TarError(
                    f"{shown(member.name)} claims {member.size} bytes and stores {self._left}: refused as a sparse bomb"
                )
        self.content += member.size
        if self.content > limits.content:
            raise TarError(f"archive has more than {limits.content} bytes of files")

    def _sparse(self, member: Member, header: bytes, pax: dict[bytes, bytes], pieces: list[bytes]) -> None:
        if member.kind == 0x53:
            member.kind = 0x30
            member.size = _number(header[483:495])
            numbers = self._old_map(header)
        elif pax.get(b"GNU.sparse.major") == b"1":
            member.name = _text(pax.get(b"GNU.sparse.name") or member.name)
            member.size = _decimal(pax.get(b"GNU.sparse.realsize", b""))
            numbers = self._map_in_content()
        else:
            member.name = _text(pax.get(b"GNU.sparse.name") or member.name)
            member.size = _decimal(pax.get(b"GNU.sparse.size", b""))
            text = pax.get(b"GNU.sparse.map", b",".join(pieces))
            if not _MAP(text):
                raise TarError("invalid tar header: malformed sparse map")
            numbers = [int(number) for number in text.split(b",") if number]
        member.sparse = list(zip(numbers[::2], numbers[1::2], strict=True))
        reached = total = 0
        for offset, length in member.sparse:
            if offset < reached or offset + length > member.size:
                raise TarError(f"{shown(member.name)} has a sparse map out of order")
            reached = offset + length
            total += length
        if total != self._left:
            raise TarError(f"{shown(member.name)} has a sparse map of {total} bytes for {self._left} stored ones")

    def _old_map(self, header: bytes) -> list[int]:
        """GNU's own format: four pairs in the header, then blocks of 21 while a flag says so."""
        numbers: list[int] = []
        block, count, more = header[386:482], 4, header[482]
        while True:
            for index in range(count):
                pair = block[index * 24 : index * 24 + 24]
                if not pair[0]:
                    break
                numbers += (_number(pair[:12]), _number(pair[12:]))
            if not more:
                return numbers
            if len(numbers) * 12 > self._limits.pax:
                raise TarError("header field too long: sparse map")
            block, count = self._take(BLOCK), 21
            more = block[504]

    def _map_in_content(self) -> list[int]:
        """PAX format 1.0: decimal lines in front of the content, padded to a block: a count, then the pairs."""
        text = b""
        wanted = 1
        while (lines := text.count(b"\n")) < wanted:
            if self._left < BLOCK or len(text) > self._limits.pax:
                raise TarError("invalid tar header: malformed sparse map")
            text += self._take(BLOCK)
            self._left -= BLOCK
            if wanted == 1 and (lines or b"\n" in text):
                count = _decimal(text.partition(b"\n")[0])
                if count > self._limits.pax:
                    raise TarError("header field too long: sparse map")
                wanted = 1 + 2 * count
        return [_decimal(line) for line in text.split(b"\n", wanted)[1:wanted]]


def components(name: bytes, limits: Limits = DEFAULT_LIMITS) -> list[bytes]:
    """Cut a member's name: leading "/", empty parts and "." are dropped; [] is the root. TarError for ".." and NUL."""
    if len(name) > limits.name:
        raise TarError(f"invalid entry name {shown(name)}: longer than {limits.name} bytes")
    parts = [part for part in name.split(b"/") if part and part != b"."]
    if b".." in parts or b"\0" in name or not name:
        raise TarError(f"invalid entry name {shown(name)}")
    if len(parts) > limits.depth:
        raise TarError(f"invalid entry name {shown(name)}: deeper than {limits.depth} directories")
    for part in parts:
        if len(part) > limits.component:
            raise TarError(f"invalid entry name {shown(name)}: file name too long")
    return parts


def shown(name: bytes) -> str:
    """A name for an error text: quoted, printable, at most about 120 characters."""
    text = name[:120].decode("utf-8", "backslashreplace")
    quoted = "".join(c if c.isprintable() and c not in '"\\' else c.encode("unicode_escape").decode() for c in text)
    return f'"{quoted}{"..." if len(name) > 120 else ""}"'


def _write(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])


def _octal(field: bytes) -> int:
    try:
        return int(field, 8)
    except ValueError:
        raise TarError("invalid tar header: malformed number") from None


def _number(field: bytes, *, signed: bool = False) -> int:
    """A numeric header field: octal, or base-256 if its first bit is set (GNU). Empty is 0, as everywhere."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        if not -_LARGEST <= value <= _LARGEST or (value < 0 and not signed):
            raise TarError("invalid tar header: number out of range")
        return value
    digits = field.strip(b" \0")
    if not digits:
        return 0
    # isdigit: int() alone would take "-7", "+7", "1_0" and "0o7"
    if not digits.isdigit():
        raise TarError("invalid tar header: malformed number")
    return _octal(digits)


def _decimal(value: bytes, *, signed: bool = False) -> int:
    digits = value[1:] if signed and value[:1] == b"-" else value
    if not _DIGITS(digits) or (number := int(value)) > _LARGEST:
        raise TarError("invalid tar header: malformed number")
    return number


def _timestamp(value: bytes) -> int:
    match = _TIME(value)
    if match is None:
        raise TarError("invalid tar header: malformed time")
    sign, seconds, fraction = match.groups()
    nanoseconds = int(seconds) * 1_000_000_000 + int((fraction or b"0")[:9].ljust(9, b"0"))
    return _clamp(-nanoseconds if sign else nanoseconds)


def _clamp(nanoseconds: int) -> int:
    """Times outside 1970..2262 become 1970, as in go-archive's boundTime."""
    return nanoseconds if 0 <= nanoseconds <= _LARGEST else 0


def _text(value: bytes) -> bytes:
    if b"\0" in value:
        raise TarError("invalid tar header: NUL in a name")
    return value


def _signed_sum(block: bytes) -> int:
    """Some old tars added the bytes up as signed ones."""
    return sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:]) + 256


def _from_percent(name: bytes) -> bytes:
    return re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes([int(match[1], 16)]), name)


def _from_base64(value: bytes) -> bytes:
    try:
        return binascii.a2b_base64(value + b"=" * (-len(value) % 4))  # libarchive leaves the padding out
    except binascii.Error:
        raise TarError("invalid tar header: malformed extended attribute") from None
