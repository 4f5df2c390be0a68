"""Start, stop, kill, restart, pause, and what happens when a container ends: the steps of a life. Runs in the daemon.

Each verb takes the container's lock for its step and never while it waits for the container itself; a verb that has
begun is finished even if its client goes away. The row is read again after each await, as the kernel's news (an OOM)
may have changed it meanwhile. Deliberately absent: create and remove (containers.py), adoption after a restart of the
daemon (adopt.py), and restart policies, which subscribe to `ended`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal as signals
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from tare.cgroups.api import detect
from tare.engine import failures, plan_settings, state
from tare.engine.attach import Lobby
from tare.engine.events import Events
from tare.engine.model import Bundle, Container, ExitStatus, State
from tare.engine.rows import Live, Rows
from tare.engine.shims import Client, Failed, Lost, Shim, Shims, Started, exit_record
from tare.errors import Conflict, EngineError, Invalid, Unavailable, Unchanged
from tare.linux import proc
from tare.runtime.protocol import Exited

__all__ = ["Lifecycle", "announce", "parse_signal"]

log = logging.getLogger(__name__)
T = TypeVar("T")

STOP_TIMEOUT_S = 10
KILL_TIMEOUT_S = 10.0
"""After SIGKILL; Docker's. Then the kernel is told directly, and after 2 s more the truth is reported."""
RETRY_S = 5.0
"""Until what could not be recorded is tried again: a disk that is full now need not stay so. Guess."""
LEAVE_S = 3.0
"""Removing a cgroup is retried for 2 s (cgroups/api.py)."""
UNKNOWN = 128
"""Docker's exit code for a start that failed for no reason of the program's."""


def parse_signal(text: str) -> int:
    """The number of "TERM", "sigterm", "15" or "RTMIN+3". Invalid with Docker's text else."""
    try:
        return plan_settings.stop_signal(text)
    except Invalid:
        raise Invalid(f"invalid signal: {text}") from None


def announce(events: Events, container: Container, action: str, attributes: Mapping[str, str] | None = None) -> None:
    """A container's event, with the attributes Docker gives to each: labels, image, name."""
    own = {"image": container.spec.image, "name": container.name}
    events.emit("container", action, container.id, {**(attributes or {}), **container.spec.labels, **own})


