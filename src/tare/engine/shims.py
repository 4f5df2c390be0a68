"""The daemon's end of the wires: the zygote that forks shims, and one `Shim` per live process (runtime/protocol.py).

Runs in the daemon's loop. Every channel is non-blocking and read by loop.add_reader; every answer has a deadline, so a
stuck shim costs one request and never the loop. The zygote dies with the daemon (end of file on its socket), shims do
not: connect() finds them again. Deliberately absent: states and rows (lifecycle.py), and what a bundle means (plan.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tare.engine.model import Bundle, Streams
from tare.errors import Invalid, Unavailable
from tare.linux.fds import Channel
from tare.runtime.protocol import MAX_FRAME, Exited, StreamsWire, encode

__all__ = ["Client", "Failed", "Lost", "Shim", "Shims", "detach_sequence", "exit_record"]

log = logging.getLogger(__name__)
T = TypeVar("T")

ANSWER_S = 10.0
"""Deadline of one answer, of Ready after Run, of Started after Go; a guess, a start takes 5 ms when all is well."""
MAX_LEFTOVER = 24 * 1024
"""Bytes a client may send ahead of its 101: as JSON they can grow six times and must fit in one frame."""
DETACH_DEFAULT = "ctrl-p,ctrl-q"


class Failed(Exception):
    """The container's first process, or an exec, could not be started: the shim's "failed" message."""

    def __init__(self, step: str, number: int, path: str, message: str) -> None:
        super().__init__(message or f"{step} {path}: {os.strerror(number)}")
        self.step, self.errno, self.path, self.message = step, number, path, message


class Lost(Unavailable):
    """The process at the other end went away without a word."""


class Started(msgspec.Struct, frozen=True):
    """The shim's "started" message."""

    pid: int
    start_time: int
    time_ns: int
    warnings: tuple[str, ...] = ()


class Client:
    """One attached client on its way to a shim: the daemon's duplicate of its socket, owned by this object."""

    __slots__ = ("number", "sock", "wire")
    _numbers = itertools.count(1)

    def __init__(self, streams: Streams, sock: socket.socket, leftover: bytes, *, tty: bool) -> None:
        """Invalid for detach keys that are none and for too many bytes sent ahead; the socket stays the caller's."""
        if len(leftover) > MAX_LEFTOVER:
            raise Invalid(f"{len(leftover)} bytes were sent ahead of the upgrade, at most {MAX_LEFTOVER} can be kept")
        self.number = next(Client._numbers)
        self.wire: StreamsWire = {
            "client": self.number,
            "stdin": streams.stdin,
            "stdout": streams.stdout,
            "stderr": streams.stderr,
            "mux": streams.multiplexed and not tty,
            # Without a terminal the keys are data like any other.
            "detach_keys": detach_sequence(streams.detach_keys) if tty else [],
            "leftover": leftover.decode("latin-1"),
        }
        self.sock = sock

    def close(self) -> None:
        self.sock.close()


def detach_sequence(keys: str) -> list[int]:
    """The codes of "ctrl-p,ctrl-q": [16, 17]; "" is Docker's default. Invalid with Docker's text for what is no key."""
    codes = []
    for key in (keys or DETACH_DEFAULT).split(","):
        name = key.lower()
        if len(key) == 1 and key.isascii():
            codes.append(ord(key))
        elif len(name) == 6 and name.startswith("ctrl-") and name[5] in "@abcdefghijklmnopqrstuvwxyz[\\]^_":
            codes.append(ord(name[5].upper()) - 64)
        else:
            raise Invalid(f"Invalid detach keys ({keys}) provided")
    return codes


