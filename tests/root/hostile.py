"""Archives that mean harm, and images around them. Every case is one known attack or one way to waste a machine.

`cases(canary)` gives name -> Case. `canary` is a directory outside of every root, with a file `secret` in it: whatever
is done with an archive, nothing there may change. A case says what has to become of it: a pattern for the one sentence
of the refusal, or None where the archive is honest enough to be taken (then its entries stay inside the root).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FILE, LINK, SYMLINK, DIRECTORY = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE
EMPTY = {"data": b""}
TWICE = r"duplicates of file paths not supported"


class Canary:
    """A directory outside of every root that nothing may change, with a secret that nothing may show."""

    SECRET = "canary-3f9c1b"

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(mode=0o700)
        (path / "secret").write_text(self.SECRET + "\n")
        (path / "secret").chmod(0o600)
        self.before = self.state()

    def __str__(self) -> str:
        return str(self.path)

    def state(self) -> list[tuple[object, ...]]:
        """Names, modes, owners, link counts, sizes and content of all that is there."""
        found: list[tuple[object, ...]] = []
        for path in [self.path, *sorted(self.path.rglob("*"))]:
            status = os.lstat(path)
            content = path.read_bytes() if path.is_file() else b""
            found.append((str(path), status.st_mode, status.st_uid, status.st_gid, status.st_nlink, content))
        return found

    def check(self, *outputs: str) -> None:
        assert self.state() == self.before
        assert not any(self.SECRET in output for output in outputs)


class Case(NamedTuple):
    archive: bytes
    refusal: str | None
    """Regular expression for the sentence, None: taken."""


def tar(*entries: tuple[object, ...]) -> bytes:
    """entries: (name, type, {TarInfo field: value}); "data" is the content of a file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, *more in entries:
            fields = dict(more[0]) if more else {}  # type: ignore[call-overload]
            data = fields.pop("data", b"pwn\n") if kind == FILE else b""
            info = tarfile.TarInfo(str(name))
            info.type = kind  # type: ignore[assignment]
            info.mode = 0o755 if kind == DIRECTORY else 0o644
            info.size = len(data)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def symlink(name: str, target: str) -> tuple[object, ...]:
    return (name, SYMLINK, {"linkname": target})


def hardlink(name: str, target: str, **fields: object) -> tuple[object, ...]:
    return (name, LINK, {"linkname": target, **fields})


def file(name: str, **fields: object) -> tuple[object, ...]:
    return (name, FILE, fields)


def pax(name: str, **records: str) -> tuple[object, ...]:
    return (name, FILE, {"pax_headers": {key.replace("__", "."): value for key, value in records.items()}})


