"""Archives for the tests of store/tar*.py, by tarfile or by hand. Owners are this process's, so no root is needed."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

from tare.store import tar

DIRECTORY, SYMLINK, LINK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
OPAQUE = "trusted.overlay.opaque"


class Bytes:
    """A source that hands out at most `step` bytes at a time."""

    def __init__(self, data: bytes, step: int = 1 << 20) -> None:
        self._file = io.BytesIO(data)
        self._step = step

    def read(self, size: int, /) -> bytes:
        return self._file.read(min(size, self._step))


def entry(
    name: str, data: bytes | None = None, kind: bytes = tarfile.REGTYPE, **fields: Any
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = 0o755 if kind == DIRECTORY else 0o644
    info.uid, info.gid = os.getuid(), os.getgid()
    info.size = len(data or b"")
    info.mtime = 1_000_000_000
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data or b""


def archive(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as file:
        for info, data in entries:
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def header(name: bytes, size: bytes = b"00000000000\0", kind: bytes = b"0", **patches: bytes) -> bytes:
    """A ustar block by hand; patches are at_<offset>=bytes."""
    block = bytearray(512)
    block[0 : len(name)] = name
    owner = b"%07o\0%07o\0" % (os.getuid(), os.getgid())
    block[100:148] = b"0000644\0" + owner + size.ljust(12, b"\0") + b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    for place, data in patches.items():
        at = int(place.removeprefix("at_"))
        block[at : at + len(data)] = data
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(*records: tuple[bytes, bytes]) -> bytes:
    """A PAX header entry."""
    body = b""
    for key, value in records:
        length = len(key) + len(value) + 3
        while len(str(length)) + len(key) + len(value) + 3 != length:
            length = len(str(length)) + len(key) + len(value) + 3
        body += b"%d %s=%s\n" % (length, key, value)
    return header(b"pax", b"%011o\0" % len(body), b"x") + body + bytes(-len(body) % 512)


def apply(data: bytes, root: Path, step: int = 1 << 20, **options: Any) -> tar.Applied:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return tar.apply(Bytes(data, step), fd, **options)
    finally:
        os.close(fd)
