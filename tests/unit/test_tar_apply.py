"""store/tar.py and tarread.py: what honest archives become and which dishonest ones are refused."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tars import DIRECTORY, LINK, OPAQUE, SYMLINK, Bytes, apply, archive, entry, header, pax

from tare.store import tar
from tare.store.tar import Applied, Limits, TarError
from tare.store.tarread import Reader

END = bytes(1024)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "root"
    place.mkdir()
    yield place


def size(value: int) -> bytes:
    return b"%011o\0" % value


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("step", [1, 511, 1 << 20])
def test_files_directories_and_links(root: Path, form: int, step: int) -> None:
    data = archive(
        entry("d", kind=DIRECTORY, mode=0o2750, mtime=5),
        entry("d/f", b"x" * 1000, mode=0o640, mtime=7),
        entry("d/empty"),
        entry("s", kind=SYMLINK, linkname="d/f"),
        entry("h", kind=LINK, linkname="d/f"),
        entry("./implied/parent/g", b"g"),
        entry("p", kind=tarfile.FIFOTYPE),
        format=form,
    )
    assert apply(data, root, step) == Applied(1001, 7)
    assert (root / "d/f").read_bytes() == b"x" * 1000
    assert (root / "d/f").stat().st_mode == 0o100640
    assert (root / "d/f").stat().st_mtime == 7
    assert (root / "d").stat().st_mode == 0o042750
    assert (root / "d").stat().st_mtime == 5, "set after the files inside were made"
    assert os.readlink(root / "s") == "d/f"
    assert (root / "h").samefile(root / "d/f")
    assert (root / "implied/parent/g").read_bytes() == b"g"
    assert (root / "implied").stat().st_mode == 0o040755
    assert (root / "p").is_fifo()


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(root: Path, form: int) -> None:
    name = "/".join(["n" * 200] * 5)
    link = "l" * 300
    apply(archive(entry(name, b"1"), entry("s", kind=SYMLINK, linkname=link), format=form), root)
    assert (root / name).read_bytes() == b"1"
    assert os.readlink(root / "s") == link


def test_names_in_any_bytes(root: Path) -> None:
    apply(header(b"\xff\xfe\n\x1b") + END, root)
    assert os.listdir(bytes(root)) == [b"\xff\xfe\n\x1b"]


def test_pax_overrides(root: Path) -> None:
    data = pax((b"path", "é/ü".encode()), (b"mtime", b"12.000000345"), (b"size", b"3"))
    apply(data + header(b"ignored", size(0)) + b"abc".ljust(512, b"\0") + END, root)
    assert (root / "é/ü").read_bytes() == b"abc"
    assert (root / "é/ü").stat().st_mtime_ns == 12_000_000_345


def test_setuid_survives_and_umask_is_restored(root: Path) -> None:
    before = os.umask(0o077)
    try:
        apply(archive(entry("su", b"x", mode=0o6755), entry("open", mode=0o666)), root)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert (root / "su").stat().st_mode == 0o106755
    assert (root / "open").stat().st_mode == 0o100666


def test_setgid_directories_do_not_pass_their_group_on(root: Path) -> None:
    apply(archive(entry("d", kind=DIRECTORY, mode=0o2755), entry("d/e", kind=DIRECTORY), entry("d/f")), root)
    assert (root / "d").stat().st_mode == 0o042755
    assert (root / "d/e").stat().st_mode == 0o040755


def test_the_root_entry_sets_the_root(root: Path) -> None:
    apply(archive(entry("./", kind=DIRECTORY, mode=0o711, mtime=9), entry("./f")), root)
    assert root.stat().st_mode == 0o040711
    assert root.stat().st_mtime == 9


def test_user_attributes_are_kept_and_overlays_are_not(root: Path) -> None:
    attributes = {
        "SCHILY.xattr.user.a": "b",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.trusted.other": "y",
        "SCHILY.xattr.security.selinux": "x",
    }
    data = archive(
        entry("f", pax_headers=attributes),
        entry("d", kind=DIRECTORY, pax_headers=attributes),
        entry("b", pax_headers={"LIBARCHIVE.xattr.user.c%20d": "ZQ"}),
    )
    apply(data, root)
    assert os.listxattr(root / "f") == os.listxattr(root / "d") == ["user.a"]
    assert os.getxattr(root / "b", "user.c d") == b"e"


@pytest.mark.parametrize("name", ["/abs/f", "//abs//./f"])
def test_absolute_names_stay_inside(root: Path, name: str) -> None:
    apply(archive(entry(name, b"1")), root)
    assert (root / "abs/f").read_bytes() == b"1"


@pytest.mark.parametrize("target", ["/in", "in", "../../../in", "/../in", "second"])
def test_links_to_directories_lead_inside(root: Path, tmp_path: Path, target: str) -> None:
    data = archive(
        entry("in", kind=DIRECTORY),
        entry("second", kind=SYMLINK, linkname="/in"),
        entry("a", kind=SYMLINK, linkname=target),
        entry("a/f", b"1"),
    )
    apply(data, root)
    assert (root / "in/f").read_bytes() == b"1"
    assert sorted(os.listdir(tmp_path)) == ["root"]


@pytest.mark.parametrize("target", ["/tmp/nowhere-there", "../../../tmp/nowhere-there", "tmp/x/../nowhere-there"])
def test_dangling_links_are_made_good_inside(root: Path, target: str) -> None:
    apply(archive(entry("a", kind=SYMLINK, linkname=target), entry("a/b/f", b"1")), root)
    assert (root / "tmp/nowhere-there/b/f").read_bytes() == b"1"
    assert not Path("/tmp/nowhere-there").exists()


def test_many_directories_and_few_descriptors(root: Path) -> None:
    names = [f"d{i % 450}/f{i}" for i in range(1500)]
    apply(archive(*[entry(name) for name in names], entry("h", kind=LINK, linkname="d0/f0")), root)
    assert sum(len(files) for _, _, files in os.walk(root)) == 1501


def test_directory_twice_is_one(root: Path) -> None:
    apply(archive(entry("d/f"), entry("d", kind=DIRECTORY, mode=0o700), entry("d", kind=DIRECTORY, mode=0o711)), root)
    assert (root / "d").stat().st_mode == 0o040711


# Whiteouts


def hidden(path: Path) -> bool:
    status = path.lstat()
    return path.is_char_device() and status.st_rdev == 0


def test_whiteout_becomes_a_device(root: Path) -> None:
    apply(archive(entry("d/.wh.gone")), root)
    assert hidden(root / "d/gone")


def test_whiteouts_are_files_where_none_are_wanted(root: Path) -> None:
    apply(archive(entry(".wh.x"), entry(".wh..wh..opq")), root, whiteouts="none")
    assert sorted(os.listdir(root)) == [".wh..wh..opq", ".wh.x"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_whiteout_does_not_hide_its_own_layer(root: Path, order: int) -> None:
    apply(archive(*[entry(".wh.x"), entry("x", b"new")][::order]), root)
    assert (root / "x").read_bytes() == b"new"
    assert os.listdir(root) == ["x"]


@pytest.mark.skipif(os.geteuid() != 0, reason="trusted.* needs CAP_SYS_ADMIN")
@pytest.mark.parametrize("entries", [["x/.wh..wh..opq", "x/"], [".wh.x", "x/"], ["x/", ".wh.x"], [".wh.x", "x/f"]])
def test_opaque(root: Path, entries: list[str]) -> None:
    apply(archive(*[entry(e.rstrip("/"), kind=DIRECTORY if e.endswith("/") else b"0") for e in entries]), root)
    assert (root / "x").is_dir()
    assert os.getxattr(root / "x", OPAQUE) == b"y"
    assert os.listdir(root) == ["x"]


# Sparse files


def sparse_1_0(real: int, *pieces: tuple[int, bytes]) -> bytes:
    lines = [len(pieces), *[number for at, data in pieces for number in (at, len(data))]]
    table = "".join(f"{line}\n" for line in lines).encode()
    body = table + bytes(-len(table) % 512) + b"".join(data for _, data in pieces)
    records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"s")]
    head = pax(*records, (b"GNU.sparse.realsize", b"%d" % real))
    return head + header(b"GNUSparseFile.0/s", size(len(body))) + body + bytes(-len(body) % 512) + END


def sparse_0_x(real: int, one: bool, *pieces: tuple[int, bytes]) -> bytes:
    numbers = [(at, len(data)) for at, data in pieces]
    if one:
        table = [(b"GNU.sparse.map", b",".join(b"%d,%d" % pair for pair in numbers))]
    else:
        table = [
            record
            for at, length in numbers
            for record in ((b"GNU.sparse.offset", b"%d" % at), (b"GNU.sparse.numbytes", b"%d" % length))
        ]
    body = b"".join(data for _, data in pieces)
    head = pax((b"GNU.sparse.size", b"%d" % real), (b"GNU.sparse.numblocks", b"%d" % len(pieces)), *table)
    return head + header(b"s", size(len(body))) + body + bytes(-len(body) % 512) + END


def sparse_old(real: int, *pieces: tuple[int, bytes]) -> bytes:
    pairs = [size(at) + size(len(data)) for at, data in pieces]
    body = b"".join(data for _, data in pieces)
    blocks, rest = b"", pairs[4:]
    while rest:
        blocks += b"".join(rest[:21]).ljust(504, b"\0") + (b"\1" if rest[21:] else b"\0") + bytes(7)
        rest = rest[21:]
    more = b"\1" if pairs[4:] else b"\0"
    first = header(
        b"s", size(len(body)), b"S", at_257=b"ustar  \0", at_386=b"".join(pairs[:4]), at_482=more, at_483=size(real)
    )
    return first + blocks + body + bytes(-len(body) % 512) + END


@pytest.mark.parametrize(
    "data",
    [
        sparse_1_0(5000, (100, b"ab"), (4000, b"c" * 600)),
        sparse_0_x(5000, False, (100, b"ab"), (4000, b"c" * 600)),
        sparse_0_x(5000, True, (100, b"ab"), (4000, b"c" * 600)),
        sparse_old(5000, (100, b"ab"), (4000, b"c" * 600)),
    ],
)
def test_sparse_formats(root: Path, data: bytes) -> None:
    assert apply(data, root).size == 5000
    expected = bytearray(5000)
    expected[100:102] = b"ab"
    expected[4000:4600] = b"c" * 600
    assert (root / "s").read_bytes() == expected


def test_sparse_with_many_pieces(root: Path) -> None:
    pieces = [(i * 10, b"%03d" % i) for i in range(200)]
    for number, data in enumerate((sparse_1_0(2000, *pieces), sparse_old(2000, *pieces))):
        place = root / str(number)
        place.mkdir()
        apply(data, place)
        assert (place / "s").read_bytes()[1990:1993] == b"199"


@pytest.mark.parametrize("real", [1 << 30, 1 << 60])
def test_sparse_bomb(root: Path, real: int) -> None:
    for data in (sparse_1_0(real, (0, b"x")), sparse_0_x(real, True, (0, b"x"))):
        with pytest.raises(TarError, match="sparse bomb"):
            apply(data, root)
    assert os.listdir(root) == []


@pytest.mark.parametrize(
    "data",
    [
        sparse_1_0(10, (5, b"ab"), (0, b"c")),
        sparse_1_0(10, (9, b"ab")),
        sparse_1_0(1 << 20, (5, b"ab"), (6, b"c")),
        sparse_0_x(10, True, (1 << 62, b"ab")),
        sparse_old(10, (5, b"ab"), (5, b"ab")),
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"9"))
        + header(b"s", size(9))
        + b"9".ljust(512)
        + END,
        pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"1,")) + header(b"s", size(9)) + bytes(512) + END,
        pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.offset", b"1")) + header(b"s", size(9)) + bytes(512) + END,
    ],
)
def test_sparse_maps_that_lie(root: Path, data: bytes) -> None:
    with pytest.raises(TarError):
        apply(data, root)


# Refusals


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (archive(entry("../x")), 'invalid entry name "../x"'),
        (archive(entry("a/../../x")), 'invalid entry name "a/../../x"'),
        (archive(entry("a/..")), 'invalid entry name "a/.."'),
        (archive(entry("ok", pax_headers={"path": "../x"})), 'invalid entry name "../x"'),
        (archive(entry("c" * 300)), "file name too long"),
        (archive(entry("d/" * 300 + "f")), "deeper than 256"),
        (archive(entry("/".join(["n" * 200] * 25))), "longer than 4096"),
        (pax((b"path", b"a\0b")) + header(b"x") + END, "NUL"),
        (header(b"") + END, 'invalid entry name ""'),
        (archive(entry("h", kind=LINK, linkname="../x")), 'invalid hardlink target "../x"'),
        (archive(entry("h", kind=LINK, linkname="h")), "no such file in this layer"),
        (archive(entry("h", kind=LINK, linkname="/etc/passwd")), "no such file in this layer"),
        (archive(entry("d", kind=DIRECTORY), entry("h", kind=LINK, linkname="d")), "not a file"),
        (archive(entry("s", kind=SYMLINK, linkname="/etc"), entry("h", kind=LINK, linkname="s/passwd")), "no such"),
        (archive(entry("f"), entry("f")), 'duplicates of file paths not supported: "f"'),
        (archive(entry("f"), entry("f", kind=SYMLINK, linkname="/x")), "duplicates"),
        (archive(entry("s", kind=SYMLINK, linkname="/x"), entry("s", b"1")), "duplicates"),
        (archive(entry("s", kind=SYMLINK, linkname="/x"), entry("s", kind=DIRECTORY)), "duplicates"),
        (archive(entry("d", kind=DIRECTORY), entry("d", kind=SYMLINK, linkname="/x")), "cannot overwrite directory"),
        (archive(entry("./", kind=SYMLINK, linkname="/x")), "cannot overwrite directory"),
        (archive(entry("f"), entry("f/g")), "not a directory"),
        (archive(entry("s", kind=SYMLINK, linkname="s"), entry("s/f")), "too many levels of symbolic links"),
        (archive(entry(".wh.")), 'invalid whiteout entry ".wh."'),
        (archive(entry(".wh..")), 'invalid whiteout entry ".wh.."'),
        (archive(entry("a/.wh...")), 'invalid whiteout entry "a/.wh..."'),
        (archive(entry(".wh.x"), entry(".wh.x")), "duplicates"),
        (archive(entry("u", uid=1 << 32)), "owner out of range: 4294967296"),
        (archive(entry("u", uid=-1)), "owner out of range: -1"),
        (archive(entry("u", gid=(1 << 32) - 1)), "owner out of range"),
        (header(b"z", kind=b"Z") + END, "unhandled tar header type 90"),
        (header(b"z", kind=b"V") + END, "unhandled tar header type 86"),
        (header(b"big", b"\x80" + b"\x7f" + b"\xff" * 10) + END, "number out of range"),
        (header(b"neg", b"\xff" * 12) + END, "number out of range"),
        (header(b"bad", b"00000000009\0") + END, "malformed number"),
        (header(b"bad", b"0000000-001\0") + END, "malformed number"),
        (header(b"bad", b"00000_00001\0") + END, "malformed number"),
        (pax((b"size", b"-1")) + header(b"a") + END, "malformed number"),
        (pax((b"mtime", b"1e9")) + header(b"a") + END, "malformed time"),
        (pax((b"path", b"x")), "unexpected EOF"),
        (header(b"pax", size(12), b"x") + b"999 a=b\nxx".ljust(512, b"\0") + END, "malformed PAX record"),
        (header(b"pax", size(4), b"x") + b"4 \n\n".ljust(512, b"\0") + END, "malformed PAX record"),
        (header(b"pax", size(2 << 20), b"x"), "header field too long"),
        (header(b"name", size(2 << 20), b"L"), "header field too long"),
        (pax((b"SCHILY.xattr.user.a", b"x" * 70000)) + header(b"a") + END, "invalid extended attribute"),
        (archive(entry("a", b"z" * 100000))[:5000], "unexpected EOF"),
        (header(b"a", size(10)), "unexpected EOF"),
        (header(b"a")[:100], "unexpected EOF"),
        (b"\x17" * 4096, "invalid tar header"),
        (header(b"a")[:10] + b"!" + header(b"a")[11:] + END, "wrong checksum"),
        (header(b"a") + bytes(512) + header(b"b"), "lone zero block"),
        (header(b"c", kind=b"3", at_329=b"\x80" + b"\xff" * 7) + END, "out of range"),
    ],
)  # fmt: skip
def test_refused(root: Path, data: bytes, message: str) -> None:
    with pytest.raises(TarError) as caught:
        apply(data, root)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_names_are_shown_without_control_characters(root: Path) -> None:
    with pytest.raises(TarError) as caught:
        apply(archive(entry("../\x1b[31m\nx")), root)
    assert str(caught.value) == 'invalid entry name "../\\x1b[31m\\nx"'


def test_entry_and_content_caps(root: Path) -> None:
    data = archive(*[entry(f"f{i}", b"12345") for i in range(5)])
    assert apply(data, root, limits=Limits(entries=5, content=25)).entries == 5
    for limits in (Limits(entries=4), Limits(content=24)):
        place = root / str(limits.entries)
        place.mkdir()
        with pytest.raises(TarError, match="more than"):
            apply(data, place, limits=limits)


def test_headers_about_headers_count(root: Path) -> None:
    with pytest.raises(TarError, match="more than 1000 entries"):
        apply(pax((b"comment", b"x")) * 2000, root, limits=Limits(entries=1000))


def test_what_follows_the_end_is_read_and_ignored(root: Path) -> None:
    source = Bytes(archive(entry("a")) + archive(entry("../b")) + b"rubbish")
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        tar.apply(source, fd)
    finally:
        os.close(fd)
    assert os.listdir(root) == ["a"]
    assert source.read(1) == b""


def test_an_empty_stream_is_an_empty_archive(root: Path) -> None:
    assert apply(b"", root) == Applied(0, 0)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_headers_raise_nothing_else(data: st.DataObject) -> None:
    """Any bytes, checksum made right, end in members or in TarError."""
    block = bytearray(header(b"name", b"00000000100\0"))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, 511))
        block[at] = data.draw(st.integers(0, 255))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    body = data.draw(st.binary(max_size=600))
    reader = Reader(Bytes(bytes(block) + body + END))
    try:
        for _ in reader:
            b"".join(reader.chunks())
    except TarError:
        pass


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=12), st.binary(max_size=12)), max_size=4), st.binary(max_size=80)
)
def test_damaged_pax_raises_nothing_else(records: list[tuple[bytes, bytes]], noise: bytes) -> None:
    keys = [b"path", b"size", b"mtime", b"GNU.sparse.size", b"GNU.sparse.map", b"GNU.sparse.major", b"linkpath"]
    named = [(keys[len(key) % len(keys)], value) for key, value in records]
    data = pax(*named) + header(b"x", size(len(noise)), b"x") + noise + bytes(-len(noise) % 512) + header(b"f") + END
    reader = Reader(Bytes(data))
    try:
        for _ in reader:
            b"".join(reader.chunks())
    except TarError:
        pass
