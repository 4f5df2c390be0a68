"""store/jobs.py with the real worker: load, import, unpack, export, save. Owners are this process's: no root needed."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import json
import lzma
import os
import select
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tars import DIRECTORY, LINK, SYMLINK, archive, entry

from tare.errors import Invalid, Unavailable
from tare.oci import image
from tare.store import jobs

BASE = archive(entry("etc", kind=DIRECTORY), entry("etc/base", b"base"))
TOP = archive(entry("top", b"top"), entry("etc/.wh.base"))


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def config(*layers: bytes, **fields: Any) -> bytes:
    rootfs = {"type": "layers", "diff_ids": [sha(layer) for layer in layers]}
    return json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs, **fields}).encode()


def files(**members: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [entry(name, data) for name, data in members.items()]


def docker(*layers: bytes, config_bytes: bytes | None = None, tags: list[str] | None = None, **changes: Any) -> bytes:
    """A docker-archive; `changes` replace keys of its manifest.json."""
    item = {"Config": "c.json", "RepoTags": tags, "Layers": [f"{i}/layer.tar" for i in range(len(layers))], **changes}
    members = {f"{i}/layer.tar": layer for i, layer in enumerate(layers)}
    members["c.json"] = config_bytes if config_bytes is not None else config(*layers)
    return archive(*files(**members, **{"manifest.json": json.dumps([item]).encode()}))


def descriptor(data: bytes, media_type: str, **fields: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha(data), "size": len(data), **fields}


class Layout:
    """An OCI layout being written."""

    def __init__(self) -> None:
        self.members: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}

    def blob(self, data: bytes, media_type: str, **fields: Any) -> dict[str, Any]:
        self.members["blobs/" + sha(data).replace(":", "/")] = data
        return descriptor(data, media_type, **fields)

    def image(self, *layers: tuple[bytes, bytes, str], **fields: Any) -> dict[str, Any]:
        """Layers as (plain, stored, media type); the descriptor of the manifest."""
        manifest = {
            "schemaVersion": 2,
            "mediaType": image.MANIFEST,
            "config": self.blob(config(*[plain for plain, _, _ in layers], **fields.pop("config", {})), image.CONFIG),
            "layers": [self.blob(stored, media_type) for _, stored, media_type in layers],
        }
        return self.blob(json.dumps(manifest).encode(), image.MANIFEST, **fields)

    def index(self, *manifests: dict[str, Any]) -> bytes:
        return json.dumps({"schemaVersion": 2, "mediaType": image.INDEX, "manifests": manifests}).encode()

    def tar(self, *manifests: dict[str, Any]) -> bytes:
        return archive(*files(**self.members, **{"index.json": self.index(*manifests)}))


class Bench:
    """A folder with an ingest directory and staging directories; runs jobs against them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ingest = root / "ingest"
        self.ingest.mkdir()
        self.known: set[str] = set()
        self.staged: dict[str, Path] = {}
        self.progress: list[jobs.Progress] = []

    async def answer(self, need: jobs.Need) -> dict[str, str]:
        for layer in need.layers:
            if layer.chain_id not in self.known:
                place = self.root / f"fs{len(self.staged)}"
                place.mkdir()
                self.staged[layer.chain_id] = place
        return {chain: str(path) for chain, path in self.staged.items()}

    def descriptor(self, data: bytes) -> int:
        path = self.root / "archive"
        path.write_bytes(data)
        return os.open(path, os.O_RDONLY)

    def run(self, job: jobs.Job) -> jobs.Done:
        async def whole() -> jobs.Done:
            async with contextlib.aclosing(jobs.Worker().run(job, self.answer)) as messages:
                async for message in messages:
                    if isinstance(message, jobs.Done):
                        return message
                    self.progress.append(message)
            raise AssertionError("no Done")

        return asyncio.run(whole())

    def load(self, data: bytes, platform: str = "") -> jobs.Done:
        job = jobs.LoadJob(archive=self.descriptor(data), ingest=str(self.ingest), platform=platform)
        done = self.run(job)
        for blob in done.blobs:
            assert sha((self.ingest / blob.file).read_bytes()) == blob.digest
            assert (self.ingest / blob.file).stat().st_size == blob.size
        named = {d for i in done.images for d in (i.config, i.manifest, *(layer.digest for layer in i.layers))}
        assert {blob.digest for blob in done.blobs} == named
        return done


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_docker_archive(bench: Bench) -> None:
    done = bench.load(docker(BASE, TOP, tags=["a:1", "b.io/c:2"]))
    (loaded,) = done.images
    assert loaded.config == sha(config(BASE, TOP))
    assert loaded.tags == ("docker.io/library/a:1", "b.io/c:2")
    assert [layer.diff_id for layer in loaded.layers] == [sha(BASE), sha(TOP)]
    assert loaded.layers[1].chain_id == sha(f"{sha(BASE)} {sha(TOP)}".encode())
    assert [layer.staged for layer in loaded.layers] == [True, True]
    assert loaded.layers[0].unpacked == 4
    base, top = bench.staged.values()
    assert (base / "etc/base").read_text() == "base"
    assert (top / "top").read_text() == "top"
    assert (top / "etc/base").is_char_device()
    assert any(step.id == sha(TOP)[7:19] for step in bench.progress)