class Wire:
    """A non-blocking channel in the loop: frames in go to `receive`, the end of the stream to `lost`, once."""

    def __init__(
        self, sock: socket.socket, receive: Callable[[dict[str, Any], list[int]], None], lost: Callable[[], None]
    ) -> None:
        sock.setblocking(False)
        self._channel = Channel(sock)
        self._receive, self._lost = receive, lost
        self._loop = asyncio.get_running_loop()
        self._sending = asyncio.Lock()
        self._open = True
        self._loop.add_reader(self._channel.fileno(), self._readable)

    async def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """One frame, in the order of the calls; waits while the socket is full. Lost if the other side is gone."""
        async with self._sending:
            while self._open:
                try:
                    return self._channel.send(message, fds)
                except BlockingIOError:
                    await self._writable()
                except (BrokenPipeError, ConnectionResetError):
                    break
        raise Lost("the connection is closed")

    def close(self) -> None:
        """Forget the other side; `lost` is not called."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._channel.fileno())
            self._loop.remove_writer(self._channel.fileno())
            self._channel.close()

    async def _writable(self) -> None:
        ready = self._loop.create_future()
        self._loop.add_writer(self._channel.fileno(), _settle, ready, None)
        try:
            await asyncio.wait_for(ready, ANSWER_S)
        except TimeoutError:
            raise Unavailable(f"the other side took nothing for {ANSWER_S:.0f} s") from None
        finally:
            if self._open:
                self._loop.remove_writer(self._channel.fileno())

    def _readable(self) -> None:
        while self._open:
            try:
                frame = self._channel.recv()
            except BlockingIOError:
                return
            except ValueError as error:
                log.warning("frame dropped: %s", error)
                continue
            except OSError as error:
                log.warning("receive: %s", error)
                frame = None
            if frame is None:
                self.close()
                self._lost()
                return
            self._receive(*frame)


class Shim:
    """One live process, a container's first or an exec's, through the control channel of its shim."""

    def __init__(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[int] = loop.create_future()
        """The pid of the process that waits for Go."""
        self.started: asyncio.Future[Started] = loop.create_future()
        """Failed as exception if execve, or a step before it, did not work."""
        self.exited: asyncio.Future[Exited] = loop.create_future()
        """Lost as exception if the shim died before it could say."""
        self._news: Callable[[str], None] | None = None
        self._unheard: list[str] = []
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)
        self.closed: asyncio.Future[None] = loop.create_future()
        """The connection is over: the shim has cleaned up, or is dead."""
        pending: list[asyncio.Future[Any]] = [self.ready, self.started, self.exited]
        for future in pending:
            # Nobody need wait for each of them: an unread failure is no news for the loop's exception handler.
            future.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._wire = Wire(sock, self._receive, self._end)

    def listen(self, news: Callable[[str], None]) -> None:
        """`news("oom")` and `news("detached")` from now on, and for what came since Started."""
        self._news = news
        unheard, self._unheard = self._unheard, []
        for each in unheard:
            news(each)

    async def go(self) -> Started:
        """Let the process run; returns when execve succeeded. Failed, Lost, Unavailable after 10 s."""
        await self._wire.send({"type": "go"})
        return await _within(self.started, "start the process")

    async def attach(self, client: Client) -> None:
        """Hand a client over; its socket is closed here in any case."""
        try:
            await self.request("attach", fds=[client.sock.fileno()], streams=client.wire)
        finally:
            client.close()

    async def resize(self, rows: int, columns: int) -> None:
        await self.request("resize", rows=rows, columns=columns)

    async def kill(self, signal: int) -> None:
        """ProcessLookupError when the process has ended."""
        await self.request("kill", signal=signal)

    async def freeze(self, on: bool) -> None:
        await self.request("freeze", on=on)

    async def request(self, kind: str, *, fds: Sequence[int] = (), **members: Any) -> dict[str, Any]:
        """Send and await the answer with the same number.

        Unavailable after 10 s, Lost if the shim goes away, OSError with the errno the answer carries.
        """
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._wire.send({"type": kind, "seq": number, **members}, fds)
                message = await answer
        except TimeoutError:
            raise Unavailable(f"{kind}: the container's shim did not answer within {ANSWER_S:.0f} s") from None
        finally:
            del self._answers[number]
        if message.get("type") == "error":
            code, text = message.get("errno"), str(message.get("message", "refused"))
            raise OSError(code, text) if code and isinstance(code, int) else Unavailable(f"{kind}: {text}")
        return message

    def close(self) -> None:
        """Drop the connection. Before Go the shim then kills its process and leaves; afterwards it carries on."""
        self._wire.close()
        self._end()

    def _receive(self, message: dict[str, Any], fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        try:
            self._dispatch(message)
        except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
            log.warning("message of a shim dropped: %s: %r", error, message)

    def _dispatch(self, message: dict[str, Any]) -> None:
        match message.get("type"):
            case "ready":
                _settle(self.ready, int(message["pid"]))
            case "started":
                started = msgspec.convert(message, Started)
                _settle(self.ready, started.pid)  # an exec has no Go, and so no Ready
                _settle(self.started, started)
            case "failed":
                failure = Failed(
                    str(message.get("step", "")),
                    int(message.get("errno") or 0),
                    str(message.get("path") or ""),
                    str(message.get("message") or ""),
                )
                _settle(self.ready, failure)
                _settle(self.started, failure)
            case "exited":
                _settle(self.exited, msgspec.convert(message, Exited))
            case "oom" | "detached" as news:
                if self._news is None:
                    self._unheard.append(news)
                else:
                    self._news(news)
            case "ok" | "error" | "state":
                answer = self._answers.get(message.get("seq", 0))
                if answer is not None:
                    _settle(answer, message)

    def _end(self) -> None:
        gone = Lost("the container's shim is gone")
        _settle(self.closed, None)
        pending: list[asyncio.Future[Any]] = [self.ready, self.started, self.exited]
        for future in [*pending, *self._answers.values()]:
            _settle(future, gone)


class Zygote:
    """The process that forks shims: started on demand, replaced when it dies."""

    def __init__(self, argv: Sequence[str]) -> None:
        """`argv` without the descriptor's number, which replaces the word "{fd}"."""
        self._argv = argv
        self._wire: Wire | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._starting = asyncio.Lock()

    async def send(self, job: dict[str, Any], fds: Sequence[int]) -> None:
        """Hand over one job. Lost or Unavailable if no zygote can take it."""
        async with self._starting:
            if self._wire is None:
                await self._start()
            wire = self._wire
        if wire is None:
            raise Lost("the zygote is gone")
        await wire.send(job, fds)

    async def start(self) -> None:
        """Warm up before the first job."""
        async with self._starting:
            if self._wire is None:
                await self._start()

    def close(self) -> None:
        """End of file tells the zygote to leave; its shims stay."""
        if self._wire is not None:
            self._wire.close()
        self._gone()

    async def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        with theirs:
            number = theirs.fileno()
            # An empty environment: nothing of the daemon's reaches a container's side (LD_*, PYTHON*, secrets).
            self._process = subprocess.Popen(
                [word.replace("{fd}", str(number)) for word in self._argv],
                pass_fds=(number,),
                env={"LANG": "C"},
                cwd="/",
                stdin=subprocess.DEVNULL,
            )
        self._ready = asyncio.get_running_loop().create_future()
        self._wire = Wire(ours, self._receive, self._gone)
        try:
            await _within(self._ready, "start the zygote")
        except Unavailable:
            self.close()
            raise

    def _receive(self, message: dict[str, Any], fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        if message.get("type") == "ready" and self._ready is not None:
            _settle(self._ready, None)
        elif message.get("type") == "error":
            log.warning("zygote: %s", message.get("message"))

    def _gone(self) -> None:
        self._wire = None
        if self._ready is not None:
            _settle(self._ready, Lost("the zygote ended before it was ready"))
        if self._process is not None:
            # Reap it, which takes no time after SIGKILL: it holds no state.
            self._process.kill()
            self._process.wait()
            self._process = None


class Shims:
    """Starts processes through the zygote, and finds the shims of a former daemon."""

    def __init__(self, argv: Sequence[str] | None = None) -> None:
        """`argv` is another zygote, for tests."""
        package = Path(__file__).resolve().parents[1]
        script = str(package / "runtime" / "zygote.py")
        self.zygote = Zygote(argv or [sys.executable, "-I", "-S", script, "{fd}", str(package.parent)])

    async def run(
        self,
        bundle: Bundle,
        clients: Sequence[Client] = (),
        *,
        connect: Callable[[int], Awaitable[None]] | None = None,
    ) -> tuple[Shim, Started]:
        """Start the container of `bundle`. The clients' sockets are closed here if it worked, else they stay open.

        `connect(pid)` is awaited between Ready and Go, while init does its mounts: the place for the network. Failed
        for what the container's own set-up refused, Unavailable if no zygote or shim could be had.
        """
        run_dir = Path(bundle.run_dir)
        shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.mkdir(mode=0o700, parents=True)
        with open(run_dir / "bundle.json", "wb", opener=_private) as file:
            file.write(msgspec.json.encode(bundle))
        shim = await self._send({"type": "run", "dir": str(run_dir)}, clients)
        try:
            if connect is not None:
                await connect(shim.ready.result())
            started = await shim.go()
        except BaseException:
            shim.close()
            raise
        for client in clients:
            client.close()
        return shim, started

    async def exec(self, run_dir: str, process: dict[str, Any], clients: Sequence[Client] = ()) -> tuple[Shim, Started]:
        """Start one more process in the container of `run_dir`; `process` is EXEC of the protocol. As `run` else."""
        shim = await self._send({"type": "exec", "dir": run_dir, "process": process}, clients)
        try:
            started = await _within(shim.started, "start the process")
        except BaseException:
            shim.close()
            raise
        for client in clients:
            client.close()
        return shim, started

    async def connect(self, run_dir: str) -> tuple[Shim, dict[str, Any]] | None:
        """The shim that a former daemon started, with its State; None if nobody answers."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        sock.setblocking(False)
        try:
            # By descriptor: a run directory's path may exceed the 107 bytes of sun_path (unix(7)).
            fd = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sock.connect(f"/proc/self/fd/{fd}/shim.sock")
            finally:
                os.close(fd)
        except OSError:
            sock.close()
            return None
        shim = Shim(sock)
        try:
            return shim, await shim.request("state")
        except (Unavailable, OSError):
            shim.close()
            return None

    def close(self) -> None:
        self.zygote.close()

    async def _send(self, job: dict[str, Any], clients: Sequence[Client]) -> Shim:
        """A process of its own for the job, ready for Go.

        One retry: a zygote that died is replaced, and of a job that was never ready nothing runs.
        """
        job = {**job, "attach": [client.wire for client in clients]}
        try:
            encode(job)
        except ValueError:
            raise Invalid(f"arguments and environment exceed the {MAX_FRAME} bytes of one request") from None
        for last in (False, True):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            shim, sent = Shim(ours), False
            try:
                with theirs:
                    await self.zygote.send(job, [theirs.fileno(), *(client.sock.fileno() for client in clients)])
                sent = True
                await _within(shim.ready, "prepare the process")
                return shim
            except Lost as error:
                shim.close()
                # An exec says nothing before it runs: repeated, the user's command might run twice.
                if last or (sent and job["type"] == "exec"):
                    raise Unavailable(f"cannot start a process: {error}") from None
                log.warning("start repeated: %s", error)
                # A starter that was killed half-way has made its socket; a cgroup is simply used again.
                if job["type"] == "run":
                    Path(job["dir"], "shim.sock").unlink(missing_ok=True)
            except BaseException:
                shim.close()
                raise
        raise Unavailable("cannot start a process")


def exit_record(run_dir: str | Path) -> Exited | None:
    """What the shim wrote when the container ended; None if there is no such file or it is torn."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode((Path(run_dir) / "exit").read_bytes(), type=Exited)
    return None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o600)


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        if isinstance(value, BaseException):
            future.set_exception(value)
        else:
            future.set_result(value)


async def _within(future: asyncio.Future[T], act: str) -> T:
    """The future's outcome, Unavailable after ANSWER_S."""
    try:
        return await asyncio.wait_for(asyncio.shield(future), ANSWER_S)
    except TimeoutError:
        raise Unavailable(f"cannot {act}: no answer within {ANSWER_S:.0f} s") from None
