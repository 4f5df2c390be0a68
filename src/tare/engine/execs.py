"""Further processes in a running container: docker exec. Runs in the daemon's loop.

An exec is kept in memory until its container is gone; its process is a child of the zygote of its own, whose channel
speaks as a shim's does. Deliberately absent: entering the namespaces (runtime/).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from tare.engine import failures, plan, seccomp, state
from tare.engine.events import Events
from tare.engine.lifecycle import announce
from tare.engine.model import Container, Exec, ExecSpec, State, Streams
from tare.engine.shims import Client, Failed, Lost, Shim, Shims, detach_sequence
from tare.errors import Conflict, EngineError, Invalid, NotFound
from tare.linux import proc

if TYPE_CHECKING:
    from tare.engine.containers import Containers

__all__ = ["Execs"]

log = logging.getLogger(__name__)

CANNOT_INVOKE = 126
READY_S = 10.0
"""How long a resize waits for the start, as Docker's."""
SETTLE_S = 2.0
"""How long the news of an end that has happened may take from the shim to here. Guess."""
KEPT_S = 300.0
"""How long an exec waits for its start, and its exit code for a question; Docker sweeps every 5 minutes too."""
STDOUT = 1


class _Record:
    """One exec and its live parts."""

    __slots__ = ("ended", "made", "running", "shim", "start_time", "value")

    def __init__(self, value: Exec) -> None:
        self.value = value
        self.shim: Shim | None = None
        self.start_time = 0
        """Of the process, in clock ticks (proc.start_time)."""
        self.made = time.monotonic()
        self.ended = 0.0
        """Monotonic seconds; 0 = not yet."""
        self.running = asyncio.Event()
        """Set when the start has succeeded or failed."""


