"""Hostile layers against a canary outside the root, and honest ones against GNU tar. As root: owners, devices, links.

Each hostile archive must leave the canary alone, whatever becomes of it, and each refusal must be one sentence.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tare.linux import libc
from tare.store import compress, tar, tarwrite
from tare.store.tar import TarError

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

FILE, LINK, SYMLINK, DIRECTORY = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE
CHARACTER, BLOCK, FIFO = tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE
UP = "../" * 20
Entry = tuple[str, bytes, dict[str, Any]]
Case = Callable[[str], list[Entry]]


def entry(name: str, kind: bytes = FILE, **fields: Any) -> Entry:
    return name, kind, fields


def symlink(name: str, target: str) -> Entry:
    return entry(name, SYMLINK, linkname=target)


def hardlink(name: str, target: str, **fields: Any) -> Entry:
    return entry(name, LINK, linkname=target, **fields)


def archive(entries: list[Entry]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name, kind, fields in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.mode = 0o777 if kind == DIRECTORY else 0o666
            data = fields.get("data", b"pwned") if kind == FILE else b""
            info.size = len(data)
            for key, value in fields.items():
                if key != "data":
                    setattr(info, key, value)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


ACCEPTED: dict[str, Case] = {
    "absolute name": lambda c: [entry(c + "/x")],
    "absolute link": lambda c: [symlink("a", c), entry("a/x")],
    "relative link": lambda c: [symlink("a", UP + c[1:]), entry("a/x")],
    "chain of links": lambda c: [symlink("a", "b"), symlink("b", "c"), symlink("c", c), entry("a/x")],
    "link and directory below": lambda c: [symlink("a", c), entry("a/d", DIRECTORY), entry("a/d/x")],
    "proc": lambda c: [entry("proc/self/root" + c + "/x")],
    "link to proc": lambda c: [symlink("p", "/proc/self/root"), entry("p" + c + "/x")],
    "link to a descriptor": lambda c: [symlink("p", "/proc/self/fd/3"), entry("p/x")],
    "dev": lambda c: [symlink("dev", c)],
    "hard link to a link, setuid": lambda c: [symlink("x", c + "/secret"), hardlink("y", "x", mode=0o4777)],
    "whiteout through a link": lambda c: [symlink("s", c), entry("s/.wh.secret")],
    "opaque through a link": lambda c: [symlink("s", c), entry("s/.wh..wh..opq")],
    "attributes through a link": lambda c: [
        symlink("s", c),
        entry("s/secret", pax_headers={"SCHILY.xattr.user.a": "b"}),
    ],
    "devices": lambda c: [
        entry("mem", CHARACTER, devmajor=1, devminor=1),
        entry("vda", BLOCK, devmajor=254, devminor=0),
    ],
    "fifo": lambda c: [entry("p", FIFO)],
    "whiteout device by hand": lambda c: [entry("w", CHARACTER, devmajor=0, devminor=0)],
}
REFUSED: dict[str, Case] = {
    "dotdot": lambda c: [entry(UP + c[1:] + "/x")],
    "dotdot in the middle": lambda c: [entry("a/" + UP + c[1:] + "/x")],
    "pax path": lambda c: [entry("ok", pax_headers={"path": UP + c[1:] + "/x"})],
    "directory becomes link": lambda c: [entry("d", DIRECTORY), symlink("d", c), entry("d/x")],
    "implied directory becomes link": lambda c: [entry("d/y"), symlink("d", c), entry("d/x")],
    "file over link": lambda c: [symlink("f", c + "/secret"), entry("f")],
    "directory over link": lambda c: [symlink("d", c), entry("d", DIRECTORY), entry("d/", DIRECTORY)],
    "fifo over link": lambda c: [symlink("d", c + "/secret"), entry("d", FIFO)],
    "link over file": lambda c: [entry("d"), symlink("d", c), entry("d/x")],
    "root is a link": lambda c: [symlink("./", c), entry("x")],
    "loop": lambda c: [symlink("a", "b"), symlink("b", "a"), entry("a/x")],
    "hard link, absolute": lambda c: [hardlink("h", c + "/secret"), entry("h")],
    "hard link, dotdot": lambda c: [hardlink("h", UP + c[1:] + "/secret")],
    "hard link through a link": lambda c: [symlink("s", c), hardlink("h", "s/secret"), entry("h")],
    "hard link, pax": lambda c: [hardlink("l", "x", pax_headers={"linkpath": c + "/secret"})],
    "hard link into a link": lambda c: [symlink("s", c), entry("f"), hardlink("s", "f")],
    "whiteout of dotdot": lambda c: [entry(".wh...")],
    "whiteout of dot": lambda c: [entry(".wh..")],
    "whiteout of nothing": lambda c: [entry("a/.wh.")],
    "whiteout then link": lambda c: [entry(".wh.d"), symlink("d", c), symlink("d", c)],
    "owner": lambda c: [entry("u", uid=1 << 32)],
}


def state(place: Path) -> str:
    """Names, kinds, modes, owners, link counts, sizes, times, attributes and content of a tree as one hash."""
    hashed = hashlib.sha256()
    for path in sorted([place, *place.rglob("*")]):
        status = path.lstat()
        hashed.update(
            f"{path} {status.st_mode} {status.st_uid} {status.st_nlink} {status.st_size} {status.st_mtime_ns}".encode()
        )
        hashed.update(repr(os.listxattr(path, follow_symlinks=False)).encode())
        if stat.S_ISREG(status.st_mode):
            hashed.update(path.read_bytes())
    return hashed.hexdigest()


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "canary"
    place.mkdir()
    (place / "secret").write_text("secret")
    (place / "secret").chmod(0o600)
    before = state(place)
    yield place
    assert state(place) == before


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = tmp_path / "root"
    place.mkdir()
    return place


def apply(data: bytes, root: Path) -> tar.Applied:
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    read_end = os.memfd_create("archive")
    try:
        os.write(read_end, data)
        os.lseek(read_end, 0, os.SEEK_SET)
        return tar.apply(compress.Descriptor(read_end), directory)
    finally:
        os.close(read_end)
        os.close(directory)


@pytest.mark.parametrize("name", ACCEPTED)
def test_kept_inside(name: str, root: Path, canary: Path) -> None:
    entries = ACCEPTED[name](str(canary))
    assert apply(archive(entries), root).entries == len(entries)
    assert not any(
        path.is_file() and not path.is_symlink() and path.read_text() == "secret" for path in root.rglob("*")
    )


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, root: Path, canary: Path) -> None:
    with pytest.raises(TarError) as caught:
        apply(archive(REFUSED[name](str(canary))), root)
    message = str(caught.value)
    assert message
    assert message.isprintable()
    assert len(message) < 300


def test_the_canary_test_can_fail(tmp_path: Path) -> None:
    """A naive unpacker does harm with the same archives: GNU tar told to trust names."""
    place, inside = tmp_path / "canary", tmp_path / "inside"
    place.mkdir()
    inside.mkdir()
    before = state(place)
    data = archive(ACCEPTED["absolute link"](str(place)))
    subprocess.run(["tar", "-x", "-P", "--keep-directory-symlink", "-C", str(inside)], input=data, check=False)
    assert state(place) != before


def test_what_only_root_can_make(root: Path) -> None:
    capability = struct.pack("<5I", 0x02000001, 1 << 21, 0, 0, 0)
    pax = {"SCHILY.xattr.security.capability": capability.decode("latin1")}
    data = archive(
        [
            entry("owned", uid=1234, gid=(1 << 32) - 2, mode=0o6755),
            entry("cap", uid=1, pax_headers=pax),
            entry("null", CHARACTER, devmajor=1, devminor=3, mode=0o666, uid=5),
            entry("disk", BLOCK, devmajor=259, devminor=70000),
            entry("setgid", DIRECTORY, gid=50, mode=0o2775),
            entry("setgid/inside"),
            symlink("link", "owned"),
        ]
    )
    apply(data, root)
    owned = (root / "owned").stat()
    assert (owned.st_uid, owned.st_gid, owned.st_mode) == (1234, (1 << 32) - 2, 0o106755)
    assert os.getxattr(root / "cap", "security.capability") == capability
    null = (root / "null").stat()
    assert (null.st_mode, os.major(null.st_rdev), os.minor(null.st_rdev), null.st_uid) == (0o020666, 1, 3, 5)
    disk = (root / "disk").stat()
    assert (os.major(disk.st_rdev), os.minor(disk.st_rdev)) == (259, 70000)
    assert (root / "setgid").stat().st_mode == 0o042775
    assert (root / "setgid/inside").stat().st_gid == 0, "the group is what the archive says, not inherited"


def test_whiteouts_hide_in_a_real_overlay(tmp_path: Path) -> None:
    """The marks mean to the kernel what they have to: layer over layer, as the engine mounts them."""
    base, top = tmp_path / "base", tmp_path / "top"
    base.mkdir()
    top.mkdir()
    apply(archive([entry("gone"), entry("kept"), entry("d/old"), entry("e/old"), entry("f/old")]), base)
    marks = [entry(".wh.gone"), entry("d/.wh..wh..opq"), entry("d/new"), entry(".wh.e"), entry("e/new"), entry("f/new")]
    apply(archive(marks), top)
    out: list[bytes] = []
    context = libc.fsopen("overlay")
    for place in (top, base):
        libc.fsconfig_set_string(context, "lowerdir+", str(place))
    libc.fsconfig_create(context)
    mount = libc.fsmount(context)
    os.close(context)
    merged = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=mount)
    try:
        tarwrite.create(merged, out.append, whiteouts=False)
    finally:
        os.close(merged)
        os.close(mount)
    with tarfile.open(fileobj=io.BytesIO(b"".join(out))) as file:
        assert file.getnames() == ["d", "d/new", "e", "e/new", "f", "f/new", "f/old", "kept"]


def listing(place: Path) -> list[tuple[Any, ...]]:
    """Everything GNU tar and we must agree on."""
    found: list[tuple[Any, ...]] = []
    for path in sorted(place.rglob("*")):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        found.append(
            (
                str(path.relative_to(place)),
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_rdev,
                0 if kind == stat.S_IFDIR else status.st_nlink,
                status.st_mtime_ns,
                os.readlink(path) if kind == stat.S_IFLNK else "",
                hashlib.sha256(path.read_bytes()).digest() if kind == stat.S_IFREG else b"",
                os.listxattr(path, follow_symlinks=False),
            )
        )
    return found


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A piece of this system with links, owners, capabilities, long names, sparse files and strange times added."""
    place = tmp_path_factory.mktemp("honest")
    for source in ("/etc", "/usr/share/doc"):
        picked = sorted(os.listdir(source))[:150]
        target = place / Path(source).name
        target.mkdir()
        subprocess.run(["cp", "-a", "--", *[f"{source}/{name}" for name in picked], str(target)], check=True)
    extra = place / "extra"
    (extra / ("deep" * 30) / ("er" * 100)).mkdir(parents=True)
    (extra / ("deep" * 30) / ("er" * 100) / "file").write_text("long")
    (extra / "sparse").write_bytes(b"a")
    with (extra / "sparse").open("r+b") as file:
        for at in range(0, 10 << 20, 1 << 20):
            file.seek(at)
            file.write(b"x" * 5000)
        file.truncate(12 << 20)
    os.link(extra / "sparse", extra / "also")
    os.symlink("t" * 200, extra / "long link")
    os.mkfifo(extra / "fifo")
    os.mknod(extra / "null", 0o20666, os.makedev(1, 3))
    os.chown(extra / "null", 70000, 3_000_000_000)
    (extra / "é \n x").write_text("name")
    os.setxattr(extra / "also", "user.test", b"value")
    os.utime(extra / "also", ns=(1_500_000_000_123_456_789, 1_500_000_000_123_456_789))
    (extra / "setgid").mkdir()
    os.chown(extra / "setgid", 0, 8)
    (extra / "setgid").chmod(0o2775)
    return place


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=gnu", "--sparse"],
        ["--format=pax", "--sparse", "--xattrs"],
        ["--format=pax", "--sparse", "--sparse-version=0.1"],
        ["--format=pax", "--sparse", "--sparse-version=0.0"],
    ],
)
def test_same_tree_as_gnu_tar(honest: Path, tmp_path: Path, options: list[str]) -> None:
    data = tmp_path / "honest.tar"
    subprocess.run(["tar", "-c", "-f", str(data), *options, "-C", str(honest), "."], check=True)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    subprocess.run(["tar", "-xp", "--numeric-owner", "--xattrs", "-f", str(data), "-C", str(theirs)], check=True)
    apply(data.read_bytes(), ours)
    assert listing(ours) == listing(theirs)
    if "--sparse" in options:
        assert (ours / "extra/sparse").stat().st_blocks < 2 * (12 << 20) // 512 // 3, "holes stay holes"


def test_gnu_tar_reads_ours(honest: Path, tmp_path: Path) -> None:
    fd = os.open(honest, os.O_RDONLY | os.O_DIRECTORY)
    data = tmp_path / "ours.tar"
    try:
        with data.open("wb") as out:
            tarwrite.create(fd, out.write)
    finally:
        os.close(fd)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    command = ["tar", "-xp", "--numeric-owner", "--xattrs", "-f", str(data), "-C", str(theirs)]
    result = subprocess.run(command, check=True, capture_output=True)
    assert result.stderr == b""
    apply(data.read_bytes(), ours)
    assert listing(ours) == listing(theirs)
    whole = [(*row[:6], row[6] // 10**9, *row[7:]) for row in listing(honest)]
    assert [(*row[:6], row[6] // 10**9, *row[7:]) for row in listing(ours)] == whole
