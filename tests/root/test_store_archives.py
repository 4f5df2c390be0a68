"""load, import and save through the real worker process, on a data root of their own. Root: owners and device nodes."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tare.db import Database
from tare.errors import Invalid, NotFound
from tare.store import gc
from tare.store.content import Content
from tare.store.images import Images
from tare.store.paths import Layout
from tare.store.snapshots import Snapshots

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

T = TypeVar("T")


class Store:
    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.layout.create()
        self.db = Database(str(self.layout.database))
        self.content = Content(self.layout)
        self.snapshots = Snapshots(self.db, self.layout)
        self.images = Images(self.db, self.content, self.snapshots, self.layout)

    def run(self, act: Callable[[], Awaitable[T]]) -> T:
        async def whole() -> T:
            result = await act()
            await self.snapshots.trash.drain()
            return result

        return asyncio.run(whole())

    def load(self, data: bytes, *, quiet: bool = True) -> list[dict[str, Any]]:
        async def act() -> list[dict[str, Any]]:
            return [message async for message in self.images.load(chunks(data), quiet)]

        return self.run(act)

    def save(self, *refs: str) -> bytes:
        async def act() -> bytes:
            return b"".join([chunk async for chunk in self.images.save(refs)])

        return self.run(act)

    def tree(self, image_id: str) -> list[list[str]]:
        """Names per layer, top first."""
        lower = self.snapshots.rootfs(self.images.get(image_id).top)["lower"]
        return [sorted(os.listdir(path)) for path in lower]  # type: ignore[attr-defined]

    def is_empty(self) -> bool:
        asyncio.run(self.snapshots.trash.drain())
        rows = sum(self.db.execute(f"SELECT count(*) FROM {name}")[0][0] for name in ("images", "snapshots", "tags"))
        folders = (self.layout.ingest, self.layout.snapshots, self.layout.trash)
        return rows == 0 and not list(self.content.walk()) and not any(os.listdir(folder) for folder in folders)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "root")
    yield store
    store.db.close()


async def chunks(data: bytes, size: int = 70_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
        await asyncio.sleep(0)


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(data), 1_700_000_000
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def docker_archive(layers: list[bytes], tags: list[str], mode: str = "w", **changes: Any) -> tuple[bytes, str]:
    """As `docker save` before 25 writes it; the bytes and the image id."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": changes.get("diff_ids", [f"sha256:{sha(x)}" for x in layers])},
        }
    ).encode()
    files = {f"{sha(layer)}/layer.tar": layer for layer in layers}
    files[f"{sha(config)}.json"] = config
    manifest = [{"Config": f"{sha(config)}.json", "RepoTags": tags, "Layers": [f"{sha(x)}/layer.tar" for x in layers]}]
    files["manifest.json"] = json.dumps(manifest).encode()
    return tar(files, mode), f"sha256:{sha(config)}"


ONE, TWO = tar({"bin/sh": b"#!", "etc/passwd": b"root:x:0:0::/:/bin/sh\n"}), tar({"new": b"x" * 5000})


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_load_makes_the_image_whole(store: Store, mode: str) -> None:
    data, image_id = docker_archive([ONE, TWO], ["busybox:latest", "reg.io/box:1"], mode)
    messages = store.load(data)
    assert messages == [{"stream": "Loaded image: busybox:latest\n"}, {"stream": "Loaded image: reg.io/box:1\n"}]
    image = store.images.resolve("busybox")
    assert image.id == image_id and image.tags == ("busybox:latest", "reg.io/box:1")
    assert store.tree(image_id) == [["new"], ["bin", "etc"]]
    assert image.size == 5000 + 2 + len(b"root:x:0:0::/:/bin/sh\n")
    assert os.listdir(store.layout.ingest) == [] and os.listdir(store.layout.trash) == []
    assert set(store.images.blobs(image_id)) == set(store.content.walk())


def test_progress_unless_quiet(store: Store) -> None:
    data, _ = docker_archive([ONE, TWO], ["a:1"])
    messages = store.load(data, quiet=False)
    loading = [message for message in messages if message.get("status") == "Loading layer"]
    assert {message["id"] for message in loading} == {sha(ONE)[:12], sha(TWO)[:12]}
    assert all(message["progressDetail"]["total"] > 0 for message in loading)


