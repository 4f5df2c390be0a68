"""Standard streams of one process: from its pipes or pty to the log and to attached clients, and back.

Straight and non-blocking on one epoll. What a client cannot take yet is kept, up to _BACKLOG bytes; beyond that the
process's output is not read until the client has caught up (a pipe's own flow control, as with Docker). Frames of
Docker's stdcopy format: stream number, three zero bytes, length big-endian.
"""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import suppress
from struct import pack

from tare.jsonlog import NoLog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Client", "Streams"]

_BACKLOG = 1 << 20
_CHUNK = 64 * 1024


class Client:
    """One attached client, from a STREAMS message (runtime/protocol.py); owns its socket."""

    __slots__ = ("_held", "_keys", "eof", "mux", "number", "out", "sock", "stdin", "wants")

    def __init__(self, streams: dict[str, Any], fd: int) -> None:
        self.sock = socket.socket(fileno=fd)
        self.sock.setblocking(False)
        self.number = int(streams["client"])
        self.stdin = bool(streams["stdin"])
        self.wants = (False, bool(streams["stdout"]), bool(streams["stderr"]))
        self.mux = bool(streams["mux"])
        self.out = bytearray()
        self.eof = False
        self._keys = bytes(streams.get("detach_keys") or [])
        self._held = 0

    def frame(self, stream: int, data: bytes) -> None:
        if self.wants[stream]:
            if self.mux:
                self.out += pack(">BxxxI", stream, len(data))
            self.out += data

    def send(self) -> bool:
        """Send what the socket takes; False when the client is gone."""
        try:
            while self.out:
                sent = self.sock.send(memoryview(self.out)[:_CHUNK], socket.MSG_NOSIGNAL)
                del self.out[:sent]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def scan(self, data: bytes) -> tuple[bytes, bool]:
        """Input without the detach sequence, and whether it was complete (then the rest is dropped).

        A started sequence is held back until it is finished or broken, as Docker's escape proxy does.
        """
        if not self._keys:
            return data, False
        result = bytearray()
        for byte in data:
            if byte == self._keys[self._held]:
                self._held += 1
                if self._held == len(self._keys):
                    return bytes(result), True
                continue
            result += self._keys[: self._held]
            self._held = 0
            if byte == self._keys[0]:
                self._held = 1
            else:
                result.append(byte)
        return bytes(result), False


