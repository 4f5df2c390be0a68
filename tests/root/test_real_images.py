"""Images as other tools make and read them: skopeo, podman, mmdebstrap; compressed, in several formats, many layers."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile
import pytest
from conftest import CACHE, SLOW, Engine, debian_tar

pytestmark = pytest.mark.root

NONE = ("--network", "none")
ZSTD_MAGIC, GZIP_MAGIC = b"\x28\xb5\x2f\xfd", b"\x1f\x8b"


def tool(*command: str, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120 * SLOW, check=False, **options)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def skopeo_copy(source: str, target: str, *options: str) -> None:
    tool("skopeo", "--insecure-policy", "copy", "-q", *options, source, target)


def load(engine: Engine, archive: Path) -> str:
    return engine.docker("load", "-q", "-i", str(archive), timeout=120 * SLOW).stdout


def says(engine: Engine, image: str, *command: str) -> str:
    return engine.docker("run", "--rm", *NONE, image, *command).stdout.strip()


def image(engine: Engine, name: str) -> dict[str, Any]:
    """What inspect tells, without what says when it came and under which names."""
    found: dict[str, Any] = json.loads(engine.docker("image", "inspect", name).stdout)[0]
    return {key: value for key, value in found.items() if key not in ("RepoTags", "RepoDigests", "Metadata")}


def blobs(archive: Path) -> list[bytes]:
    """The first bytes of every blob of an OCI archive."""
    with tarfile.open(archive) as opened:
        files = [member for member in opened if member.isfile() and "blobs/" in member.name]
        return [content.read(4) for member in files if (content := opened.extractfile(member))]


class Podman:
    """With a store of its own."""

    def __init__(self, root: Path) -> None:
        self.options = [
            "--root", str(root / "root"), "--runroot", str(root / "run"), "--tmpdir", str(root / "tmp"),
            "--storage-driver", "vfs", "--events-backend", "none", "--cgroup-manager", "cgroupfs",
        ]  # fmt: skip

    def __call__(self, *arguments: str) -> str:
        return tool("podman", *self.options, *arguments)


@pytest.fixture
def podman() -> Iterator[Podman]:
    root = Path(tempfile.mkdtemp(prefix="podman-"))  # its --runroot may have 50 characters
    try:
        yield Podman(root)
    finally:
        shutil.rmtree(root)


# -- formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transport", "options", "magic"),
    [
        ("docker-archive", (), None),
        ("oci-archive", (), GZIP_MAGIC),
        ("oci-archive", ("--dest-compress-format", "zstd"), ZSTD_MAGIC),
    ],
    ids=["docker-archive", "oci-archive-gzip", "oci-archive-zstd"],
)
def test_archive_of_skopeo_is_loaded_and_runs(
    clean: Engine, busybox_archive: Path, tmp_path: Path, transport: str, options: tuple[str, ...], magic: bytes | None
) -> None:
    archive = tmp_path / "archive.tar"
    skopeo_copy(f"docker-archive:{busybox_archive}", f"{transport}:{archive}:docker.io/library/by-skopeo:1", *options)
    if magic:
        assert any(head.startswith(magic) for head in blobs(archive))
    assert load(clean, archive) == "Loaded image: by-skopeo:1\n"
    assert says(clean, "by-skopeo:1", "echo", "hello") == "hello"
    assert image(clean, "by-skopeo:1")["RootFS"] == image(clean, "busybox")["RootFS"]
    clean.docker("rmi", "by-skopeo:1")


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_archive_of_podman_is_loaded_and_runs(
    clean: Engine, busybox_archive: Path, tmp_path: Path, podman: Podman, kind: str
) -> None:
    archive = tmp_path / "archive.tar"
    podman("load", "-q", "-i", str(busybox_archive))
    podman("tag", "busybox:latest", "docker.io/library/by-podman:1")
    podman("save", "-q", "--format", kind, "-o", str(archive), "docker.io/library/by-podman:1")
    assert load(clean, archive) == "Loaded image: by-podman:1\n"
    assert says(clean, "by-podman:1", "echo", "hello") == "hello"
    clean.docker("rmi", "by-podman:1")


def test_two_images_in_one_archive_of_podman(
    clean: Engine, busybox_archive: Path, tmp_path: Path, podman: Podman
) -> None:
    archive, second = tmp_path / "both.tar", tmp_path / "second.tar"
    layer = hostile.tar(hostile.file("second", data=b"2\n"))
    second.write_bytes(hostile.image("second:1", [hostile.layer_of(busybox_archive), layer], Cmd=["cat", "/second"],
                                     Env=["PATH=/bin"]))  # fmt: skip
    for path in (busybox_archive, second):
        podman("load", "-q", "-i", str(path))
    names = {"busybox:latest": "docker.io/library/one:1", "second:1": "docker.io/library/two:1"}
    for old, new in names.items():
        podman("tag", old, new)
    podman("save", "-q", "-m", "-o", str(archive), *names.values())
    assert sorted(load(clean, archive).splitlines()) == ["Loaded image: one:1", "Loaded image: two:1"]
    assert says(clean, "two:1") == "2"
    # The layer below is stored once, whoever brought it.
    assert image(clean, "two:1")["RootFS"]["Layers"][0] == image(clean, "busybox")["RootFS"]["Layers"][0]
    clean.docker("rmi", "one:1", "two:1")


@pytest.mark.parametrize("name", ["gzip", "zstd", "xz", "bzip2"])
def test_compressed_archive_is_loaded(clean: Engine, busybox_archive: Path, tmp_path: Path, name: str) -> None:
    archive = tmp_path / "archive"
    if name == "xz":
        archive.write_bytes(lzma.compress(busybox_archive.read_bytes(), preset=0))
    else:
        with archive.open("wb") as file:
            program = {"gzip": ["gzip", "-1", "-c"], "zstd": ["zstd", "-1", "-c"], "bzip2": ["busybox", "bzip2", "-c"]}[name]
            subprocess.run([*program, str(busybox_archive)], stdout=file, stderr=subprocess.DEVNULL, check=True)
    before = image(clean, "busybox")
    assert load(clean, archive) == "Loaded image: busybox:latest\n"
    assert image(clean, "busybox") == before


# -- what we write -------------------------------------------------------------------------------------------------


def test_other_tools_read_what_save_writes(
    clean: Engine, busybox_archive: Path, tmp_path: Path, podman: Podman
) -> None:
    saved = tmp_path / "saved.tar"
    clean.docker("tag", "busybox", "docker.io/library/ours:1")
    clean.docker("save", "-o", str(saved), "ours:1")
    expected = image(clean, "ours:1")
    for source in (f"docker-archive:{saved}", f"oci-archive:{saved}:1"):
        found = json.loads(tool("skopeo", "inspect", source))
        assert (found["Architecture"], found["Os"]) == (expected["Architecture"], expected["Os"])
        assert found["Env"] == expected["Config"]["Env"]
        config = tool("skopeo", "inspect", "--config", "--raw", source)
        assert json.loads(config)["rootfs"]["diff_ids"] == expected["RootFS"]["Layers"]
    podman("load", "-q", "-i", str(saved))
    listed = json.loads(podman("images", "--format", "json"))
    assert [entry["Id"] for entry in listed] == [expected["Id"].removeprefix("sha256:")]
    clean.docker("rmi", "ours:1")


def test_image_is_the_same_after_save_and_load(clean: Engine, busybox_archive: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    skopeo_copy(f"docker-archive:{busybox_archive}", f"oci-archive:{first}:docker.io/library/same:1")
    load(clean, first)
    before = image(clean, "same:1")
    clean.docker("save", "-o", str(first), "same:1")
    clean.docker("rmi", "same:1")
    assert clean.docker("image", "inspect", "same:1", check=False).returncode == 1
    load(clean, first)
    assert image(clean, "same:1") == before
    clean.docker("save", "-o", str(second), "same:1")
    with tarfile.open(first) as one, tarfile.open(second) as two:
        assert one.getnames() == two.getnames()
        index = one.extractfile("index.json"), two.extractfile("index.json")
        manifests = [json.loads(file.read())["manifests"][0]["digest"] for file in index if file]
    assert len(manifests) == 2 and manifests[0] == manifests[1]
    clean.docker("rmi", "same:1")


# -- a whole distribution ------------------------------------------------------------------------------------------


def compressed(program: str, suffix: str) -> Path:
    """The Debian root, compressed once per machine."""
    path = debian_tar().with_suffix(f".tar.{suffix}")
    if not path.exists():
        draft = CACHE / f"draft.{suffix}"
        with draft.open("wb") as file:
            subprocess.run([program, "-1", "-c", str(debian_tar())], stdout=file, stderr=subprocess.DEVNULL, check=True)
        draft.rename(path)
    return path


@pytest.fixture(scope="module")
def debian(engine: Engine) -> str:
    done = engine.docker("import", "--change", "CMD cat /etc/os-release", str(debian_tar()), "debian:test",
                         timeout=180 * SLOW)  # fmt: skip
    return done.stdout.strip()


def test_distribution_runs(clean: Engine, debian: str) -> None:
    assert "bookworm" in says(clean, "debian:test")
    assert says(clean, "debian:test", "apt-get", "--version").startswith("apt 2.")
    script = "import os, sys; print(sys.version_info[0], os.getuid(), len(os.listdir('/usr/bin')))"
    version, user, programs = map(int, says(clean, "debian:test", "python3", "-c", script).split())
    assert (version, user) == (3, 0) and programs > 200
    assert says(clean, "debian:test", "dpkg", "--verify", "base-files") == ""
    size = image(clean, "debian:test")["Size"]
    assert size > 100 << 20


def packed(archive: Path) -> dict[str, tuple[object, ...]]:
    """path -> type, mode, uid, gid, size, link, seconds, digest; what the engine puts there itself is left out."""
    own = ("/dev", "/proc", "/sys", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/.dockerenv")
    touched = ("/", "/etc")
    found: dict[str, tuple[object, ...]] = {}
    with tarfile.open(archive) as opened:
        for member in opened:
            path = "/" + member.name.removeprefix(".").strip("/")
            if path in touched or path.startswith(own):
                continue
            if member.islnk():
                found[path] = found["/" + member.linkname.removeprefix(".").strip("/")]
                continue
            kind, mode, size, digest = "d", member.mode, "", ""
            if member.issym():
                kind, mode = "l", 0o777
            elif member.isreg():
                content = opened.extractfile(member)
                assert content is not None
                kind, size, digest = "f", str(member.size), hashlib.file_digest(content, "sha256").hexdigest()
            found[path] = (kind, f"{mode:o}", member.uid, member.gid, size, member.linkname, int(member.mtime), digest)
    return found


def test_every_entry_of_a_distribution_is_unpacked_as_it_was_packed(clean: Engine, debian: str) -> None:
    """Type, mode, owner, size, target, time and content of thousands of files, told by find(1) and sha256sum(1)."""
    script = r"""
        find / -xdev -printf '%y %m %U %G %s %T@ %p\t%l\n'; echo
        find / -xdev -type f -print0 | xargs -0 sha256sum"""
    told, _, sums = says(clean, "debian:test", "sh", "-c", script).partition("\n\n")
    digests = {path: digest for digest, _, path in (line.partition("  ") for line in sums.splitlines())}
    seen: dict[str, tuple[object, ...]] = {}
    for line in told.splitlines():
        kind, mode, uid, gid, size, seconds, rest = line.split(" ", 6)
        path, _, target = rest.partition("\t")
        time = int(seconds.partition(".")[0])
        size = size if kind == "f" else ""
        seen[path] = (kind, mode, int(uid), int(gid), size, target, time, digests.get(path, ""))
    expected = packed(debian_tar())
    assert len(expected) > 3000
    assert {path: (facts, seen.get(path)) for path, facts in expected.items() if seen.get(path) != facts} == {}


@pytest.mark.parametrize(("program", "suffix"), [("gzip", "gz"), ("zstd", "zst")])
def test_compressed_root_is_imported_as_the_same_layer(
    clean: Engine, debian: str, program: str, suffix: str
) -> None:
    name = f"debian:{suffix}"
    clean.docker("import", str(compressed(program, suffix)), name, timeout=180 * SLOW)
    assert image(clean, name)["RootFS"] == image(clean, "debian:test")["RootFS"]
    assert says(clean, name, "python3", "-c", "print(6 * 7)") == "42"
    clean.docker("rmi", name)


def test_distribution_goes_out_and_comes_back_through_skopeo(clean: Engine, debian: str, tmp_path: Path) -> None:
    saved, copied = tmp_path / "saved.tar", tmp_path / "copied.tar"
    clean.docker("save", "-o", str(saved), "debian:test", timeout=120 * SLOW)
    found = json.loads(tool("skopeo", "inspect", f"docker-archive:{saved}"))
    assert found["Layers"] == image(clean, "debian:test")["RootFS"]["Layers"]
    skopeo_copy(f"docker-archive:{saved}", f"docker-archive:{copied}:docker.io/library/debian:back")
    saved.unlink()
    assert load(clean, copied) == "Loaded image: debian:back\n"
    copied.unlink()
    assert image(clean, "debian:back")["Id"] == debian
    assert says(clean, "debian:back", "python3", "-c", "print('back')") == "back"
    clean.docker("rmi", "debian:back")


# -- many layers ---------------------------------------------------------------------------------------------------


def layered(name: str, base: bytes, count: int) -> io.BytesIO:
    """An image of `count` layers: n adds /l/n and writes /top; every tenth deletes the file of the one before it."""
    layers = [base]
    for number in range(1, count):
        entries = [hostile.file(f"l/{number}", data=b"%d\n" % number), hostile.file("top", data=b"%d\n" % number)]
        if number % 10 == 0:
            entries.append(hostile.file(f"l/.wh.{number - 1}", data=b""))
        layers.append(hostile.tar(*entries))
    return io.BytesIO(hostile.image(name, layers, Env=["PATH=/bin"], Cmd=["sh"]))


@pytest.mark.parametrize("count", [130, 500])
def test_all_of_many_layers_are_seen(clean: Engine, busybox_archive: Path, count: int) -> None:
    """mount(2) takes one page of options and cuts what is longer without a word: from about 190 layers, some vanish."""
    name = f"many:{count}"
    clean.docker("load", "-q", input=layered(name, hostile.layer_of(busybox_archive), count).getvalue())
    found = says(clean, name, "sh", "-c", "cat /top; ls /l").split()
    expected = {str(number) for number in range(1, count) if (number + 1) % 10 or number + 1 >= count}
    assert found[0] == str(count - 1) and set(found[1:]) == expected
    assert says(clean, name, "sh", "-c", "rm -r /l && echo new > /l && cat /l") == "new"
    assert len(image(clean, name)["RootFS"]["Layers"]) == count
    clean.docker("rmi", name)


def test_more_layers_than_overlay_stacks_are_refused(clean: Engine, busybox_archive: Path) -> None:
    done = clean.docker("load", input=layered("many:501", hostile.layer_of(busybox_archive), 501).getvalue(), check=False)
    sentence = done.stderr.decode().strip()
    assert done.returncode == 1 and "\n" not in sentence
    assert "more than 500 layers" in sentence
    assert clean.docker("image", "inspect", "many:501", check=False).returncode == 1