def test_untagged_image_is_announced_by_id(store: Store) -> None:
    data, image_id = docker_archive([ONE], [])
    assert store.load(data) == [{"stream": f"Loaded image ID: {image_id}\n"}]


def test_tag_that_moves_is_announced(store: Store) -> None:
    first, old = docker_archive([ONE], ["a:1"])
    second, new = docker_archive([TWO], ["a:1"])
    store.load(first)
    assert store.load(second) == [
        {"stream": f"The image a:1 already exists, renaming the old one with ID {old} to empty string\n"},
        {"stream": "Loaded image: a:1\n"},
    ]
    assert store.images.resolve("a:1").id == new and store.images.get(old).tags == ()


def test_loading_twice_changes_nothing(store: Store) -> None:
    data, image_id = docker_archive([ONE, TWO], ["a:1"])
    store.load(data)

    def state() -> tuple[object, ...]:
        return sorted(os.listdir(store.layout.snapshots)), sorted(store.content.walk()), store.images.get(image_id)

    before = state()
    store.load(data)
    assert state() == before


def test_two_loads_at_once(store: Store) -> None:
    data, image_id = docker_archive([ONE, TWO], ["a:1"])
    other, other_id = docker_archive([ONE], ["b:1"])

    async def one(archive: bytes) -> list[dict[str, Any]]:
        return [message async for message in store.images.load(chunks(archive, 900), True)]

    async def act() -> None:
        await asyncio.gather(one(data), one(data), one(other))

    store.run(act)
    assert store.images.resolve("a:1").id == image_id and store.images.resolve("b:1").id == other_id
    assert len(os.listdir(store.layout.snapshots)) == 2
    assert store.tree(image_id) == [["new"], ["bin", "etc"]]
    assert os.listdir(store.layout.ingest) == [] and os.listdir(store.layout.trash) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a tar at all" * 100,
        tar({"x": b""}),
        docker_archive([ONE], ["a:1"])[0][:4000],
        docker_archive([ONE], ["a:1"], diff_ids=["sha256:" + "0" * 64])[0],
        docker_archive([ONE], ["A:1"])[0],
        docker_archive([tar({"../../evil": b"x"})[:700]], ["a:1"])[0],
    ],
)
def test_bad_archive_leaves_nothing(store: Store, data: bytes) -> None:
    with pytest.raises(Invalid):
        store.load(data)
    assert store.is_empty()