class Streams:
    """The pump. `sources`: {descriptor: stream number 1 or 2}; `stdin`: where input goes, or -1; a pty is both."""

    __slots__ = (
        "_epoll", "_input", "_input_ended", "_paused", "_sources", "_stdin", "_stdin_once", "_tty",
        "clients", "log", "on_detach",
    )  # fmt: skip

    def __init__(
        self,
        epoll: select.epoll,
        log: NoLog,
        *,
        sources: dict[int, int],
        stdin: int,
        stdin_once: bool,
        tty: bool,
    ) -> None:
        self._epoll = epoll
        self.log = log
        self._sources = dict(sources)
        self._stdin = stdin
        self._stdin_once = stdin_once
        self._tty = tty
        self._input = bytearray()
        self._input_ended = False
        self.on_detach: Callable[[int], None] = lambda client: None
        self._paused = False
        self.clients: dict[int, Client] = {}
        for fd in sources:
            os.set_blocking(fd, False)
            epoll.register(fd, select.EPOLLIN)
        if stdin >= 0 and stdin not in sources:
            os.set_blocking(stdin, False)
            epoll.register(stdin, 0)  # error only: the reader closed it

    def attach(self, streams: dict[str, Any], fd: int) -> None:
        """Take over a client's socket; its bytes that the daemon had already read come first."""
        client = Client(streams, fd)
        self.clients[fd] = client
        self._epoll.register(fd, select.EPOLLIN)
        leftover = (streams.get("leftover") or "").encode("latin-1")
        if leftover and client.stdin:
            self._receive(client, leftover)

    def owns(self, fd: int) -> bool:
        return fd in self._sources or fd in self.clients or fd == self._stdin

    def handle(self, fd: int, events: int) -> None:
        """One epoll event of a descriptor that `owns` said yes to."""
        client = self.clients.get(fd)
        if client is not None:
            self._client_event(client, fd, events)
            return
        if fd in self._sources and events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            self._read(fd)
        if fd == self._stdin and self._stdin >= 0:
            if events & select.EPOLLOUT:
                self._write_input()
            elif events & select.EPOLLERR and fd not in self._sources:
                self._close_input()

    def _client_event(self, client: Client, fd: int, events: int) -> None:
        if events & select.EPOLLOUT and not client.send():
            self.drop(fd)
            return
        if events & select.EPOLLIN and not self._input:
            try:
                data = client.sock.recv(_CHUNK)
            except BlockingIOError:
                data = None
            except OSError:
                self.drop(fd)
                return
            if data:
                if client.stdin:
                    self._receive(client, data)
                return
            if data == b"":
                self._half_closed(client, fd)
        if events & select.EPOLLHUP and client.stdin and not client.eof:
            # It left, but its last input is still in the socket: unwatched until the process has taken what is held.
            with suppress(FileNotFoundError):
                self._epoll.unregister(fd)
            return
        if events & (select.EPOLLHUP | select.EPOLLERR):
            self.drop(fd)
            return
        self._interest(client, fd)

    def _half_closed(self, client: Client, fd: int) -> None:
        """The client sends no more; output goes on until it hangs up. Only a stdin-once pipe ends with it."""
        client.eof = True
        if client.stdin and self._stdin_once and not self._tty:
            self._input_ended = True
            if not self._input:
                self._close_input()
        self._interest(client, fd)

    def _receive(self, client: Client, data: bytes) -> None:
        data, detached = client.scan(data)
        if self._stdin >= 0 and data:
            self._input += data
            self._write_input()
        if detached:
            self.on_detach(client.number)
            self.drop(client.sock.fileno())

    def _write_input(self) -> None:
        try:
            while self._input:
                written = os.write(self._stdin, memoryview(self._input)[:_CHUNK])
                del self._input[:written]
        except BlockingIOError:
            pass
        except OSError:  # EPIPE, EIO: nobody reads it any more
            self._input.clear()
            if self._stdin not in self._sources:
                self._close_input()
            return
        if self._input_ended and not self._input:
            self._close_input()
        self._rearm_input()

    def _rearm_input(self) -> None:
        if self._stdin < 0:
            return
        source = self._stdin in self._sources
        wanted = (select.EPOLLIN if source and not self._paused else 0) | (select.EPOLLOUT if self._input else 0)
        self._epoll.modify(self._stdin, wanted)
        for fd, client in self.clients.items():
            self._interest(client, fd)

    def _close_input(self) -> None:
        if self._stdin >= 0 and self._stdin not in self._sources:
            self._epoll.unregister(self._stdin)
            os.close(self._stdin)
        self._stdin = -1

    def _interest(self, client: Client, fd: int) -> None:
        """Input is read only while the process takes it; output only announced when there is some."""
        if fd not in self.clients:
            return
        reads = not self._input and not client.eof
        wanted = (select.EPOLLIN if reads else 0) | (select.EPOLLOUT if client.out else 0)
        try:
            self._epoll.modify(fd, wanted)
        except FileNotFoundError:
            if reads:
                self._epoll.register(fd, wanted)

    def _read(self, fd: int) -> bool:
        """One chunk of output; False at its end."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return True
        except OSError:  # EIO: the last slave of the pty was closed
            data = b""
        if not data:
            self._end(fd)
            return False
        stream = self._sources[fd]
        self.log.write(stream, data)
        for client_fd, client in list(self.clients.items()):
            client.frame(stream, data)
            if not client.send():
                self.drop(client_fd)
            elif client.out:
                self._interest(client, client_fd)
        self._flow()
        return True

    def _end(self, fd: int) -> None:
        if fd in self._sources:
            del self._sources[fd]
            with suppress(FileNotFoundError):
                self._epoll.unregister(fd)
            os.close(fd)
            if fd == self._stdin:
                self._stdin = -1

    def _flow(self) -> None:
        """Stop or resume reading the process by the largest backlog."""
        backlog = max((len(client.out) for client in self.clients.values()), default=0)
        pause = backlog > (_BACKLOG // 2 if self._paused else _BACKLOG)
        if pause != self._paused:
            self._paused = pause
            for fd in self._sources:
                out = select.EPOLLOUT if fd == self._stdin and self._input else 0
                self._epoll.modify(fd, out | (0 if pause else select.EPOLLIN))

    def drop(self, fd: int) -> None:
        """Forget a client."""
        client = self.clients.pop(fd, None)
        if client is not None:
            with suppress(FileNotFoundError):
                self._epoll.unregister(fd)
            client.sock.close()
            self._flow()

    def after(self) -> None:
        """Called once per loop turn: output may flow again after clients took theirs."""
        if self._paused:
            self._flow()

    def drain(self, deadline: float, now: Callable[[], float]) -> None:
        """After the process has ended: read its pipes to their end, or until they are empty after `deadline`."""
        late = 16 * len(self._sources)  # chunks after the deadline: no pipe holds more than 1 MiB (pipe-max-size)
        while self._sources and late:
            over = now() >= deadline
            if self._paused and not over:
                self.flush(0.05)
                continue
            late -= over
            poll = select.poll()
            for fd in self._sources:
                poll.register(fd, select.POLLIN)
            ready = poll.poll(max(0, int((deadline - now()) * 1000)))
            if over and not ready:
                break
            for fd, _ in ready:
                self._read(fd)
        for fd in list(self._sources):
            self._end(fd)
        self.log.close()

    def flush(self, seconds: float) -> bool:
        """Send backlogs for at most `seconds`; True when nothing is left to send."""
        waiting = {fd: c for fd, c in self.clients.items() if c.out}
        if not waiting:
            return True
        ready = select.poll()
        for fd in waiting:
            ready.register(fd, select.POLLOUT)
        for fd, _ in ready.poll(int(seconds * 1000)):
            if not waiting[fd].send():
                self.drop(fd)
        self._flow()
        return not any(client.out for client in self.clients.values())

    def close(self, seconds: float) -> None:
        """End of file for every client: all output was sent. What they still send is read until they hang up too,
        because a socket closed with unread input resets the connection and may take the last output along."""
        ready = select.poll()
        for fd, client in self.clients.items():
            with suppress(OSError):
                client.sock.shutdown(socket.SHUT_WR)
            ready.register(fd, select.POLLIN)
        deadline = time.monotonic() + seconds
        while self.clients and (left := deadline - time.monotonic()) > 0:
            for fd, _ in ready.poll(int(left * 1000)):
                try:
                    ended = not self.clients[fd].sock.recv(_CHUNK)
                except BlockingIOError:
                    continue
                except OSError:
                    ended = True
                if ended:
                    ready.unregister(fd)
                    self.clients.pop(fd).sock.close()