def test_what_is_known_is_checked_and_not_unpacked(bench: Bench) -> None:
    bench.known.add(sha(BASE))
    (loaded,) = bench.load(docker(gzip.compress(BASE), TOP, config_bytes=config(BASE, TOP))).images
    assert [layer.staged for layer in loaded.layers] == [False, True]
    with pytest.raises(Invalid, match="invalid diffID"):
        other = Bench(bench.root / "ingest")
        other.known.add(sha(BASE))
        other.load(docker(gzip.compress(TOP), config_bytes=config(BASE)))


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_compressed_archive_loads_alike(bench: Bench, tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    plain = bench.load(docker(BASE, TOP))
    (tmp_path / "other").mkdir()
    assert Bench(tmp_path / "other").load(pack(docker(BASE, TOP))).images == plain.images


def test_compressed_layers(bench: Bench) -> None:
    packed = gzip.compress(BASE)  # once: gzip writes the time of day into its header
    data = docker(packed, lzma.compress(TOP), config_bytes=config(BASE, TOP))
    first, second = bench.load(data).images[0].layers
    assert (first.media_type, first.digest) == (image.LAYER_GZIP, sha(packed))
    assert (second.media_type, second.digest) == (image.LAYER, sha(TOP)), "xz is no OCI layer"
    assert (bench.staged[second.chain_id] / "top").exists()


def test_links_between_layers(bench: Bench) -> None:
    item = {"Config": "c.json", "RepoTags": None, "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"]}
    data = archive(
        *files(**{"a/layer.tar": BASE, "c.json": config(BASE, BASE, BASE)}),
        entry("b/layer.tar", kind=SYMLINK, linkname="../a/layer.tar"),
        entry("c/layer.tar", kind=LINK, linkname="a/layer.tar"),
        entry("manifest.json", json.dumps([item]).encode()),
    )
    (loaded,) = bench.load(data).images
    assert len({layer.digest for layer in loaded.layers}) == 1
    assert len({layer.chain_id for layer in loaded.layers}) == 3
    assert all((place / "etc/base").exists() for place in bench.staged.values())


def test_oci_layout_keeps_the_manifest(bench: Bench) -> None:
    layout = Layout()
    name = {"io.containerd.image.name": "docker.io/library/x:1", "org.opencontainers.image.ref.name": "1"}
    manifest = layout.image((BASE, gzip.compress(BASE), image.LAYER_GZIP), annotations=name)
    (loaded,) = bench.load(layout.tar(manifest)).images
    assert loaded.manifest == manifest["digest"]
    assert loaded.tags == ("docker.io/library/x:1",)
    assert loaded.layers[0].media_type == image.LAYER_GZIP


def test_the_best_platform_of_an_index(bench: Bench, tmp_path: Path) -> None:
    layout = Layout()
    arm = layout.image((TOP, TOP, image.LAYER), platform={"os": "linux", "architecture": "arm64"})
    amd = layout.image((BASE, BASE, image.LAYER), platform={"os": "linux", "architecture": "amd64"})
    proof = descriptor(b"?", image.MANIFEST, platform={"os": "unknown", "architecture": "unknown"})
    nested = layout.blob(layout.index(proof, arm, amd), image.INDEX)
    data = layout.tar(nested)
    assert bench.load(data, "linux/amd64").images[0].manifest == amd["digest"]
    (tmp_path / "arm").mkdir()
    assert Bench(tmp_path / "arm").load(data, "linux/arm64").images[0].manifest == arm["digest"]
    (tmp_path / "none").mkdir()
    with pytest.raises(Invalid, match="no image for platform linux/s390x"):
        Bench(tmp_path / "none").load(data, "linux/s390x")