def test_failing_client_is_the_error_and_leaves_nothing(store: Store) -> None:
    data, _ = docker_archive([ONE, tar({"big": os.urandom(3 << 20)})], ["a:1"])

    async def broken() -> AsyncIterator[bytes]:
        yield data[: len(data) // 2]
        raise ConnectionResetError("client went away")

    async def act() -> None:
        async for _ in store.images.load(broken(), True):
            pass

    with pytest.raises(ConnectionResetError):
        store.run(act)
    asyncio.run(store.snapshots.trash.drain())
    assert store.is_empty()


def test_cancelled_load_kills_the_worker_and_leaves_nothing(store: Store) -> None:
    data, _ = docker_archive([ONE], ["a:1"])

    async def stalled() -> AsyncIterator[bytes]:
        yield data[:1000]
        await asyncio.Event().wait()

    async def act() -> None:
        async def consume() -> None:
            async for _ in store.images.load(stalled(), True):
                pass

        task = asyncio.ensure_future(consume())
        while not children():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not children()

    store.run(act)
    assert store.is_empty()


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_killed_daemon_leaves_only_garbage(store: Store) -> None:
    data, image_id = docker_archive([ONE], ["kept:1"])
    store.load(data)
    store.db.close()
    code = (
        "import asyncio, sys\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from test_store_archives import Store, docker_archive, tar, ONE\n"
        "store = Store(Path(sys.argv[1]))\n"
        "data, _ = docker_archive([ONE, tar({'big': b'x' * 4000000})], ['lost:1'])\n"
        "async def reader():\n"
        "    yield data[:-20000]\n"
        "    print('fed', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "async def main():\n"
        "    async for _ in store.images.load(reader(), True): pass\n"
        "asyncio.run(main())\n"
    )
    daemon = subprocess.Popen(
        [sys.executable, "-c", code, str(store.layout.root), str(Path(__file__).parent)], stdout=subprocess.PIPE
    )
    assert daemon.stdout is not None and daemon.stdout.readline() == b"fed\n"
    workers = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    daemon.stdout.close()
    assert workers
    for worker in workers:
        deadline = time.monotonic() + 20
        while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
            if Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                break
            time.sleep(0.01)
        else:
            assert not Path(f"/proc/{worker}").exists()
    assert os.listdir(store.layout.ingest)
    again = Store(store.layout.root)
    asyncio.run(gc.collect(again.db, again.content, again.snapshots, again.layout, starting=True))
    assert [image.id for image in again.images.list()] == [image_id]
    assert set(again.content.walk()) == set(again.images.blobs(image_id))
    assert len(os.listdir(again.layout.snapshots)) == 1
    assert os.listdir(again.layout.ingest) == [] and os.listdir(again.layout.trash) == []
    again.db.close()


def test_save_can_be_loaded_elsewhere(store: Store, tmp_path: Path) -> None:
    data, image_id = docker_archive([ONE, TWO], ["a:1", "a:2"])
    store.load(data)
    store.load(docker_archive([ONE], ["b:1"])[0])
    saved = store.save("a", "b:1")
    with tarfile.open(fileobj=io.BytesIO(saved)) as archive:
        names = archive.getnames()
        manifest = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
        index = json.load(archive.extractfile("index.json"))  # type: ignore[arg-type]
    assert {"manifest.json", "index.json", "oci-layout"} <= set(names)
    assert [entry["RepoTags"] for entry in manifest] == [["a:1", "a:2"], ["b:1"]]
    assert len(index["manifests"]) >= 2
    other = Store(tmp_path / "other")
    messages = other.load(saved)
    assert [message["stream"] for message in messages] == [f"Loaded image: {name}\n" for name in ("a:1", "a:2", "b:1")]
    assert other.images.resolve("a:2").id == image_id
    assert other.tree(image_id) == store.tree(image_id)
    assert other.save("a", "b:1") == saved
    other.db.close()


def test_save_by_id_carries_no_name(store: Store) -> None:
    data, image_id = docker_archive([ONE], ["a:1"])
    store.load(data)
    with tarfile.open(fileobj=io.BytesIO(store.save(image_id[7:19]))) as archive:
        manifest = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert not manifest[0]["RepoTags"]
    with pytest.raises(NotFound, match="No such image: nope:latest"):
        store.images.save(["a:1", "nope"])


def test_abandoned_save_ends_its_worker(store: Store) -> None:
    store.load(docker_archive([tar({"big": os.urandom(4 << 20)})], ["a:1"])[0])

    async def act() -> None:
        stream = store.images.save(["a:1"])
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        assert not children()

    store.run(act)
    image = store.images.resolve("a:1")
    assert all(blob not in store.content.leases for blob in store.images.blobs(image.id))


def test_import_makes_one_layer(store: Store) -> None:
    async def act() -> str:
        changes = ["CMD /bin/sh", "ENV A=1"]
        return await store.images.import_(chunks(ONE), "imported", "v1", "by hand", changes)

    image_id = store.run(act)
    image = store.images.resolve("imported:v1")
    assert image.id == image_id and store.tree(image_id) == [["bin", "etc"]]
    assert image.config.diff_ids == (f"sha256:{sha(ONE)}",)
    assert image.config.config is not None and image.config.config.env == ("A=1",)
    assert [step.comment for step in store.images.history(image_id)] == ["by hand"]
    second = store.run(act)
    assert second != image_id and len(os.listdir(store.layout.snapshots)) == 1


def test_bad_import_leaves_nothing(store: Store) -> None:
    async def act(data: bytes, changes: list[str]) -> str:
        return await store.images.import_(chunks(data), "a", "", "", changes)

    for data, changes in ((b"x" * 5000, []), (ONE[:700], []), (ONE, ["RUN x"])):
        with pytest.raises(Invalid):
            store.run(lambda data=data, changes=changes: act(data, changes))  # type: ignore[misc]
        asyncio.run(store.snapshots.trash.drain())
        assert store.is_empty()


def test_every_image_of_the_archive_is_told(store: Store) -> None:
    data, image_id = docker_archive([ONE], ["a:1"])
    told: list[str] = []

    async def act() -> None:
        async for _ in store.images.load(chunks(data), True, told.append):
            pass

    asyncio.run(act())
    asyncio.run(act())
    assert told == [image_id, image_id]
