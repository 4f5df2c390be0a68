"""Containers and execs on a real ledger and store, a made-up image, and the fake zygote."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from tare.api.errors import sentence
from tare.db import Database
from tare.engine import execs as execs_module
from tare.engine import shims as shims_module
from tare.engine.containers import Containers
from tare.engine.engine import Config
from tare.engine.events import Events
from tare.engine.execs import Execs
from tare.engine.limits import HostFacts
from tare.engine.model import (
    Container,
    ContainerSpec,
    ExecSpec,
    ExitStatus,
    LogConfig,
    Namespaces,
    Security,
    State,
    Streams,
)
from tare.engine.shims import Shims
from tare.errors import Conflict, Invalid, NotFound, Unsupported
from tare.linux import proc
from tare.oci.image import ContainerConfig, ImageConfig, RootFs
from tare.store import snapshots as snapshots_module
from tare.store.paths import Layout
from tare.store.snapshots import Snapshots, Usage

FAKE = [
    sys.executable,
    "-I",
    str(Path(__file__).with_name("fake_zygote.py")),
    "{fd}",
    str(Path(shims_module.__file__).parents[2]),
]
HOST = HostFacts(
    kernel=(6, 1), cgroup_version=2, features=frozenset({"memory", "pids", "cpu"}), ncpu=2, memory_total=1 << 32
)  # fmt: skip
OPEN = Security(options=("seccomp=unconfined",))


class Images:
    """One image."""

    config = ImageConfig(
        architecture="amd64",
        os="linux",
        rootfs=RootFs(type="layers", diff_ids=()),
        config=ContainerConfig(cmd=("sleep",)),
    )

    def resolve(self, ref: str) -> SimpleNamespace:
        if ref != "busybox":
            raise NotFound(f"No such image: {ref}:latest")
        return SimpleNamespace(id="sha256:" + "1" * 64, config=self.config, top="", size=1000)

    def get(self, image_id: str) -> SimpleNamespace:
        return self.resolve("busybox")


class House:
    def __init__(self, root: Path) -> None:
        self.layout = Layout(root / "data")
        self.layout.create()
        self.db = Database(str(self.layout.database))
        self.snapshots = Snapshots(self.db, self.layout)
        self.events = Events()
        self.heard = self.events.subscribe()
        self.shims = Shims(FAKE)
        config = Config(data_root=root / "data", exec_root=root / "run")
        self.containers = Containers(
            self.db, Images(), self.snapshots, self.shims, self.events, self.layout, config, host=HOST
        )
        self.execs = Execs(self.containers, self.shims, self.events, str(self.layout.seccomp))

    async def create(self, name: str = "", *args: str, **spec: object) -> Container:
        spec.setdefault("security", OPEN)
        return await self.containers.create(name, ContainerSpec(image="busybox", command=args, **spec))

    async def close(self) -> None:
        for container in self.containers.all():
            if container.pid and proc.is_alive(container.pid, container.start_time):
                os.kill(container.pid, signal.SIGKILL)
        await self.containers.close()
        self.shims.close()
        await self.snapshots.trash.drain()
        self.db.close()

    async def actions(self) -> list[str]:
        await self.heard.aclose()
        return [event.action async for event in self.heard]


def run(root: Path, scene: Callable[[House], Awaitable[None]]) -> None:
    async def play() -> None:
        house = House(root)
        try:
            await house.containers.adopt()
            await scene(house)
        finally:
            await house.close()

    asyncio.run(asyncio.wait_for(play(), 30))


async def joined(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


def test_create_claims_all_or_nothing(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = await house.create("web", "sleep", "1")
        assert (box.name, box.args, box.state) == ("web", ("sleep", "1"), State.CREATED)
        assert len(box.id) == 64 and house.snapshots.exists(box.id)
        assert box.spec.log == LogConfig(options={"max-size": "10m", "max-file": "3"})
        with pytest.raises(Conflict) as caught:
            await house.create("/web")
        assert str(caught.value) == (
            f'Conflict. The container name "/web" is already in use by container "{box.id}". '
            "You have to remove (or rename) that container to be able to reuse that name."
        )
        with pytest.raises(Invalid, match="Invalid container name"):
            await house.create("we b")
        with pytest.raises(NotFound, match="No such image: nope:latest"):
            await house.containers.create("x1", ContainerSpec(image="nope"))
        other = await house.create()
        assert "_" in other.name and house.containers.get(other.name) == other
        assert [path.name for path in house.layout.containers.iterdir()].sort() == [box.id, other.id].sort()
        assert len(house.db.execute("SELECT key FROM snapshots")) == 2
        assert await house.actions() == ["create", "create"]

    run(tmp_path, scene)


def test_a_failed_create_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(house: House) -> None:
        def full(key: str, parent: str) -> None:
            raise OSError(28, "mkdir", key)

        monkeypatch.setattr(house.snapshots, "prepare", full)
        with pytest.raises(OSError):
            await house.create("web")
        assert list(house.layout.containers.iterdir()) == [] and house.containers.all() == []
        monkeypatch.undo()
        await house.create("web")

    run(tmp_path, scene)


def test_remove(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = await house.create("web", "sleep")
        await house.containers.start("web")
        with pytest.raises(Conflict) as caught:
            await house.containers.remove("web")
        assert str(caught.value) == (
            'cannot remove container "/web": container is running: stop the container before removing or force remove'
        )
        await house.containers.pause("web")
        with pytest.raises(Conflict, match="container is paused and must be unpaused first"):
            await house.containers.remove("web")
        removed = house.containers.wait("web", "removed")
        await house.containers.remove("web", force=True)
        assert (await removed).code == 137
        with pytest.raises(NotFound, match="No such container: web"):
            await house.containers.remove("web")
        assert not house.snapshots.exists(box.id) and not house.layout.container(box.id).exists()
        again = await house.create("web")
        await house.containers.remove(again.id[:12])
        actions = await house.actions()
        assert actions == ["create", "start", "pause", "kill", "unpause", "die", "destroy", "create", "destroy"]

    run(tmp_path, scene)


def test_remove_that_fails_leaves_it_dead_and_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(house: House) -> None:
        box = await house.create("web")

        def stuck(key: str) -> None:
            raise OSError(16, "rename", key)

        monkeypatch.setattr(house.snapshots, "remove", stuck)
        with pytest.raises(OSError):
            await house.containers.remove("web")
        assert house.containers.get("web").state is State.DEAD
        assert "unable to remove filesystem" in house.containers.get("web").exit.error
        with pytest.raises(Conflict, match="marked for removal"):
            await house.containers.start("web")
        with pytest.raises(Conflict, match="dead or marked for removal"):
            house.containers.logs("web")
        monkeypatch.undo()
        await house.containers.remove("web")
        assert not house.snapshots.exists(box.id)

    run(tmp_path, scene)


def test_rm_at_exit_also_after_a_failed_start(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        await house.create("one", "exit", "4", auto_remove=True)
        removed = house.containers.wait("one", "removed")
        await house.containers.start("one")
        assert (await removed).code == 4
        await house.create("two", "fail", "execve", "2", "nope", "", auto_remove=True)
        removed = house.containers.wait("two", "removed")
        with pytest.raises(Invalid, match="executable file not found"):
            await house.containers.start("two")
        assert (await removed).code == 127
        await house.create("three", namespaces=Namespaces(network="nowhere"), auto_remove=True)
        removed = house.containers.wait("three", "removed")
        with pytest.raises(NotFound, match="network nowhere not found"):
            await house.containers.start("three")
        assert (await removed).code == 128
        assert house.containers.all() == []

    run(tmp_path, scene)


def test_rename(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box, other = await house.create("one"), await house.create("two")
        for new, kind, text in (
            ("/two", Conflict, f'Error when allocating new name: Conflict. The container name "/two" .*{other.id}'),
            ("one", Invalid, "Renaming a container with the same name as its current name"),
            ("-x", Invalid, "Error when allocating new name: Invalid container name"),
            (" ", Invalid, "Neither old nor new names may be empty"),
        ):
            with pytest.raises(kind, match=text):
                await house.containers.rename("one", new)
        await house.containers.rename("one", "three")
        assert house.containers.get("three").id == box.id
        with pytest.raises(NotFound):
            house.containers.get("one")
        await house.create("one")
        await house.heard.aclose()
        renamed = [event async for event in house.heard if event.action == "rename"]
        assert renamed[0].attributes["oldName"] == "/one" and renamed[0].attributes["name"] == "three"

    run(tmp_path, scene)


def test_rows_outlive_the_daemon(tmp_path: Path) -> None:
    async def first(house: House) -> None:
        box = await house.create("web", "sleep", labels={"a": "b"})
        await house.create("half")
        half = house.containers.get("half")
        house.containers.rows.save(replace(half, state=State.REMOVING, exit=ExitStatus(code=1)))
        await house.containers.start(box.id)
        await house.containers.kill(box.id)

    async def second(house: House) -> None:
        box = house.containers.get("web")
        assert (box.state, box.exit.code, box.spec.labels) == (State.EXITED, 137, {"a": "b"})
        assert [container.name for container in house.containers.all()] == ["web"]
        assert not house.snapshots.exists("half")

    run(tmp_path, first)
    run(tmp_path, second)


def test_logs_refusals_and_content(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = await house.create("web", "sleep")
        silent = await house.create("quiet", "sleep", log=LogConfig(driver="none"))
        with pytest.raises(Invalid, match="You must choose at least one stream"):
            house.containers.logs("web", stdout=False, stderr=False)
        with pytest.raises(Unsupported, match="configured logging driver does not support reading"):
            house.containers.logs(silent.id)
        with pytest.raises(NotFound):
            house.containers.logs("nope")
        assert await joined(house.containers.logs("web", follow=True)) == b""  # does not run: nothing to follow
        line = b'{"log":"hi\\n","stream":"stdout","time":"2024-01-01T00:00:00Z"}\n'
        house.containers.log_path(box.id).write_bytes(line)
        await house.containers.start("web")
        following = asyncio.ensure_future(joined(house.containers.logs("web", follow=True)))
        await asyncio.sleep(0.05)
        with house.containers.log_path(box.id).open("ab") as file:
            file.write(line)
        await house.containers.kill("web")
        assert await asyncio.wait_for(following, 5) == 2 * (b"\x01\0\0\0\0\0\0\x03hi\n")

    run(tmp_path, scene)


def pair() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair()
    near.setblocking(False)
    return near, far


def test_attach_before_start_with_replay(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = await house.create("web", "sleep", tty=True)
        line = b'{"log":"old\\r\\n","stream":"stdout","time":"2024-01-01T00:00:00Z"}\n'
        house.containers.log_path(box.id).write_bytes(line)
        near, far = pair()
        streams = Streams(stdin=True, stdout=True, stderr=True, detach_keys="ctrl-a")
        await house.containers.attach("web", streams, near, b"", logs=True, stream=True)
        await house.containers.start("web")
        got = b""
        while b"}" not in got:
            got += await asyncio.to_thread(far.recv, 4096)
        assert got.startswith(b'old\r\n{"client": ')
        assert b'"mux": false' in got and b'"detach_keys": [1]' in got
        assert b'"stdin": false' in got  # not open_stdin
        far.close()
        near, far = pair()
        await house.containers.attach("web", streams, near, b"", logs=True, stream=False)
        assert await asyncio.to_thread(far.recv, 4096) == b"old\r\n"
        assert await asyncio.to_thread(far.recv, 4096) == b""
        far.close()
        await house.containers.pause("web")
        with pytest.raises(Conflict, match="container web is paused, unpause the container before attach"):
            house.containers.attachable("web")
        near, far = pair()
        with pytest.raises(Conflict):
            await house.containers.attach("web", streams, near, b"", logs=False, stream=True)
        assert near.fileno() == -1
        far.close()
        with pytest.raises(Invalid, match="Invalid detach keys"):
            house.containers.attachable("web", "ctrl-nope")

    run(tmp_path, scene)


def test_an_image_removed_by_force_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(house: House) -> None:
        box = await house.create("web", "sleep")

        def get(self: Images, image_id: str) -> SimpleNamespace:
            raise NotFound(f"No such image: {image_id}")

        monkeypatch.setattr(Images, "get", get)
        await house.containers.start("web")
        assert house.containers.get(box.id).state is State.RUNNING
        await house.containers.kill("web")

    run(tmp_path, scene)


@pytest.mark.parametrize(
    ("asked", "default", "found"),
    [
        (LogConfig(driver=""), "none", LogConfig(driver="none")),
        (LogConfig(driver=""), "json-file", LogConfig(options={"max-size": "10m", "max-file": "3"})),
        (LogConfig(driver="", options={"max-size": "1m"}), "json-file", LogConfig(options={"max-size": "1m"})),
        (LogConfig(driver="", options={"tag": "x"}), "none", LogConfig(driver="none", options={"tag": "x"})),
        (LogConfig(driver="json-file"), "none", LogConfig(options={"max-size": "10m", "max-file": "3"})),
    ],
)
def test_the_daemons_log_driver_is_for_whom_names_none(
    tmp_path: Path, asked: LogConfig, default: str, found: LogConfig
) -> None:
    async def scene(house: House) -> None:
        house.containers._config = dataclasses.replace(house.containers._config, log_driver=default)
        assert (await house.create("web", log=asked)).spec.log == found
        if default == "json-file":
            with pytest.raises(Invalid, match="unknown log opt 'x' for json-file log driver"):
                await house.create("bad", log=LogConfig(driver="", options={"x": "1"}))

    run(tmp_path, scene)


def test_create_on_a_full_disk_says_what_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(house: House) -> None:
        def refuse(key: str, parent: str = "") -> None:
            raise OSError(errno.ENOSPC, "No space left on device", "/data/snapshots/1/fs")

        monkeypatch.setattr(house.snapshots, "prepare", refuse)
        with pytest.raises(OSError) as caught:
            await house.create("web")
        assert sentence(caught.value) == 'create container "/web": no space left on device'
        assert not house.containers.all() and not list(house.layout.containers.iterdir())

    run(tmp_path, scene)


def test_all_who_ask_for_a_size_share_one_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[Path] = []

    def measure(root: Path) -> Usage:
        walks.append(root)
        time.sleep(0.05)
        return Usage(5, 1)

    monkeypatch.setattr(snapshots_module, "measure", measure)

    async def scene(house: House) -> None:
        box = await house.create("web")
        leaver = asyncio.ensure_future(house.containers.size(box))
        await asyncio.sleep(0)
        others = asyncio.gather(*(house.containers.size(box) for _ in range(20)))
        await asyncio.sleep(0)
        leaver.cancel()
        assert await others == [(5, 1005)] * 20 and len(walks) == 1
        await house.containers.size(box)
        assert len(walks) == 2

    run(tmp_path, scene)


def test_an_exec_that_is_never_started_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(house: House) -> None:
        await house.create("web", "sleep")
        await house.containers.start("web")
        first = house.execs.create("web", ExecSpec(args=("x",)))
        house.execs.create("web", ExecSpec(args=("x",)))
        assert house.execs.get(first.id)
        monkeypatch.setattr(execs_module, "KEPT_S", 0.0)
        house.execs.create("web", ExecSpec(args=("x",)))
        with pytest.raises(NotFound):
            house.execs.get(first.id)

    run(tmp_path, scene)


def test_joining_another_container(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        await house.create("donor", "sleep", namespaces=Namespaces(ipc="shareable"), hostname="given")
        box = await house.create("guest", "sleep", namespaces=Namespaces(network="container:donor"))
        pid = await house.create("pid", "sleep", namespaces=Namespaces(pid="container:donor"))
        donor = house.containers.get("donor")
        assert box.spec.namespaces.network == f"container:{donor.id}"
        with pytest.raises(Conflict, match="cannot join network namespace of a non running container: container donor"):
            await house.containers.start("guest")
        assert house.containers.get("guest").exit.code == 128
        with pytest.raises(Conflict, match="failed to join PID namespace: container .* is not running"):
            await house.containers.start(pid.id)
        await house.containers.start("donor")
        await house.containers.start("guest")
        await house.containers.start("pid")
        started = house.containers.get("donor")
        bundle = (house.containers.lifecycle.run_dir(box.id) / "bundle.json").read_text()
        assert f"/proc/{started.pid}/ns/net" in bundle and str(house.layout.container(donor.id) / "hosts") in bundle
        private = await house.create("ipc", "sleep", namespaces=Namespaces(ipc="container:guest"))
        with pytest.raises(Invalid, match="non-shareable IPC"):
            await house.containers.start(private.id)
        lonely = await house.create("lonely", "sleep", namespaces=Namespaces(network="container:nobody"))
        with pytest.raises(NotFound, match="joining network namespace of container: No such container: nobody"):
            await house.containers.start(lonely.id)

    run(tmp_path, scene)


def test_size(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = await house.create("web")
        upper = Path(str(house.snapshots.rootfs(box.id)["upper"]))
        (upper / "file").write_bytes(b"x" * 321)
        written, total = await house.containers.size(box)
        assert written >= 321 and total == written + 1000

    run(tmp_path, scene)


def test_exec(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = await house.create("web", "sleep")
        spec = ExecSpec(args=("exit", "3"))
        with pytest.raises(Conflict, match=f"container {box.id} is not running"):
            house.execs.create("web", spec)
        await house.containers.start("web")
        with pytest.raises(Invalid, match="No exec command specified"):
            house.execs.create("web", ExecSpec(args=()))
        made = house.execs.create("web", spec)
        assert not made.running and made.exit_code is None
        await house.execs.start(made.id)
        async with asyncio.timeout(5):
            while house.execs.get(made.id).running:
                await asyncio.sleep(0.01)
        assert house.execs.get(made.id).exit_code == 3 and house.execs.of(box.id) == []
        with pytest.raises(Conflict, match="has already run"):
            await house.execs.start(made.id)
        with pytest.raises(NotFound, match="No such exec instance: nope"):
            house.execs.get("nope")
        await house.containers.pause("web")
        with pytest.raises(Conflict, match="Container web is paused, unpause the container before exec"):
            house.execs.create("web", spec)
        await house.containers.unpause("web")
        last = house.execs.create("web", ExecSpec(args=("sleep",)))
        await house.execs.start(last.id)
        with pytest.raises(Conflict, match="is already running"):
            await house.execs.start(last.id)
        assert house.execs.of(box.id)[0].pid > 0
        await house.execs.resize(last.id, 10, 20)
        os.kill(house.execs.get(last.id).pid, signal.SIGKILL)
        end = time.monotonic() + 5
        while os.path.exists(f"/proc/{house.execs.get(last.id).pid}"):
            assert time.monotonic() < end
            time.sleep(0.01)  # holds the loop up: the process is gone and nobody here has heard of it
        assert house.execs.get(last.id).exit_code is None
        assert (await house.execs.settled(last.id)).exit_code == 137
        await house.containers.remove("web", force=True)
        with pytest.raises(NotFound):
            house.execs.get(made.id)
        await house.heard.aclose()
        heard = {event.action: event.attributes async for event in house.heard if "exec" in event.action}
        assert set(heard) >= {"exec_create: exit 3", "exec_start: exit 3", "exec_die", "exec_start: sleep"}

    run(tmp_path, scene)


def test_a_failing_exec_tells_whom_it_can(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        await house.create("web", "sleep")
        await house.containers.start("web")
        spec = ExecSpec(args=("fail", "execve", "2", "x", "No such file or directory"), attach_stdout=True)
        text = (
            "OCI runtime exec failed: exec failed: unable to start container process: "
            'exec: "x": executable file not found in $PATH: unknown'
        )
        made = house.execs.create("web", spec)
        with pytest.raises(Invalid) as caught:
            await house.execs.start(made.id)
        assert str(caught.value) == text and house.execs.get(made.id).exit_code == 127
        made = house.execs.create("web", replace(spec, args=("fail", "execve", "13", "/x", "Permission denied")))
        near, far = pair()
        await house.execs.start(made.id, False, False, (0, 0), near, b"")
        head = await asyncio.to_thread(far.recv, 8)
        size = struct.unpack(">BxxxL", head)[1]
        assert (await asyncio.to_thread(far.recv, size)).endswith(b'exec: "/x": permission denied: unknown\r\n')
        assert await asyncio.to_thread(far.recv, 1) == b"" and near.fileno() == -1
        far.close()
        assert house.execs.get(made.id).exit_code == 126
        with pytest.raises(Invalid, match="exec process is not started"):
            await house.execs.resize(made.id, 1, 1)

    run(tmp_path, scene)


def test_an_attached_exec_gets_its_client(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        await house.create("web", "sleep")
        await house.containers.start("web")
        made = house.execs.create("web", ExecSpec(args=("exit", "0"), attach_stdin=True, attach_stdout=True))
        near, far = pair()
        await house.execs.start(made.id, False, False, (0, 0), near, b"ahead")
        assert near.fileno() == -1
        got = b""
        while chunk := await asyncio.to_thread(far.recv, 4096):
            got += chunk
        assert b'"leftover": "ahead"' in got and b'"stderr": false' in got
        far.close()

    run(tmp_path, scene)
