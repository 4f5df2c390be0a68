"""store/tarwrite.py: read back by tarfile and by our own reader."""

from __future__ import annotations

import io
import os
import socket
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tars import OPAQUE, Bytes, apply

from tare.store.tarread import Reader
from tare.store.tarwrite import Header, Writer, create


def written(root: Path, *, whiteouts: bool = True) -> bytes:
    out: list[bytes] = []
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        create(fd, out.append, whiteouts=whiteouts)
    finally:
        os.close(fd)
    return b"".join(out)


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        return file.getnames()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "b/c").mkdir(parents=True)
    (root / "b/c/file").write_bytes(b"x" * 700_000)
    (root / "b/first").write_text("one")
    os.link(root / "b/first", root / "z")
    os.symlink("b/" + "n" * 150, root / "link")
    os.mkfifo(root / "fifo")
    (root / "é").write_text("accent")
    (root / ("w" * 101)).write_text("long")
    (root / "b/first").chmod(0o4711)
    os.setxattr(root / "é", "user.k", b"v\0=\n")
    os.setxattr(root / "b", "user.dir", b"1")
    os.utime(root / "b/c", (77, 77))
    return root


def test_tarfile_reads_it(tree: Path) -> None:
    data = written(tree)
    assert names(data) == sorted(
        ["b", "b/c", "b/c/file", "b/first", "z", "link", "fifo", "é", "w" * 101], key=lambda name: name.encode()
    )
    assert len(data) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        content = file.extractfile("b/c/file")
        assert content is not None
        assert content.read() == b"x" * 700_000
        assert file.getmember("z").islnk()
        assert file.getmember("z").linkname == "b/first"
        assert file.getmember("b/first").mode == 0o4711
        assert file.getmember("link").linkname == "b/" + "n" * 150
        assert file.getmember("b/c").mtime == 77
        assert {(member.uname, member.gname) for member in file} == {("", "")}


def test_round_trip_is_exact(tree: Path, tmp_path: Path) -> None:
    data = written(tree)
    copy = tmp_path / "copy"
    copy.mkdir()
    apply(data, copy)
    assert written(copy) == data
    assert os.getxattr(copy / "é", "user.k") == b"v\0=\n"
    assert (copy / "z").samefile(copy / "b/first")


def test_pax_only_when_needed(tmp_path: Path) -> None:
    (tmp_path / ("p" * 90)).mkdir()
    (tmp_path / ("p" * 90) / ("q" * 90)).write_text("x")
    data = written(tmp_path)
    assert b"PaxHeaders" not in data
    assert names(data)[1] == "p" * 90 + "/" + "q" * 90


def test_whiteouts(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    os.mknod(tmp_path / "d/gone", 0o20000, os.makedev(0, 0))
    (tmp_path / "d/kept").touch()
    assert names(written(tmp_path)) == ["d", "d/.wh.gone", "d/kept"]
    assert names(written(tmp_path, whiteouts=False)) == ["d", "d/kept"]


@pytest.mark.skipif(os.geteuid() != 0, reason="trusted.* needs CAP_SYS_ADMIN")
def test_opaque_and_overlays_attributes(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").touch()
    os.setxattr(tmp_path / "d", OPAQUE, b"y")
    os.setxattr(tmp_path / "d", "trusted.overlay.impure", b"y")
    data = written(tmp_path)
    assert names(data) == ["d", "d/.wh..wh..opq", "d/f"]
    assert b"xattr" not in data
    assert names(written(tmp_path, whiteouts=False)) == ["d", "d/f"]


def test_sockets_are_left_out(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        assert names(written(tmp_path)) == []


def test_a_file_that_shrank_is_filled_up(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    out: list[bytes] = []
    writer = Writer(out.append)
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    writer.add_from(Header(b"f", size=2_000_000), fd)
    os.close(fd)
    writer.add(Header(b"after"), b"here")
    writer.close()
    with tarfile.open(fileobj=io.BytesIO(b"".join(out))) as file:
        assert file.getmember("f").size == 2_000_000
        assert file.getnames() == ["f", "after"]


@given(
    name=st.binary(min_size=1, max_size=300).filter(lambda n: b"\0" not in n and not n.endswith(b"/")),
    link=st.binary(max_size=300).filter(lambda n: b"\0" not in n),
    mode=st.integers(0, 0o7777),
    owner=st.integers(0, (1 << 32) - 1),
    size=st.integers(0, 1 << 37),
    mtime=st.integers(0, 1 << 33),
    xattrs=st.dictionaries(st.sampled_from([b"user.a", b"user.b"]), st.binary(max_size=50)),
)
def test_header_round_trip(
    name: bytes, link: bytes, mode: int, owner: int, size: int, mtime: int, xattrs: dict[bytes, bytes]
) -> None:
    pairs = tuple(sorted(xattrs.items()))
    data = Header(name, b"0", mode, owner, owner, size, mtime, link, xattrs=pairs).encode()
    assert len(data) % 512 == 0
    found = Reader(Bytes(data)).next()
    assert found is not None
    assert (found.name, found.link, found.mode, found.uid, found.gid) == (name, link, mode, owner, owner)
    assert (found.size, found.mtime, found.xattrs or []) == (size, mtime * 10**9, list(pairs))