def test_a_part_of_a_multi_platform_image(bench: Bench) -> None:
    layout = Layout()
    gone = descriptor(b"gone", image.MANIFEST, platform={"os": "linux", "architecture": "amd64"})
    arm = layout.image((TOP, TOP, image.LAYER), platform={"os": "linux", "architecture": "arm64"})
    nested = layout.blob(layout.index(gone, arm), image.INDEX)
    assert bench.load(layout.tar(nested)).images[0].manifest == arm["digest"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no image"),
        (archive(entry("x")), "holds no image"),
        (b"\x17" * 4096, "invalid tar header"),
        (docker(BASE)[:3000], "unexpected EOF"),
        (gzip.compress(docker(BASE))[:-20], "unexpected EOF"),
        (docker(BASE, Config="../../etc/passwd"), "is missing"),
        (docker(BASE, Config="no.json"), "is missing"),
        (docker(BASE, Layers=["x"]), "is missing"),
        (docker(BASE, Layers=None), "layers length mismatch"),
        (docker(BASE, Config=None), "invalid manifest.json"),
        (docker(BASE, tags=["UPPER:1"]), "must be lowercase"),
        (docker(BASE, tags=["untagged"]), "invalid tag"),
        (docker(BASE, config_bytes=config(TOP)), "invalid diffID"),
        (docker(BASE, config_bytes=config(BASE, TOP)), "layers length mismatch"),
        (docker(BASE, config_bytes=b"{}"), "invalid image config"),
        (docker(BASE, config_bytes=b"[" * 200), "nested deeper"),
        (docker(archive(entry("../x"))), 'invalid entry name "../x"'),
        (archive(*files(a=b"1"), *files(a=b"2")), "duplicates"),
        (archive(entry("../x")), "invalid entry name"),
        (archive(*files(**{f"{sha(b'x')[7:]}.json": b"{}", "manifest.json": b"[]"})), "holds no image"),
        (
            archive(entry("x", b"[]"), entry("manifest.json", kind=SYMLINK, linkname="x")),
            'archive member "manifest.json" is not a regular file',
        ),
        (archive(entry("manifest.json", kind=tarfile.FIFOTYPE)), "is not a regular file"),
        (archive(entry("manifest.json", kind=DIRECTORY)), "is not a regular file"),
        (archive(entry("x", b"[]"), entry("manifest.json", kind=LINK, linkname="x")), "is not a regular file"),
        (archive(entry("manifest.json", kind=SYMLINK, linkname="/etc/passwd")), "is not a regular file"),
        (archive(entry("a", kind=SYMLINK, linkname="../../etc/passwd")), "link out of the archive"),
        (archive(*files(**{"manifest.json": b" " * (5 << 20)})), "is larger than"),
        (archive(*files(**{"manifest.json": b'[{"Config":"a","Config":"b"}]'})), "there twice"),
        (archive(*files(**{"oci-layout": b'{"imageLayoutVersion":"2"}', "index.json": b"{}"})), "imageLayoutVersion"),
    ],
)
def test_bad_archives(bench: Bench, data: bytes, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        bench.load(data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_links_in_circles_and_to_files_outside(bench: Bench) -> None:
    def with_layer(**fields: Any) -> bytes:
        item = {"Config": "c.json", "Layers": ["l"]}
        members = files(**{"c.json": config(BASE), "manifest.json": json.dumps([item]).encode()})
        return archive(*members, entry("l", kind=SYMLINK, **fields))

    for target, message in (("l", "too many levels"), ("/etc/passwd", '"l" is missing|"etc/passwd" is missing')):
        (bench.root / target[-1]).mkdir()
        with pytest.raises(Invalid, match=message):
            Bench(bench.root / target[-1]).load(with_layer(linkname=target))


def test_blobs_under_a_false_name(bench: Bench) -> None:
    layout = Layout()
    manifest = layout.image((BASE, BASE, image.LAYER))
    layout.members["blobs/" + sha(BASE).replace(":", "/")] = TOP
    with pytest.raises(Invalid, match="has the digest"):
        bench.load(layout.tar(manifest))


def test_sizes_that_lie(bench: Bench) -> None:
    layout = Layout()
    manifest = layout.image((BASE, BASE, image.LAYER))
    with pytest.raises(Invalid, match="its descriptor says"):
        bench.load(layout.tar({**manifest, "size": manifest["size"] + 1}))


def test_a_manifest_offered_as_an_index(bench: Bench) -> None:
    layout = Layout()
    manifest = layout.image((BASE, BASE, image.LAYER))
    with pytest.raises(Invalid, match="media type|no manifests"):
        bench.load(layout.tar({**manifest, "mediaType": image.INDEX}))


def test_import(bench: Bench) -> None:
    staging = bench.root / "staging"
    staging.mkdir()
    fields = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/x"]}}
    for data, media_type, digest in (
        (BASE, image.LAYER, sha(BASE)),
        (gzip.compress(BASE), image.LAYER_GZIP, sha(gzip.compress(BASE))),
        (lzma.compress(BASE), image.LAYER, sha(BASE)),
    ):
        place = bench.root / f"i{len(data)}"
        place.mkdir()
        (place / "fs").mkdir()
        (place / "in").mkdir()
        archived = bench.descriptor(data)
        job = jobs.ImportJob(archive=archived, ingest=str(place / "in"), staging=str(place / "fs"), config=fields)
        done = bench.run(job)
        (layer,) = done.images[0].layers
        assert (layer.media_type, layer.digest, layer.diff_id) == (media_type, digest, sha(BASE))
        assert (place / "fs/etc/base").read_text() == "base"
        stored = {blob.digest: (place / "in" / blob.file).read_bytes() for blob in done.blobs}
        assert image.decode_config(stored[done.images[0].config]).diff_ids == (sha(BASE),)
        assert {sha(data) for data in stored.values()} == set(stored)
        assert image.decode_manifest(stored[done.images[0].manifest]).layers[0].digest == digest


def test_unpack(bench: Bench) -> None:
    packed = gzip.compress(BASE)
    for diff_id, digest, good in ((sha(BASE), sha(packed), True), (sha(TOP), "", False), (sha(BASE), sha(TOP), False)):
        place = bench.root / f"u{diff_id[-4:]}{digest[-4:]}"
        place.mkdir()
        archived = bench.descriptor(packed)
        job = jobs.UnpackJob(archive=archived, staging=str(place), diff_id=diff_id, digest=digest)
        if good:
            assert bench.run(job).size == len(BASE)
            assert (place / "etc/base").exists()
        else:
            with pytest.raises(Invalid):
                bench.run(job)


def test_export_of_one_directory(bench: Bench) -> None:
    tree = bench.root / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d/f").write_text("x")
    os.mknod(tree / "d/gone", 0o20000, os.makedev(0, 0))
    for whiteouts, expected in ((False, ["d", "d/f"]), (True, ["d", "d/f", "d/.wh.gone"])):
        out = bench.root / "out.tar"
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        done = bench.run(jobs.ExportJob(output=fd, layers=(str(tree),), whiteouts=whiteouts))
        assert done.digest == sha(out.read_bytes())
        assert done.size == out.stat().st_size
        with tarfile.open(out) as file:
            assert sorted(file.getnames()) == sorted(expected)


def save(bench: Bench, done: jobs.Done, out: Path) -> None:
    blobs = bench.root / "blobs/sha256"
    blobs.mkdir(parents=True)
    for blob in done.blobs:
        (bench.ingest / blob.file).rename(blobs / blob.digest[7:])
    wanted = tuple(jobs.SaveImage(manifest=loaded.manifest, tags=loaded.tags) for loaded in done.images)
    fd = os.open(out, os.O_WRONLY | os.O_CREAT)
    saved = bench.run(jobs.SaveJob(output=fd, blobs=str(blobs.parent), images=wanted))
    assert saved.size == out.stat().st_size


def test_saved_and_loaded_is_the_same(bench: Bench, tmp_path: Path) -> None:
    layout = Layout()
    name = {"io.containerd.image.name": "docker.io/library/x:1"}
    manifest = layout.image((BASE, gzip.compress(BASE), image.LAYER_GZIP), (TOP, TOP, image.LAYER), annotations=name)
    done = bench.load(layout.tar(manifest))
    out = tmp_path / "saved.tar"
    save(bench, done, out)
    with tarfile.open(out) as file:
        listed = json.load(file.extractfile("manifest.json") or io.BytesIO())
        assert {"oci-layout", "index.json", "repositories"} < set(file.getnames())
        assert {member.mtime for member in file} == {0}
        assert listed[0]["RepoTags"] == ["x:1"]
        assert all(path in file.getnames() for path in (listed[0]["Config"], *listed[0]["Layers"]))
    (tmp_path / "again").mkdir()
    again = Bench(tmp_path / "again")
    second = again.load(out.read_bytes())
    assert second.images == done.images
    save(again, second, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == out.read_bytes()


def test_saving_a_missing_blob(bench: Bench) -> None:
    done = bench.load(docker(BASE))
    (bench.ingest / next(blob.file for blob in done.blobs if blob.digest == sha(BASE))).unlink()
    blobs = tuple(blob for blob in done.blobs if blob.digest != sha(BASE))
    with pytest.raises(OSError, match="not found"):
        save(bench, jobs.Done(images=done.images, blobs=blobs), bench.root / "out.tar")


def test_the_worker_is_killed_with_its_reader(bench: Bench) -> None:
    async def whole() -> None:
        read_end, write_end = jobs.pipe()

        async def endless() -> AsyncIterator[bytes]:
            yield docker(BASE)[:2048]
            await asyncio.Event().wait()

        feeding = asyncio.ensure_future(jobs.feed(endless(), write_end))
        job = jobs.LoadJob(archive=read_end, ingest=str(bench.ingest))
        running = asyncio.ensure_future(anext(jobs.Worker().run(job, bench.answer)))
        await asyncio.sleep(0.3)
        children = {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
        assert len(children) == 1
        running.cancel()
        feeding.cancel()
        await asyncio.gather(running, feeding, return_exceptions=True)
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)
        with pytest.raises(OSError):
            os.fstat(read_end)
        with pytest.raises(OSError):
            os.fstat(write_end)

    asyncio.run(whole())


def test_a_worker_that_dies_is_reported(bench: Bench) -> None:
    async def whole() -> None:
        read_end, write_end = jobs.pipe()
        job = jobs.LoadJob(archive=read_end, ingest=str(bench.ingest))
        running = asyncio.ensure_future(anext(jobs.Worker().run(job, bench.answer)))
        await asyncio.sleep(0.3)
        for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            os.kill(int(pid), 9)
        try:
            with pytest.raises(Unavailable, match="SIGKILL"):
                await running
        finally:
            os.close(write_end)

    asyncio.run(whole())


def test_feed_and_read(bench: Bench) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 100_000

    async def whole() -> int:
        read_end, write_end = jobs.pipe()
        feeding = asyncio.ensure_future(jobs.feed(chunks(), write_end))
        total = 0
        async for chunk in jobs.read(read_end):
            total += len(chunk)
        await feeding
        return total

    assert asyncio.run(whole()) == 5_000_000


def test_feed_ends_when_nobody_reads(bench: Bench) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 100_000

    async def whole() -> None:
        read_end, write_end = jobs.pipe()
        os.close(read_end)
        await jobs.feed(chunks(), write_end)

    asyncio.run(whole())


DAEMON = """
import asyncio, sys
from tare.store import jobs

async def main():
    read_end, write_end = jobs.pipe()
    running = asyncio.ensure_future(anext(jobs.Worker().run(jobs.LoadJob(archive=read_end, ingest=sys.argv[1]))))
    await asyncio.sleep(0.3)
    print(open("/proc/self/task/%d/children" % __import__("os").getpid()).read(), flush=True)
    await running

asyncio.run(main())
"""


def test_the_worker_dies_with_the_daemon(bench: Bench) -> None:
    command = [sys.executable, "-c", DAEMON, str(bench.ingest)]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as daemon:
        assert daemon.stdout is not None
        (pid,) = daemon.stdout.readline().split()
        worker = os.pidfd_open(int(pid))
        daemon.kill()
    try:
        ended, _, _ = select.select([worker], [], [], 10)
        assert ended
    finally:
        os.close(worker)
