"""Shims, lifecycle and adoption against a fake zygote that speaks the protocol over real sockets."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from tare.db import Database
from tare.engine import lifecycle as lifecycle_module
from tare.engine import shims as shims_module
from tare.engine.adopt import Adoption
from tare.engine.events import Events
from tare.engine.lifecycle import Lifecycle, parse_signal
from tare.engine.model import Bundle, Container, ContainerSpec, ExitStatus, State, Streams
from tare.engine.rows import Rows
from tare.engine.shims import Client, Failed, Shims, detach_sequence
from tare.errors import Conflict, EngineError, Invalid, NotFound, Unavailable, Unchanged
from tare.linux import proc

FAKE = [
    sys.executable,
    "-I",
    str(Path(__file__).with_name("fake_zygote.py")),
    "{fd}",
    str(Path(shims_module.__file__).parents[2]),
]


class House:
    """What of the engine a life needs, on temporary directories; `again` is the daemon after its death."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run_root = root / "run"
        self.run_root.mkdir(exist_ok=True)
        self.db = Database(str(root / "state.db"))
        self.events = Events()
        self.shims = Shims(FAKE)
        self.rows = Rows(self.db)
        self.removed: list[str] = []
        self.lifecycle = Lifecycle(
            self.rows, self.shims, self.events, self.run_root, prepare=self.prepare, remove=self.remove
        )
        self.heard = self.events.subscribe()

    async def prepare(self, container: Container) -> Bundle:
        return Bundle(
            id=container.id,
            oci={"process": {"args": list(container.args)}},
            rootfs={},
            cgroup=f"/tare-test-{os.getpid()}/{container.id}",
            run_dir=str(self.lifecycle.run_dir(container.id)),
        )

    async def remove(self, container_id: str) -> None:
        self.removed.append(container_id)

    def add(self, *args: str, letter: str = "a", **spec: object) -> Container:
        container = Container(
            id=letter * 64,
            name=f"box_{letter}",
            spec=ContainerSpec(image="busybox", labels={"l": "1"}, **spec),
            image_id="sha256:" + "0" * 64,
            args=args,
            created=len(self.rows.all()) + 1,
        )
        with self.db.transaction():
            self.rows.insert(container)
        self.rows.added(container)
        return container

    def save(self, container: Container, **changes: object) -> Container:
        return self.rows.save(replace(container, **changes))

    def adoption(self) -> Adoption:
        return Adoption(self.rows, self.shims, self.lifecycle, self.run_root, self.remove)

    async def die(self) -> None:
        """As the kernel ends a daemon: its sockets close, nothing else is done."""
        for container in self.rows.all():
            self.rows.live(container.id).close()
        self.shims.close()
        await self.lifecycle.settle()
        self.db.close()

    async def actions(self) -> list[str]:
        await asyncio.sleep(0)
        await self.heard.aclose()
        return [event.action async for event in self.heard]


def run(root: Path, scene: Callable[[House], Awaitable[None]]) -> None:
    async def play() -> None:
        house = House(root)
        try:
            await scene(house)
        finally:
            for container in house.rows.all():
                found = house.rows.find(container.id)
                if found and found.pid and proc.is_alive(found.pid, found.start_time):
                    os.kill(found.pid, signal.SIGKILL)
            await house.die()

    asyncio.run(asyncio.wait_for(play(), 30))


async def gone(pid: int, start_time: int) -> None:
    """SIGKILL only asks; `run` bounds the wait."""
    while proc.is_alive(pid, start_time):
        await asyncio.sleep(0.01)


