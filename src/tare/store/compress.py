"""Finds out how a stream is compressed and reads it decompressed, with a bound on what may come out.

Runs in the store's worker. Decompression happens in this process, by libraries of ours: a program called `unpigz` or
`xz` found by PATH was how images ran code as root (CVE-2014-9357). A stream may expand by `Bound` only
(CVE-2017-14992, CVE-2023-25153): what is beyond is an error, not a full disk.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import os
import sys
from collections.abc import Callable
from typing import NamedTuple, Protocol

from isal import igzip_lib

from tare.oci.digest import Digest
from tare.store.tarread import Source, TarError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["DEFAULT_BOUND", "Bound", "Compressed", "Descriptor", "Hashing", "detect", "open_reader"]

_CHUNK = 1 << 20
_XZ_MEMORY = 256 << 20
_ZSTD_WINDOW_LOG = 27
"""128 MiB, what zstd itself accepts without --long."""


class Bound(NamedTuple):
    """At most `free` + `ratio` times the compressed bytes, and at most `total` bytes, may come out.

    gzip reaches 1032 : 1 on zeros and real layers stay below 20 : 1, so `free` is what lets a layer of one big empty
    file pass; a guess.
    """

    free: int = 256 << 20
    ratio: int = 200
    total: int = 256 << 30


DEFAULT_BOUND = Bound()


class _Decompressor(Protocol):
    """bz2.BZ2Decompressor's interface, which all four libraries follow."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


def _gzip() -> _Decompressor:
    made: _Decompressor = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    return made


def _zstd() -> _Decompressor:
    made: _Decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})
    return made


def _xz() -> _Decompressor:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


_FORMATS: dict[str, tuple[tuple[bytes, ...], Callable[[], _Decompressor]]] = {
    "gzip": ((b"\x1f\x8b\x08",), _gzip),
    "zstd": ((b"\x28\xb5\x2f\xfd", *(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16))), _zstd),
    "xz": ((b"\xfd7zXZ\0",), _xz),
    "bzip2": ((b"BZh",), bz2.BZ2Decompressor),
}
_IsalError: type[Exception] = vars(igzip_lib)["IsalError"]  # its stub calls the class an instance
_ERRORS = (_IsalError, zstd.ZstdError, lzma.LZMAError, OSError, EOFError, ValueError)


class Descriptor:
    """A descriptor as a Source. It is not closed here."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, size: int, /) -> bytes:
        return os.read(self._fd, size)


class Hashing:
    """Passes a source on and keeps count and sha256 of what went through."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._hash = hashlib.sha256()
        self.size = 0

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self._hash.update(data)
        self.size += len(data)
        return data

    def digest(self) -> Digest:
        return Digest(f"sha256:{self._hash.hexdigest()}")


class _Rewound:
    """A source with some bytes put back in front."""

    def __init__(self, head: bytes, source: Source) -> None:
        self._head = head
        self._source = source

    def read(self, size: int, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._source.read(size)


class Compressed:
    """The decompressed stream. Several frames in a row are one stream, zero bytes after the last are padding."""

    def __init__(self, source: Source, compression: str, bound: Bound = DEFAULT_BOUND) -> None:
        self.compression = compression
        self._source = source
        self._magics, self._make = _FORMATS[compression]
        self._decompressor = self._make()
        self._pending = b""  # read, not yet given to a decompressor
        self._bound = bound
        self._in = self._out = 0

    def read(self, size: int, /) -> bytes:
        """TarError if the stream is damaged, cut off or expands too much."""
        while True:
            if self._decompressor.eof and not self._next_frame():
                return b""
            data = b""
            if self._decompressor.needs_input:
                data = self._input()
                if not data:
                    raise TarError(f"unexpected EOF in {self.compression} data")
            try:
                out = self._decompressor.decompress(data, size)
            except _ERRORS as error:
                raise TarError(f"damaged {self.compression} data: {error}") from None
            if out:
                self._count(len(out))
                return out

    def _input(self) -> bytes:
        data, self._pending = self._pending, b""
        if not data:
            data = self._source.read(_CHUNK)
            self._in += len(data)
        return data

    def _next_frame(self) -> bool:
        self._pending = self._decompressor.unused_data
        while len(self._pending) < 6 and (more := self._source.read(_CHUNK)):
            self._in += len(more)
            self._pending += more
        if self._pending.startswith(self._magics):
            self._decompressor = self._make()
            return True
        while self._pending:
            if self._pending.strip(b"\0"):
                raise TarError(f"garbage after the {self.compression} data")
            self._pending = b""
            self._pending = self._input()
        return False

    def _count(self, size: int) -> None:
        self._out += size
        bound = self._bound
        if self._out > bound.total or self._out > bound.free + bound.ratio * self._in:
            raise TarError(f"{self.compression} data expands to more than {self._out - size} bytes: refused as a bomb")


def detect(head: bytes) -> str:
    """ "gzip", "zstd", "xz", "bzip2", or "" for anything else, by the first six bytes."""
    return next((name for name, (magics, _) in _FORMATS.items() if head.startswith(magics)), "")


def open_reader(source: Source | int, bound: Bound = DEFAULT_BOUND) -> tuple[Source, str]:
    """The decompressed stream of a source or descriptor, and the compression found ("" if none). TarError."""
    if isinstance(source, int):
        source = Descriptor(source)
    head = b""
    while len(head) < 6 and (more := source.read(_CHUNK)):
        head += more
    rewound = _Rewound(head, source)
    name = detect(head)
    return (Compressed(rewound, name, bound) if name else rewound), name