class Execs:
    """All execs, by id."""

    def __init__(self, containers: Containers, shims: Shims, events: Events, seccomp_cache: str) -> None:
        self._containers, self._shims, self._events = containers, shims, events
        self._seccomp_cache = seccomp_cache
        self._records: dict[str, _Record] = {}

    def create(self, ref: str, spec: ExecSpec) -> Exec:
        """Conflict if the container does not run or is paused; Invalid without a command or with bad keys."""
        container = self._active(self._containers.get(ref), ref)
        if not spec.args:
            raise Invalid("No exec command specified")
        detach_sequence(spec.detach_keys)
        self._sweep()
        value = Exec(id=secrets.token_hex(32), container=container.id, spec=spec)
        self._records[value.id] = _Record(value)
        self._announce(container, f"exec_create: {' '.join(spec.args)}", value)
        return value

    def get(self, exec_id: str) -> Exec:
        """NotFound with Docker's text; also when its container has been removed meanwhile."""
        return self._record(exec_id).value

    async def settled(self, exec_id: str) -> Exec:
        """As `get`, but a process that is gone has its exit code: clients ask as soon as the stream has ended, and the
        shim's word may be on its way (`docker exec` takes a missing code for 0)."""
        record = self._record(exec_id)
        if record.value.started:
            with suppress(TimeoutError):
                await asyncio.wait_for(record.running.wait(), READY_S)
        if record.shim is not None and not proc.is_alive(record.value.pid, record.start_time):
            await asyncio.wait([record.shim.exited], timeout=SETTLE_S)
        return self._record(exec_id).value

    def of(self, container_id: str) -> list[Exec]:
        """The execs of a container that have not ended, oldest first."""
        values = [record.value for record in self._records.values()]
        return [value for value in values if value.container == container_id and value.exit_code is None]

    def startable(self, exec_id: str) -> Exec:
        """To be asked before the answer is 101: Conflict if it ran, runs, or its container does not."""
        value = self._record(exec_id).value
        self._active(self._containers.get(value.container), value.container)
        if value.exit_code is not None:
            raise Conflict(f"exec command {exec_id} has already run")
        if value.started:
            raise Conflict(f"exec command {exec_id} is already running")
        return value

    async def start(
        self,
        exec_id: str,
        detach: bool = True,
        tty: bool = False,
        console_size: tuple[int, int] = (0, 0),
        sock: socket.socket | None = None,
        leftover: bytes = b"",
    ) -> None:
        """Returns when the process runs. `sock` is taken over; a failure is then written to it, as Docker does.

        Without a client a failure is raised: Invalid with the runtime's text, or the kinds of `startable`. Whether
        there is a terminal was settled by create; `tty` only matters to the answer's content type.
        """
        try:
            self.startable(exec_id)
            await self._containers.lifecycle.whole(
                self._start(self._record(exec_id), console_size, None if detach else sock, leftover)
            )
        except (EngineError, OSError) as error:
            if sock is None or detach:
                raise
            spec = self._records[exec_id].value.spec if exec_id in self._records else None
            await _report(sock, f"{error}\r\n".encode(), mux=spec is not None and not spec.tty)
        finally:
            if sock is not None:
                sock.close()

    async def resize(self, exec_id: str, rows: int, columns: int) -> None:
        """Waits up to 10 s for a start under way. Invalid if the process never came to be."""
        record = self._record(exec_id)
        try:
            await asyncio.wait_for(record.running.wait(), READY_S)
        except TimeoutError:
            raise EngineError("timeout waiting for exec session ready") from None
        if record.shim is None:
            raise Invalid("exec process is not started")
        await record.shim.resize(rows, columns)

    async def _start(
        self, record: _Record, console_size: tuple[int, int], sock: socket.socket | None, leftover: bytes
    ) -> None:
        value = record.value = replace(record.value, started=True, running=True)
        container = self._containers.get(value.container)
        self._announce(container, f"exec_start: {' '.join(value.spec.args)}", value)
        spec = replace(value.spec, console_size=console_size) if any(console_size) else value.spec
        clients: list[Client] = []
        try:
            if sock is not None:
                # A copy: the caller's stays good for the report of a failure.
                clients.append(Client(_streams(spec), sock.dup(), leftover, tty=spec.tty))
            shim, started = await self._shims.exec(
                str(self._containers.lifecycle.run_dir(container.id)), self._process(container, spec), clients
            )
        except BaseException as error:
            for client in clients:
                client.close()
            code = CANNOT_INVOKE
            reason: BaseException = error
            if isinstance(error, Failed):
                reason, code = failures.exec_failure(error)
            record.value = replace(record.value, running=False, exit_code=code)
            record.ended = time.monotonic()
            record.running.set()
            raise reason from None
        record.shim, record.start_time = shim, started.start_time
        record.value = replace(record.value, pid=started.pid)
        record.running.set()
        shim.listen(lambda news: self._announce(container, "exec_detach", value) if news == "detached" else None)
        shim.exited.add_done_callback(lambda _: self._on_end(record))

    def _process(self, container: Container, spec: ExecSpec) -> dict[str, Any]:
        """EXEC of runtime/protocol.py."""
        security, host = container.spec.security, self._containers.host
        bpf = seccomp.profile(
            security.options,
            plan.granted(container.spec, host),
            self._seccomp_cache,
            privileged=security.privileged,
        )
        return plan.exec_process(container, spec, host, bpf)

    def _on_end(self, record: _Record) -> None:
        shim, record.shim = record.shim, None
        if shim is None:
            return
        try:
            code = shim.exited.result()["code"]
        except Lost as error:
            code = 255
            log.warning("exec %s: %s", record.value.id, error)
        shim.close()
        record.value = replace(record.value, running=False, exit_code=code)
        record.ended = time.monotonic()
        container = self._containers.rows.find(record.value.container)
        if container is not None:
            self._announce(container, "exec_die", record.value, exitCode=str(code))

    def _record(self, exec_id: str) -> _Record:
        record = self._records.get(exec_id)
        if record is None:
            raise NotFound(f"No such exec instance: {exec_id}")
        if self._containers.rows.find(record.value.container) is None:
            del self._records[exec_id]
            raise NotFound(f"No such container: {exec_id}")
        return record

    def _sweep(self) -> None:
        """Forget those that ended, or were made and never started, a while ago, and those whose container is gone."""
        horizon = time.monotonic() - KEPT_S
        self._records = {
            exec_id: record
            for exec_id, record in self._records.items()
            if record.value.running
            or (
                (record.ended or record.made) > horizon
                and self._containers.rows.find(record.value.container) is not None
            )
        }

    def _active(self, container: Container, ref: str) -> Container:
        if not state.is_live(container):
            raise Conflict(f"container {container.id} is not running")
        if container.state is State.PAUSED:
            raise Conflict(f"Container {ref} is paused, unpause the container before exec")
        if container.state is State.RESTARTING:
            raise Conflict(f"Container {container.id} is restarting, wait until the container is running")
        return container

    def _announce(self, container: Container, action: str, value: Exec, **attributes: str) -> None:
        announce(self._events, container, action, {"execID": value.id, **attributes})


def _streams(spec: ExecSpec) -> Streams:
    return Streams(
        stdin=spec.attach_stdin,
        stdout=spec.attach_stdout,
        stderr=spec.attach_stderr,
        multiplexed=not spec.tty,
        detach_keys=spec.detach_keys,
    )


async def _report(sock: socket.socket, text: bytes, *, mux: bool) -> None:
    """Tell an attached client; one that has left meanwhile is no error."""
    frame = struct.pack(">BxxxL", STDOUT, len(text)) + text if mux else text
    try:
        await asyncio.get_running_loop().sock_sendall(sock, frame)
    except OSError as error:
        log.info("client of an exec left: %s", error)