def xattr(name: str, kind: bytes, key: str, value: str) -> tuple[object, ...]:
    return (name, kind, {"pax_headers": {f"SCHILY.xattr.{key}": value}})


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A ustar header as tarfile would never write it; `size` is the field as it stands."""
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:156] = b"0000644\0" + b"0000000\0" * 2 + size + b"00000000000\0" + b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def cases(canary: str) -> dict[str, Case]:
    return dict([*_paths(canary), *_links(canary), *_inodes(canary), *_whiteouts(canary), *_numbers(canary), *_bulk()])


def _paths(canary: str) -> Iterator[tuple[str, Case]]:
    up = "../" * 12 + canary[1:]
    outside = r"invalid entry name|outside"
    yield "benign", Case(tar(file("ok")), None)
    yield "dotdot", Case(tar(file(up + "/dotdot")), outside)
    yield "absolute", Case(tar(file(canary + "/absolute")), None)
    yield "middle_dotdot", Case(tar(file("a/../../../" + canary[1:] + "/middle")), outside)
    yield "symlink_absolute", Case(tar(symlink("a", canary), file("a/pwn")), None)
    yield "symlink_relative", Case(tar(symlink("a", up), file("a/pwn")), None)
    yield "symlink_chain", Case(tar(symlink("a", "b"), symlink("b", "c"), symlink("c", canary), file("a/pwn")), None)
    yield "symlink_loop", Case(tar(symlink("a", "b"), symlink("b", "a"), file("a/x")), r"symbolic links|loop")
    flipped = [("etc", DIRECTORY), symlink("etc", canary), file("etc/pwn")]
    yield "directory_to_symlink", Case(tar(*flipped), r"cannot overwrite directory")
    yield "file_over_symlink", Case(tar(symlink("f", canary + "/secret"), file("f")), TWICE)
    yield "file_becomes_symlink", Case(tar(file("d"), symlink("d", canary), file("d/x")), TWICE)
    yield "root_is_symlink", Case(tar(symlink("./", canary), file("pwn")), r"cannot overwrite directory")
    yield "dev_is_symlink", Case(tar(symlink("dev", canary)), None)
    yield "proc_self_root", Case(tar(file("proc/self/root" + canary + "/pwn")), None)
    yield "pax_path", Case(tar(pax("safe", path=up + "/pax")), outside)
    yield "second_archive", Case(tar(file("a")) + tar(file(up + "/second")), None)
    yield "name_newline", Case(tar(file("a\nb\x1b[31m")), None)
    yield "name_bad_utf8", Case(header(b"\xff\xfe\xfd", b"00000000000\0") + bytes(1024), None)
    yield "name_component_300", Case(tar(file("c" * 300)), r"too long|255")
    yield "name_3000", Case(tar(file("x/" * 1500 + "f")), r"deep|depth|levels|too long")


def _links(canary: str) -> Iterator[tuple[str, Case]]:
    up = "../" * 12 + canary[1:]
    missing = r"no such file|invalid hardlink|outside"
    secret = canary + "/secret"
    yield "hardlink_absolute", Case(tar(hardlink("h", secret)), missing)
    yield "hardlink_dotdot", Case(tar(hardlink("h", up + "/secret")), missing)
    yield "hardlink_by_symlink", Case(tar(symlink("s", canary), hardlink("h", "s/secret"), file("h")), missing)
    yield "hardlink_to_symlink_mode", Case(tar(symlink("x", secret), hardlink("y", "x", mode=0o4777)), None)
    yield "hardlink_to_itself", Case(tar(hardlink("h", "h")), missing)
    yield "pax_linkpath", Case(tar(("l", LINK, {"linkname": "x", "pax_headers": {"linkpath": secret}})), missing)
    changed = [("d", DIRECTORY, {"mode": 0o777}), ("d/", DIRECTORY, {"mode": 0o777})]
    yield "mode_through_symlink", Case(tar(symlink("d", canary), *changed), TWICE)


def _inodes(canary: str) -> Iterator[tuple[str, Case]]:
    capability = struct.pack("<5I", 0x02000001, 1 << 21, 0, 0, 0).decode("latin1")
    nodes = [
        ("mem", tarfile.CHRTYPE, {"devmajor": 1, "devminor": 1}),
        ("vda", tarfile.BLKTYPE, {"devmajor": 254, "devminor": 0}),
    ]
    yield "device_nodes", Case(tar(*nodes), None)
    yield "fifo", Case(tar(("p", tarfile.FIFOTYPE)), None)
    yield "setuid", Case(tar(file("su", mode=0o6755)), None)
    yield "xattr_capability", Case(tar(xattr("c", FILE, "security.capability", capability)), None)
    yield "xattr_opaque", Case(tar(xattr("etc", DIRECTORY, "trusted.overlay.opaque", "y")), None)
    yield "xattr_redirect", Case(tar(xattr("etc", DIRECTORY, "trusted.overlay.redirect", canary)), None)
    yield "xattr_selinux", Case(tar(xattr("c", FILE, "security.selinux", "x")), None)


def _whiteouts(canary: str) -> Iterator[tuple[str, Case]]:
    invalid = r"invalid whiteout|whiteout"
    yield "whiteout_of_dotdot", Case(tar(file(".wh...", **EMPTY)), invalid)
    yield "whiteout_of_dot", Case(tar(file(".wh..", **EMPTY)), invalid)
    yield "whiteout_of_nothing", Case(tar(file("a/.wh.", **EMPTY)), invalid)
    yield "opaque_root", Case(tar(file(".wh..wh..opq", **EMPTY)), None)
    yield "opaque_5000_times", Case(tar(("etc", DIRECTORY), *[file("etc/.wh..wh..opq", **EMPTY)] * 5000), TWICE)
    private = [(".wh..wh.plnk", DIRECTORY), file(".wh..wh.plnk/1.2"), hardlink("q", ".wh..wh.plnk/1.2")]
    yield "aufs_links", Case(tar(*private), None)
    yield "whiteout_by_symlink", Case(tar(symlink("s", canary), file("s/.wh.secret", **EMPTY)), None)


def _numbers(canary: str) -> Iterator[tuple[str, Case]]:
    broken = r"invalid tar header|unexpected EOF"
    sparse = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": str(1 << 30)
    }  # fmt: skip
    hole = ("s", FILE, {"data": b"1\n0\n1\n".ljust(512, b"\0") + b"x", "pax_headers": sparse})
    yield "size_8_eib", Case(header(b"big", b"\x80\x7f" + b"\xff" * 10) + bytes(1024), broken)
    yield "size_negative", Case(header(b"negative", b"\xff" * 12) + bytes(1024), broken)
    yield "pax_size_negative", Case(tar(pax("a", size="-1")), broken)
    record = header(b"pax", b"00000000012\0", b"x") + b"999 a=b\nxx".ljust(512, b"\0")
    yield "pax_record_length", Case(record + tar(file("a")), broken)
    yield "pax_2_mib", Case(tar(pax("a", comment="A" * (2 << 20))), r"header field too long")
    yield "sparse_1_gib", Case(tar(hole), r"sparse bomb")
    yield "owner_2_to_32", Case(tar(file("u", uid=1 << 32, gid=(1 << 32) + 5)), r"owner out of range")
    yield "owner_negative", Case(tar(file("u", uid=-1)), r"owner out of range")
    yield "time_2_to_60", Case(tar(file("m", mtime=1 << 60)), None)
    yield "time_negative", Case(tar(file("m", mtime=-(1 << 40))), None)
    yield "type_z", Case(header(b"z", b"00000000000\0", b"Z") + bytes(1024), r"unhandled tar header type")
    yield "truncated", Case(tar(file("a", data=b"z" * 100000))[:5000], r"unexpected EOF")
    yield "garbage", Case(hashlib.sha512(canary.encode()).digest() * 64, broken)
    yield "empty", Case(b"", None)


def _bulk() -> Iterator[tuple[str, Case]]:
    yield "entries_50000", Case(tar(*[file(f"e/{number}", **EMPTY) for number in range(50000)]), None)
    yield "directories_2000_deep", Case(tar(("d/" * 2000, DIRECTORY)), r"deep|depth|levels|too long")


def metadata(canary: str) -> dict[str, bytes]:
    """Image archives whose own files are not files (CVE-2026-23954 and its family): name -> archive."""
    found = {}
    for name, kind, target in [
        ("manifest.json", SYMLINK, canary + "/secret"),
        ("manifest.json", LINK, canary + "/secret"),
        ("manifest.json", tarfile.FIFOTYPE, ""),
        ("manifest.json", DIRECTORY, ""),
        ("config.json", SYMLINK, canary + "/secret"),
        ("0/layer.tar", SYMLINK, canary + "/secret"),
        ("0/layer.tar", tarfile.CHRTYPE, ""),
    ]:
        entries = [entry for entry in image_files("hostile:load", [honest()]) if entry[0] != name]
        fields = {"linkname": target, "devmajor": 1, "devminor": 5}
        found[f"{name.replace('/', '_')}-{kind.decode()}"] = tar(*entries, (name, kind, fields))
    digest = "sha256:../../../../../../../../" + canary[1:] + "/secret"
    manifest = {"schemaVersion": 2, "config": {"mediaType": "x", "digest": digest, "size": 14}, "layers": []}
    encoded = json.dumps(manifest).encode()
    name = hashlib.sha256(encoded).hexdigest()
    index = {"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": f"sha256:{name}", "size": len(encoded)
    }]}  # fmt: skip
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index).encode()}
    files[f"blobs/sha256/{name}"] = encoded
    found["digest-is-a-path"] = tar(*[file(path, data=data) for path, data in files.items()])
    return found


def honest() -> bytes:
    """A layer below a hostile one."""
    return tar(("etc", DIRECTORY), file("etc/base"), ("a_base", DIRECTORY))


def image_files(reference: str, layers: list[bytes], **config: object) -> list[tuple[object, ...]]:
    document = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Cmd": ["/x"], **config},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]},
    }
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = [{"Config": "config.json", "RepoTags": [reference], "Layers": names}]
    members = dict(zip(names, layers, strict=True))
    members |= {"config.json": json.dumps(document).encode(), "manifest.json": json.dumps(manifest).encode()}
    return [file(name, data=data) for name, data in members.items()]


def image(reference: str, layers: list[bytes], **config: object) -> bytes:
    """A docker-archive of one image; `config` as in an image's "config" (Env, Cmd, ...)."""
    return tar(*image_files(reference, layers, **config))


def layer_of(archive: Path) -> bytes:
    """The only layer of a docker-archive."""
    with tarfile.open(archive) as opened:
        (name,) = [name for name in opened.getnames() if name.endswith("/layer.tar")]
        content = opened.extractfile(name)
        assert content is not None
        return content.read()