def test_start_stop_events_and_codes(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = house.add("sleep")
        await house.lifecycle.start("box_a")
        running = house.rows.get("/box_a")
        assert running.state is State.RUNNING and running.pid and running.boot_id == proc.boot_id()
        assert running.start_time == proc.start_time(running.pid)
        with pytest.raises(Unchanged, match="already running"):
            await house.lifecycle.start(box.id)
        waiting = house.rows.wait(box.id, "next-exit")
        await house.lifecycle.stop("aaa", timeout=5)
        stopped = house.rows.get(box.id)
        assert (stopped.state, stopped.exit.code, stopped.pid) == (State.EXITED, 143, 0)
        assert stopped.stopped_by_user and stopped.finished >= stopped.started
        assert (await waiting).code == 143
        assert not house.lifecycle.run_dir(box.id).exists()
        with pytest.raises(Unchanged, match="already stopped"):
            await house.lifecycle.stop(box.id)
        events = [event async for event in _closed(house)]
        assert [event.action for event in events] == ["start", "kill", "die", "stop"]
        assert events[1].attributes == {"signal": "15", "l": "1", "image": "busybox", "name": "box_a"}
        assert events[2].attributes["exitCode"] == "143" and events[2].attributes["execDuration"] == "0"

    run(tmp_path, scene)


async def _closed(house: House):
    await house.heard.aclose()
    async for event in house.heard:
        yield event


def test_stop_kills_what_ignores_the_signal(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = house.add("trap", stop_timeout=0)
        await house.lifecycle.start(box.id)
        await asyncio.sleep(0.2)
        await house.lifecycle.stop(box.id)
        assert house.rows.get(box.id).exit.code == 137
        assert await house.actions() == ["start", "kill", "kill", "die", "stop"]

    run(tmp_path, scene)


def test_an_early_exit_is_recorded_and_restart_works(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = house.add("exit", "3")
        for _ in range(3):
            await house.lifecycle.start(box.id)
            assert (await house.rows.wait(box.id)).code == 3
        await house.lifecycle.restart(box.id)
        await house.rows.wait(box.id)
        assert (await house.actions())[-3:] in (["start", "restart", "die"], ["start", "die", "restart"])

    run(tmp_path, scene)


def test_restart_of_a_running_one_keeps_an_rm_container(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = house.add("sleep", auto_remove=True)
        await house.lifecycle.start(box.id)
        await house.lifecycle.restart(box.id, timeout=5)
        assert house.rows.get(box.id).state is State.RUNNING and not house.removed
        await house.lifecycle.kill(box.id)
        await house.lifecycle.settle()
        assert house.removed == [box.id]
        assert await house.actions() == ["start", "kill", "die", "stop", "start", "restart", "kill", "die"]

    run(tmp_path, scene)


@pytest.mark.parametrize(
    ("failure", "text", "code"),
    [
        (("execve", "2", "foo", "No such file or directory"), '"foo": executable file not found in $PATH', 127),
        (("execve", "2", "/foo", "No such file"), 'exec: "/foo": stat /foo: no such file or directory', 127),
        (("execve", "13", "/etc/passwd", "Permission denied"), 'exec: "/etc/passwd": permission denied', 126),
        (("execve", "13", "/etc", "is a directory"), 'exec: "/etc": is a directory: permission denied', 126),
        (("resolve the user", "0", "", "unable to find user x: no matching entries in passwd file"), "unable", 126),
        (("mount bind /a to /b", "20", "/b", "Not a directory"), "Are you trying to mount a directory onto", 127),
    ],
)
def test_a_failed_start_tells_dockers_story(tmp_path: Path, failure: tuple[str, ...], text: str, code: int) -> None:
    async def scene(house: House) -> None:
        box = house.add("fail", *failure)
        with pytest.raises(Invalid) as caught:
            await house.lifecycle.start(box.id)
        assert text in str(caught.value)
        after = house.rows.get(box.id)
        assert (after.state, after.exit.code, after.exit.error) == (State.CREATED, code, str(caught.value))
        assert not house.lifecycle.run_dir(box.id).exists()
        assert await house.actions() == []

    run(tmp_path, scene)


def test_an_unknown_failure_is_a_500_with_128(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = house.add("fail", "set sysctls", "22", "/proc/x", "write 'y': Invalid argument", auto_remove=True)
        with pytest.raises(EngineError) as caught:
            await house.lifecycle.start(box.id)
        assert type(caught.value) is EngineError
        assert house.rows.get(box.id).exit.code == 128
        await house.lifecycle.settle()
        assert house.removed == [box.id]

    run(tmp_path, scene)


def test_a_dying_zygote_costs_one_retry(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = house.add("sleep")
        (house.run_root / "kill-zygote").touch()
        await house.lifecycle.start(box.id)
        assert house.rows.get(box.id).state is State.RUNNING

    run(tmp_path, scene)


def test_a_shim_lost_twice_is_unavailable(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = house.add("lost-before-ready")
        with pytest.raises(Unavailable):
            await house.lifecycle.start(box.id)
        assert house.rows.get(box.id).state is State.CREATED

    run(tmp_path, scene)


def test_a_start_that_never_answers_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shims_module, "ANSWER_S", 0.3)

    async def scene(house: House) -> None:
        await house.shims.zygote.start()
        box = house.add("never-started")
        with pytest.raises(Unavailable):
            await house.lifecycle.start(box.id)

    monkeypatch.setattr(shims_module, "ANSWER_S", 2.0)
    run(tmp_path, scene)


def test_a_shim_that_dies_takes_its_container_along(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = house.add("sleep")
        await house.lifecycle.start(box.id)
        before = house.rows.get(box.id)
        await house.lifecycle.kill(box.id, "USR1")  # the fake shim's cue to vanish
        status = await house.rows.wait(box.id)
        assert (status.code, status.error) == (137, "the container's shim died")
        await gone(before.pid, before.start_time)

    run(tmp_path, scene)


def test_an_exit_file_speaks_for_a_dead_shim(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = house.add("exit-unheard", "7")
        await house.lifecycle.start(box.id)
        assert (await house.rows.wait(box.id)).code == 7

    run(tmp_path, scene)


def test_pause_kill_and_their_conflicts(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = house.add("sleep")
        with pytest.raises(Conflict, match=f"^container {box.id} is not running"):
            await house.lifecycle.kill("box_a")
        with pytest.raises(Conflict, match="is not running"):
            await house.lifecycle.pause(box.id)
        await house.lifecycle.start(box.id)
        await house.lifecycle.pause(box.id)
        with pytest.raises(Conflict, match="already paused"):
            await house.lifecycle.pause(box.id)
        with pytest.raises(Conflict, match="cannot start a paused container, try unpause instead"):
            await house.lifecycle.start(box.id)
        await house.lifecycle.unpause(box.id)
        with pytest.raises(EngineError, match=f"Container {box.id} is not paused"):
            await house.lifecycle.unpause(box.id)
        with pytest.raises(Invalid, match="^invalid signal: FOO"):
            await house.lifecycle.kill("aa", "FOO")
        await house.lifecycle.kill(box.id, "HUP")  # answered with ESRCH: no error
        await house.lifecycle.pause(box.id)
        await house.lifecycle.resize(box.id, 40, 100)
        await house.lifecycle.kill(box.id)
        assert house.rows.get(box.id).state is State.EXITED
        assert await house.actions() == [
            "start", "pause", "unpause", "kill", "pause", "resize", "kill", "unpause", "die",
        ]  # fmt: skip

    run(tmp_path, scene)


def test_oom_and_detach_are_heard(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box, other = house.add("oom"), house.add("detach", letter="b")
        await house.lifecycle.start(box.id)
        await house.lifecycle.start(other.id)
        await house.lifecycle.kill(box.id)
        await house.lifecycle.kill(other.id)
        assert house.rows.get(box.id).exit == ExitStatus(code=137, oom_killed=True)
        actions = await house.actions()
        assert "oom" in actions and "detach" in actions

    run(tmp_path, scene)


def client(**streams: bool) -> tuple[Client, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return Client(Streams(stdout=True, **streams), ours, b"\xfftyped", tty=False), theirs


def test_clients_wait_in_the_lobby_for_the_start(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = house.add("sleep")
        live = house.rows.live(box.id)
        staying, far = client()
        leaving, gone = client()
        halfway, half = client()
        for each in (staying, leaving, halfway):
            house.lifecycle.lobby.add(live, each)
        gone.close()
        half.shutdown(socket.SHUT_WR)  # only the end of its input
        await asyncio.sleep(0.05)
        assert live.pending == [staying, halfway]
        await house.lifecycle.start(box.id)
        assert live.pending == []
        for sock in (far, half):
            frame = await asyncio.to_thread(sock.recv, 65536)
            assert frame[:4] == b"\x01\0\0\0"
            assert msgspec.json.decode(frame[8:])["leftover"] == "\xfftyped"
            sock.close()

    run(tmp_path, scene)


def test_attach_while_it_runs_and_a_failed_start_hangs_up(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = house.add("sleep")
        await house.lifecycle.start(box.id)
        near, far = client()
        shim = house.rows.live(box.id).shim
        assert shim is not None
        await shim.attach(near)
        assert b'"stdout"' in await asyncio.to_thread(far.recv, 65536)
        far.close()
        bad = house.add("fail", "execve", "2", "x", "", letter="b")
        near, far = client()
        house.lifecycle.lobby.add(house.rows.live(bad.id), near)
        with pytest.raises(Invalid):
            await house.lifecycle.start(bad.id)
        assert await asyncio.to_thread(far.recv, 1) == b""
        far.close()

    run(tmp_path, scene)


def test_an_answer_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(house: House) -> None:
        box = house.add("sleep")
        await house.lifecycle.start(box.id)
        shim = house.rows.live(box.id).shim
        assert shim is not None
        monkeypatch.setattr(shims_module, "ANSWER_S", 0.05)
        with pytest.raises(Unavailable, match="did not answer"):
            await shim.request("deaf")
        monkeypatch.undo()
        await shim.request("resize", rows=1, columns=2)

    run(tmp_path, scene)


class FullDisk:
    """Lets the ledger refuse rows while it is `full`."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, self.refused = True, asyncio.Event()
        self.saved: list[Container] = []
        save = house.rows.save

        def refuse(container: Container) -> Container:
            if self.full:
                self.refused.set()
                raise OSError(errno.ENOSPC, "write the ledger", "state.db")
            self.saved.append(container)
            return save(container)

        monkeypatch.setattr(house.rows, "save", refuse)


def test_an_end_that_cannot_be_recorded_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle_module, "RETRY_S", 0.02)

    async def scene(house: House) -> None:
        box = house.add("sleep")
        await house.lifecycle.start(box.id)
        disk = FullDisk(house, monkeypatch)
        os.kill(house.rows.get(box.id).pid, signal.SIGKILL)
        await disk.refused.wait()
        assert house.rows.get(box.id).state is State.RUNNING and house.rows.live(box.id).shim is not None
        disk.full = False
        assert (await house.rows.wait(box.id)).code == 137
        assert house.rows.live(box.id).shim is None and not house.lifecycle.run_dir(box.id).exists()
        assert await house.actions() == ["start", "die"]

    run(tmp_path, scene)


def test_a_pause_that_cannot_be_recorded_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(house: House) -> None:
        box = house.add("sleep")
        await house.lifecycle.start(box.id)
        shim = house.rows.live(box.id).shim
        assert shim is not None
        disk = FullDisk(house, monkeypatch)
        with pytest.raises(OSError, match="write the ledger"):
            await house.lifecycle.pause(box.id)
        assert not (await shim.request("state"))["frozen"]
        disk.full = False
        await house.lifecycle.pause(box.id)
        disk.full = True
        with pytest.raises(OSError, match="write the ledger"):
            await house.lifecycle.unpause(box.id)
        assert (await shim.request("state"))["frozen"]
        disk.full = False
        await house.lifecycle.kill(box.id)

    run(tmp_path, scene)


def test_a_task_that_nobody_awaits_logs_what_it_did_not_foresee(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(house: House) -> None:
        async def broken() -> None:
            raise ZeroDivisionError

        house.lifecycle.spawn(broken())
        await house.lifecycle.settle()
        assert "ZeroDivisionError" in caplog.text and "broken failed" in caplog.text

    run(tmp_path, scene)


def test_overlapping_restarts_keep_an_rm_container(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = house.add("sleep", auto_remove=True)
        await house.lifecycle.start(box.id)
        await asyncio.gather(*(house.lifecycle.restart(box.id, timeout=5) for _ in range(3)))
        assert house.rows.live(box.id).restarting == 0 and not house.removed
        await house.lifecycle.kill(box.id)
        await house.lifecycle.settle()
        assert house.removed == [box.id]

    run(tmp_path, scene)


def test_a_daemon_comes_back_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle_module, "RETRY_S", 0.02)

    async def scene(house: House) -> None:
        kept, ended, unrecorded = (house.add("sleep", letter=letter) for letter in "abc")
        for box in (kept, ended, unrecorded):
            await house.lifecycle.start(box.id)
        before = house.rows.get(unrecorded.id)
        house.save(before, state=State.EXITED)
        house.save(before, state=State.CREATED, pid=0)
        ended_pid = house.rows.get(ended.id).pid
        await house.die()
        os.kill(ended_pid, signal.SIGTERM)
        while not (house.run_root / ended.id / "exit").exists():
            await asyncio.sleep(0.01)

        house.__dict__.update(House(house.root).__dict__)
        disk = FullDisk(house, monkeypatch)
        await house.adoption().run()
        assert house.rows.live(kept.id).shim is not None
        assert house.rows.get(ended.id).state is State.RUNNING
        await gone(before.pid, before.start_time)  # no row says that it runs
        disk.full = False
        assert (await house.rows.wait(ended.id)).code == 143
        while house.rows.get(unrecorded.id).state is not State.EXITED:
            await asyncio.sleep(0.01)
        assert house.rows.get(unrecorded.id).exit.code == 137
        assert kept.id not in [container.id for container in disk.saved]
        await house.lifecycle.kill(kept.id)

    run(tmp_path, scene)


def test_rows_are_bounded(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        large = Container(
            id="f" * 64,
            name="large",
            spec=ContainerSpec(image="x", labels={str(number): "" for number in range(200_000)}),
            image_id="",
        )
        with pytest.raises(Invalid, match="may have 1 MiB as JSON"):
            house.rows.insert(large)

    run(tmp_path, scene)


def test_exec_needs_no_go(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = house.add("sleep")
        await house.lifecycle.start(box.id)
        run_dir = str(house.lifecycle.run_dir(box.id))
        shim, started = await house.shims.exec(run_dir, {"args": ["exit", "5"]})
        assert started.pid and (await shim.exited)["code"] == 5
        with pytest.raises(Failed):
            await house.shims.exec(run_dir, {"args": ["fail", "execve", "2", "x", ""]})
        with pytest.raises(Invalid, match="exceed"):
            await house.shims.exec(run_dir, {"args": ["exit", "5"], "env": ["A=" + "x" * 200_000]})

    run(tmp_path, scene)


def test_a_cancelled_stop_is_finished(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = house.add("sleep")
        await house.lifecycle.start(box.id)
        task = asyncio.ensure_future(house.lifecycle.stop(box.id))
        await asyncio.sleep(0)
        task.cancel()
        assert (await house.rows.wait(box.id)).code == 143

    run(tmp_path, scene)


def test_a_daemon_that_comes_back_finds_everything(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        kept = house.add("sleep", letter="a")
        paused = house.add("sleep", letter="b")
        ended = house.add("sleep", letter="c", auto_remove=True)
        orphan = house.add("sleep", letter="d")
        rebooted = house.add("sleep", letter="e")
        unrecorded = house.add("sleep", letter="f")
        for box in (kept, paused, ended, orphan, unrecorded):
            await house.lifecycle.start(box.id)
        await house.lifecycle.pause(paused.id)
        house.save(house.rows.get(unrecorded.id), state=State.EXITED)  # the row the daemon did not write in time
        house.save(house.rows.get(unrecorded.id), state=State.CREATED, pid=0)
        house.save(rebooted, state=State.RUNNING, boot_id="another", pid=1)
        removing = house.add("x", letter="1")
        house.save(removing, state=State.REMOVING)
        orphan_pid = house.rows.get(orphan.id).pid
        stray = house.run_root / ("9" * 64)
        stray.mkdir()
        (house.run_root / "not-an-id").mkdir()
        ended_pid = house.rows.get(ended.id).pid
        await _kill_shim_of(orphan_pid)
        await house.die()
        # Not SIGINT: a shell that runs this in the background lets all of us ignore it.
        os.kill(ended_pid, signal.SIGTERM)
        exit_file = house.run_root / ended.id / "exit"
        while not exit_file.exists():
            await asyncio.sleep(0.01)

        again = House(house.root)
        house.__dict__.update(again.__dict__)
        await house.adoption().run()
        states = {container.name: container.state for container in house.rows.all()}
        assert states["box_a"] is State.RUNNING and states["box_b"] is State.PAUSED
        assert states["box_c"] is State.EXITED and house.rows.get(ended.id).exit.code == 143
        lost = house.rows.get(orphan.id)
        assert (lost.state, lost.exit.code, lost.exit.error) == (State.EXITED, 137, "the container's shim died")
        assert (house.rows.get(rebooted.id).state, house.rows.get(rebooted.id).exit.code) == (State.EXITED, 255)
        assert house.rows.get(unrecorded.id).state is State.RUNNING and house.rows.get(unrecorded.id).pid
        assert not stray.exists() and (house.run_root / "not-an-id").exists()
        await house.lifecycle.settle()
        assert sorted(house.removed) == [removing.id, ended.id]
        await house.lifecycle.kill(kept.id)
        assert house.rows.get(kept.id).exit.code == 137
        await house.lifecycle.kill(paused.id)
        await house.lifecycle.kill(unrecorded.id)

    run(tmp_path, scene)


async def _kill_shim_of(pid: int) -> None:
    """Shim and init of a container at once, as a crash would."""
    shim = int(proc.status(pid, "PPid"))
    times = [(each, proc.start_time(each)) for each in (shim, pid)]
    os.kill(shim, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    for each, start_time in times:
        await gone(each, start_time)


def test_one_bad_record_hides_nothing(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        house.add("sleep", letter="a")
        house.add("sleep", letter="b")
        house.db.execute("UPDATE containers SET row = '{\"id\":' WHERE name = 'box_a'")
        rows = Rows(house.db)
        broken = rows.get("box_a")
        assert broken.state is State.DEAD and "unreadable" in broken.exit.error
        assert rows.get("box_b").state is State.CREATED

    run(tmp_path, scene)


def test_look_up(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        one, two = house.add("x", letter="a"), house.add("x", letter="b")
        house.save(two, name="aaaa")
        assert house.rows.get("aaaa").id == two.id  # a name beats a prefix
        assert house.rows.get("aaa").id == one.id
        assert [container.id for container in house.rows.all()] == [two.id, one.id]
        with pytest.raises(NotFound, match="No such container: zz"):
            house.rows.get("zz")
        third = replace(one, id="a" * 63 + "b", name="third")
        house.rows.insert(third)
        house.rows.added(third)
        with pytest.raises(Invalid, match="multiple IDs found with provided prefix: aaaaa"):
            house.rows.get("aaaaa")
        with pytest.raises(Conflict, match='The container name "/aaaa" is already in use by container "bbb'):
            house.rows.claim("aaaa")

    run(tmp_path, scene)


def test_waits(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        box = house.add("sleep")
        assert (await house.rows.wait(box.id)).code == 0
        with pytest.raises(Invalid, match='invalid condition: "soon"'):
            house.rows.wait(box.id, "soon")
        next_exit, removed = house.rows.wait(box.id, "next-exit"), house.rows.wait(box.id, "removed")
        given_up = house.rows.wait(box.id, "removed")
        given_up.cancel()
        await asyncio.sleep(0)
        assert len(house.rows.live(box.id).removal_waiters) == 1
        house.rows.delete(box.id)
        house.rows.removed(house.rows.get(box.id))
        assert (await next_exit).code == 0 and (await removed).code == 0

    run(tmp_path, scene)


@pytest.mark.parametrize(("text", "number"), [("TERM", 15), ("sigkill", 9), ("1", 1), ("RTMIN+3", signal.SIGRTMIN + 3)])
def test_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "FOO", "-1", "SIG", "DFL", "__class__"])
def test_no_signals(text: str) -> None:
    with pytest.raises(Invalid, match="invalid signal"):
        parse_signal(text or "?")


def test_detach_keys() -> None:
    assert detach_sequence("") == [16, 17]
    assert detach_sequence("ctrl-@,a,ctrl-_,ctrl-[") == [0, 97, 31, 27]
    for bad in ("ctrl-", "ab", "ctrl-é", "é", "a,,b", "ctrl-1"):
        with pytest.raises(Invalid, match="Invalid detach keys"):
            detach_sequence(bad)


def test_too_much_ahead() -> None:
    near, far = socket.socketpair()
    with near, far, pytest.raises(Invalid, match="ahead of the upgrade"):
        Client(Streams(), near, b"x" * 30_000, tty=False)


def test_the_module_names_its_bounds() -> None:
    assert lifecycle_module.STOP_TIMEOUT_S == 10
