"""store/compress.py: all formats, broken ones, and bombs."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import sys

import pytest
from tars import Bytes

from tare.store import compress
from tare.store.compress import Bound
from tare.store.tarread import Source, TarError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DATA = b"".join(hashlib.sha256(b"%d" % i).digest() + b"text" * 8 for i in range(20000))
PACK = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd.compress, "": bytes}
COMPRESSED = [name for name in PACK if name]


def unpacked(data: bytes, step: int = 1 << 20, bound: Bound = compress.DEFAULT_BOUND) -> tuple[bytes, str]:
    source, name = compress.open_reader(Bytes(data, step), bound)
    return everything(source), name


def everything(source: Source) -> bytes:
    found = []
    while chunk := source.read(65536):
        assert len(chunk) <= 65536
        found.append(chunk)
    assert source.read(10) == b""
    return b"".join(found)


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize("step", [1000, 1 << 20])
def test_detects_and_reads(name: str, step: int) -> None:
    assert unpacked(PACK[name](DATA), step) == (DATA, name)


@pytest.mark.parametrize("name", PACK)
def test_one_byte_at_a_time(name: str) -> None:
    assert unpacked(PACK[name](b"short"), 1) == (b"short", name)


@pytest.mark.parametrize("data", [b"", b"a", b"\x1f\x8b", b"BZ", b"\x28\xb5\x2f"])
def test_too_short_to_be_anything_is_plain(data: bytes) -> None:
    assert unpacked(data) == (data, "")


@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("step", [7, 1 << 20])
def test_frames_in_a_row_and_padding(name: str, step: int) -> None:
    data = PACK[name](b"one") + PACK[name](b"") + PACK[name](b"two")
    assert unpacked(data, step) == (b"onetwo", name)
    assert unpacked(data + bytes(3000), step) == (b"onetwo", name)


@pytest.mark.parametrize("name", COMPRESSED)
def test_damage(name: str) -> None:
    good = PACK[name](DATA)
    with pytest.raises(TarError, match="unexpected EOF"):
        unpacked(good[: len(good) // 2])
    with pytest.raises(TarError, match="garbage"):
        unpacked(good + b"garbage")
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0x10
    flipped[len(good) // 2 + 9] ^= 0x41
    try:
        assert unpacked(bytes(flipped))[0] != DATA
    except TarError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", COMPRESSED)
def test_bombs(name: str) -> None:
    bomb = PACK[name](bytes(20 << 20))
    with pytest.raises(TarError, match="refused as a bomb"):
        unpacked(bomb, bound=Bound(free=1 << 20, ratio=100))
    with pytest.raises(TarError, match="refused as a bomb"):
        unpacked(bomb, bound=Bound(total=10 << 20))
    assert len(unpacked(bomb, bound=Bound(free=20 << 20, ratio=0))[0]) == 20 << 20


def test_a_window_beyond_the_limit_is_refused() -> None:
    options = {zstd.CompressionParameter.window_log: 28, zstd.CompressionParameter.enable_long_distance_matching: 1}
    compressor = zstd.ZstdCompressor(options=options)
    frame = compressor.compress(b"x" * 100) + compressor.flush()
    with pytest.raises(TarError, match="damaged zstd data"):
        unpacked(frame)


def test_descriptor_and_hashing() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"hello")
    os.close(write_end)
    hashing = compress.Hashing(compress.Descriptor(read_end))
    assert everything(hashing) == b"hello"
    os.close(read_end)
    assert hashing.size == 5
    assert hashing.digest() == "sha256:" + hashlib.sha256(b"hello").hexdigest()