class Lifecycle:
    """The verbs that concern processes. `prepare` makes a container's bundle, `remove` is containers.py's."""

    def __init__(
        self,
        rows: Rows,
        shims: Shims,
        events: Events,
        run_root: Path,
        *,
        prepare: Callable[[Container], Awaitable[Bundle]],
        remove: Callable[[str], Coroutine[Any, Any, None]],
    ) -> None:
        self._rows, self._shims, self._events = rows, shims, events
        self._run_root = run_root
        self._prepare, self._remove = prepare, remove
        self._tasks: set[asyncio.Task[Any]] = set()
        self.lobby = Lobby()
        self.ended: list[Callable[[Container], None]] = []
        """Called with the EXITED row of each container that ended by itself or by force."""

    def run_dir(self, container_id: str) -> Path:
        return self._run_root / container_id

    async def start(self, ref: str) -> None:
        """Unchanged if it runs; Conflict, Invalid and others as Docker."""
        await self.whole(self._start(self._rows.get(ref).id))

    async def stop(self, ref: str, timeout: int | None = None, signal: str = "") -> None:
        """`timeout` seconds until SIGKILL: None = the container's own or 10, -1 = for ever. Unchanged if stopped."""
        container = self._rows.get(ref)
        number = parse_signal(signal) if signal else self._stop_signal(container)
        if not state.is_live(container):
            raise Unchanged("container is already stopped")
        try:
            await self.whole(self._stop(container.id, timeout, number))
        except (EngineError, OSError) as error:
            raise EngineError(f"cannot stop container: {ref}: {error}") from error

    async def kill(self, ref: str, signal: str = "KILL") -> None:
        """SIGKILL waits for the end, other signals are only sent. `api/` puts "cannot kill container" before errors."""
        number = parse_signal(signal or "KILL")
        await self.whole(self._kill(self._rows.get(ref).id, number))

    async def restart(self, ref: str, timeout: int | None = None, signal: str = "") -> None:
        container = self._rows.get(ref)
        number = parse_signal(signal) if signal else self._stop_signal(container)
        try:
            await self.whole(self._restart(container.id, timeout, number))
        except EngineError as error:
            raise type(error)(f"Cannot restart container {ref}: {error}") from error

    async def pause(self, ref: str) -> None:
        await self.whole(self._pause(self._rows.get(ref).id))

    async def unpause(self, ref: str) -> None:
        await self.whole(self._unpause(self._rows.get(ref).id))

    async def resize(self, ref: str, rows: int, columns: int) -> None:
        """The size of the container's terminal, in characters."""
        container = self._rows.get(ref)
        shim = self._rows.live(container.id).shim
        if not state.is_live(container) or shim is None:
            raise Conflict(f"container {container.id} is not running")
        await shim.resize(rows, columns)
        announce(self._events, container, "resize", {"height": str(rows), "width": str(columns)})

    async def kill_and_wait(self, container_id: str) -> None:
        """SIGKILL in every way there is. EngineError if the container outlives them all."""
        ended = self._rows.wait(container_id)
        live = self._rows.live(container_id)
        async with live.lock:
            if state.is_live(self._rows.get(container_id)):
                await self._signal(container_id, live, signals.SIGKILL)
        if await _done(ended, KILL_TIMEOUT_S):
            return
        log.warning("container %s does not end: SIGKILL goes to its processes directly", container_id)
        _kill_process(self._rows.get(container_id), signals.SIGKILL)
        await self.kill_cgroup(container_id)
        if not await _done(ended, 2):
            raise EngineError("tried to kill container, but did not receive an exit event")

    async def whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`, which goes on when the caller is cancelled: half a stop helps nobody."""
        task = asyncio.ensure_future(work)
        self._keep(task)
        return await asyncio.shield(task)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run `work` on its own; a failure goes to the log."""
        self._keep(asyncio.ensure_future(self._logged(work)))

    def later(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """`spawn` the work in RETRY_S, unless the daemon has gone by then."""
        asyncio.get_running_loop().call_later(RETRY_S, lambda: self.spawn(work()))

    async def settle(self, timeout_s: float = KILL_TIMEOUT_S) -> None:
        """Wait for what is under way; what takes longer (a stop without bound) is given up."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in late:
                task.cancel()

    def watch(self, container: Container, shim: Shim) -> None:
        """Let the news of a live shim act on its container."""
        self._rows.live(container.id).shim = shim
        shim.listen(lambda news: self._on_news(container.id, news))
        shim.exited.add_done_callback(lambda _: self.spawn(self._on_end(container.id, shim)))

    def finish(self, container_id: str, status: ExitStatus, finished_ns: int) -> None:
        """Record the end; if that fails (OSError) nothing has changed. The caller holds the lock."""
        container = self._update(container_id, state=State.EXITED, pid=0, finished=finished_ns, exit=status)
        live = self._rows.live(container_id)
        live.leaving, live.shim = live.shim, None
        shutil.rmtree(self.run_dir(container_id), ignore_errors=True)
        lasted = max(0, finished_ns - container.started) // 1_000_000_000 if container.started else 0
        announce(self._events, container, "die", {"exitCode": str(status.code), "execDuration": str(lasted)})
        for observer in self.ended:
            observer(container)
        if container.spec.auto_remove and not live.restarting:
            self.spawn(self._remove(container_id))

    async def kill_cgroup(self, container_id: str, *, delete: bool = False) -> None:
        """Kill whatever is left of a container, whoever its shim was; by the path that its own bundle names."""
        try:
            bundle = msgspec.json.decode((self.run_dir(container_id) / "bundle.json").read_bytes(), type=Bundle)
        except (OSError, msgspec.DecodeError):
            return

        def act() -> None:
            cgroup = detect().cgroup(bundle.cgroup)
            cgroup.kill()
            if delete:
                cgroup.delete()

        try:
            # Freezing may take seconds, and a D-state process for ever: not in the loop.
            async with asyncio.timeout(KILL_TIMEOUT_S):
                await asyncio.to_thread(act)
        except (OSError, ValueError) as error:
            log.warning("kill the cgroup of container %s: %s", container_id, error)

    async def _start(self, container_id: str) -> None:
        live = self._rows.live(container_id)
        async with live.lock:
            container = self._rows.get(container_id)
            if container.state is State.PAUSED:
                raise Conflict("cannot start a paused container, try unpause instead")
            state.check(container, State.RUNNING)
            await _left(live)
            clients = self.lobby.take(live)
            try:
                shim, started = await self._shims.run(await self._prepare(container), clients)
                self._running(container_id, shim, started)
            except Failed as failed:
                error, code = failures.start_failure(failed)
                self._not_started(container_id, clients, ExitStatus(code=code, error=str(error)))
                raise error from failed
            except Unavailable as error:
                # Lost or late: whether the program got as far as to run is unknown, so nothing of it may stay.
                await self.kill_cgroup(container_id, delete=True)
                self._not_started(container_id, clients, ExitStatus(code=UNKNOWN, error=str(error)))
                raise
            except (EngineError, OSError) as error:
                self._not_started(container_id, clients, ExitStatus(code=UNKNOWN, error=str(error)))
                raise

    def _running(self, container_id: str, shim: Shim, started: Started) -> None:
        try:
            container = self._update(
                container_id,
                state=State.RUNNING,
                pid=started.pid,
                start_time=started.start_time,
                boot_id=proc.boot_id(),
                started=started.time_ns or time.time_ns(),
                exit=ExitStatus(code=0),
                stopped_by_user=False,
            )
        except BaseException:
            # No row says that it runs (a full disk): then it must not.
            self.spawn(shim.kill(signals.SIGKILL))
            raise
        announce(self._events, container, "start")
        self.watch(container, shim)

    def _not_started(self, container_id: str, clients: list[Client], status: ExitStatus) -> None:
        """The state stays what it was, as Docker's does; the exit code and the reason are new."""
        for client in clients:
            client.close()
        container = self._update(container_id, exit=status)
        shutil.rmtree(self.run_dir(container_id), ignore_errors=True)
        if container.spec.auto_remove:
            self.spawn(self._remove(container_id))

    async def _stop(self, container_id: str, timeout: int | None, number: int) -> None:
        container = self._rows.get(container_id)
        if timeout is None:
            timeout = STOP_TIMEOUT_S if container.spec.stop_timeout is None else container.spec.stop_timeout
        ended = self._rows.wait(container_id)
        live = self._rows.live(container_id)
        limit = None if timeout < 0 else float(timeout)
        async with live.lock:
            if state.is_live(self._rows.get(container_id)):
                self._update(container_id, stopped_by_user=True)
                try:
                    await self._signal(container_id, live, number)
                except (Unavailable, OSError) as error:
                    # Nobody heard it: Docker then waits 2 s, in case it was ending anyway.
                    limit = 2.0
                    log.warning("stop container %s: %s", container_id, error)
        if not await _done(ended, limit):
            await self.kill_and_wait(container_id)
        announce(self._events, container, "stop")

    async def _kill(self, container_id: str, number: int) -> None:
        live = self._rows.live(container_id)
        async with live.lock:
            container = self._rows.get(container_id)
            if not state.is_live(container):
                raise Conflict(f"container {container.id} is not running")
            self._update(container_id, stopped_by_user=True)
            if number != signals.SIGKILL:
                await self._signal(container_id, live, number)
                return
        await self.kill_and_wait(container_id)

    async def _restart(self, container_id: str, timeout: int | None, number: int) -> None:
        live = self._rows.live(container_id)
        live.restarting += 1
        try:
            if state.is_live(self._rows.get(container_id)):
                await self._stop(container_id, timeout, number)
            try:
                await self._start(container_id)
            except Unchanged:
                log.info("container %s was started by somebody else during its restart", container_id)
        finally:
            live.restarting -= 1
        announce(self._events, self._rows.get(container_id), "restart")

    async def _pause(self, container_id: str) -> None:
        live = self._rows.live(container_id)
        async with live.lock:
            state.check(self._rows.get(container_id), State.PAUSED)
            try:
                await _shim(live).freeze(True)
            except (OSError, Unavailable) as error:
                raise EngineError(f"cannot pause container {container_id}: {error}") from error
            await self._frozen(container_id, live, on=True)

    async def _unpause(self, container_id: str) -> None:
        live = self._rows.live(container_id)
        async with live.lock:
            if self._rows.get(container_id).state is not State.PAUSED:
                raise EngineError(f"Container {container_id} is not paused")
            try:
                await _shim(live).freeze(False)
            except (OSError, Unavailable) as error:
                raise EngineError(f"Cannot unpause container {container_id}: {error}") from error
            await self._frozen(container_id, live, on=False)

    async def _frozen(self, container_id: str, live: Live, *, on: bool) -> None:
        """Record a freeze or thaw that has been done; it is undone if the row cannot be written."""
        try:
            container = self._update(container_id, state=State.PAUSED if on else State.RUNNING)
        except BaseException:
            try:
                await _shim(live).freeze(not on)
            except (OSError, Unavailable) as error:
                log.error("undo the %s of container %s: %s", "pause" if on else "unpause", container_id, error)
            raise
        announce(self._events, container, "pause" if on else "unpause")

    async def _signal(self, container_id: str, live: Live, number: int) -> None:
        """Send, tell, and thaw a paused container that shall end by it. The caller holds the lock.

        SIGKILL reaches the process even if the shim is deaf. A process that has just ended is no error.
        """
        container = self._rows.get(container_id)
        try:
            await _shim(live).kill(number)
        except (ProcessLookupError, Lost):
            pass  # it is ending: its shim no longer listens while it collects the last output
        except Unavailable:
            if number != signals.SIGKILL:
                raise
            _kill_process(container, number)
        announce(self._events, container, "kill", {"signal": str(int(number))})
        if container.state is State.PAUSED and number in (signals.SIGKILL, self._stop_signal(container)):
            try:
                await _shim(live).freeze(False)
            except (OSError, Unavailable) as error:
                log.info("thaw container %s: %s", container_id, error)
            announce(self._events, self._update(container_id, state=State.RUNNING), "unpause")

    async def _on_end(self, container_id: str, shim: Shim) -> None:
        live = self._rows.live(container_id)
        async with live.lock:
            container = self._rows.find(container_id)
            if container is None or live.shim is not shim:
                return
            try:
                exited: Exited | None = shim.exited.result()
            except Lost:
                exited = exit_record(self.run_dir(container_id))
            try:
                if exited is None:
                    await self.orphaned(container_id)
                    return
                oom = exited["oom"] or container.exit.oom_killed
                self.finish(container_id, ExitStatus(code=exited["code"], oom_killed=oom), exited["time_ns"])
            except OSError as error:
                log.error("record the end of container %s, tried again in %.0f s: %s", container_id, RETRY_S, error)
                self.later(lambda: self._on_end(container_id, shim))

    async def orphaned(self, container_id: str) -> None:
        """The shim is dead and left no word: its container goes with it. The caller holds the lock."""
        _kill_process(self._rows.get(container_id), signals.SIGKILL)
        await self.kill_cgroup(container_id, delete=True)
        killed = ExitStatus(code=128 + signals.SIGKILL, error="the container's shim died")
        self.finish(container_id, killed, time.time_ns())

    def _on_news(self, container_id: str, news: str) -> None:
        container = self._rows.find(container_id)
        if container is None:
            return
        if news == "oom":
            try:
                container = self._update(container_id, exit=replace(container.exit, oom_killed=True))
            except OSError as error:  # the shim says it again when the container has ended
                log.error("record that container %s ran out of memory: %s", container_id, error)
            announce(self._events, container, "oom")
        else:
            announce(self._events, container, "detach")

    def _update(self, container_id: str, **changes: Any) -> Container:
        """Save the row as it is now with some members changed; the step to a new state is checked."""
        container = self._rows.get(container_id)
        target = changes.get("state", container.state)
        if target is not container.state:
            state.check(container, target)
        return self._rows.save(replace(container, **changes))

    def _stop_signal(self, container: Container) -> int:
        return parse_signal(container.spec.stop_signal or "TERM")

    def _keep(self, task: asyncio.Future[Any]) -> None:
        assert isinstance(task, asyncio.Task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Its error belongs to the caller; one who left does not make it news.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _logged(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except (EngineError, OSError) as error:
            log.warning("%s: %s", getattr(work, "__qualname__", "task"), error)
        except Exception:
            # The outermost frame of a task that nobody awaits.
            log.exception("%s failed", getattr(work, "__qualname__", "task"))


def _shim(live: Live) -> Shim:
    if live.shim is None:
        raise Unavailable("the container's shim is gone")
    return live.shim


async def _left(live: Live) -> None:
    """Wait until the shim of the last life has removed its cgroup, which the next one will make again."""
    leaving, live.leaving = live.leaving, None
    if leaving is not None:
        if not await _done(leaving.closed, LEAVE_S):
            log.warning("the shim of the last life is still there after %.0f s", LEAVE_S)
        leaving.close()


async def _done(future: asyncio.Future[Any], timeout: float | None) -> bool:
    """Whether the future is done within `timeout` seconds; it is not cancelled."""
    done, _ = await asyncio.wait([future], timeout=timeout)
    return bool(done)


def _kill_process(container: Container, number: int) -> None:
    """By pidfd first, then the start time, then the signal: a reused pid is never hit (crun, status.c)."""
    if not container.pid or container.boot_id != proc.boot_id():
        return
    try:
        pidfd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        return
    try:
        if proc.start_time(container.pid) == container.start_time:
            signals.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
