"""Copy between the user's descriptors and one hijacked connection: one poll(2) loop, nothing that blocks.

    stdin  -> connection   half-closed at the end of stdin; a detach sequence ends the loop
    connection -> stdout, stderr   raw (tty) or in frames of 8 bytes head: stream 0..3, 3 zeros, length big-endian

Neither direction waits for the other: a container that reads nothing while it writes much must not lock up.
Payload is passed on in the pieces in which it arrives; a frame is never held whole, so its length needs no cap.
"""

from __future__ import annotations

import os
import select
import time
from _socket import MSG_DONTWAIT, SHUT_WR

from tare.cli.client import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tare.cli.client import Connection
    from tare.cli.signals import Signals

__all__ = ["DEFAULT_KEYS", "Demultiplexer", "Detach", "Duplex", "Escape", "copy_frames", "detach_keys"]

READ_SIZE = 64 << 10
PIPE_BUF = 4096
"""What a pipe that poll(2) calls writable takes without blocking (pipe(7))."""
HEAD = 8
ERROR_LIMIT = 64 << 10
DEFAULT_KEYS = b"\x10\x11"
NAMED_KEYS = {"ctrl-@": 0, "ctrl-[": 27, "ctrl-\\": 28, "ctrl-]": 29, "ctrl-^": 30, "ctrl-_": 31, "DEL": 127}
TICK_MS = 30


class Detach(Exception):
    """The user typed the detach sequence."""


def detach_keys(text: str) -> bytes:
    """"ctrl-p,ctrl-q" or "a,b" -> bytes. Raises ValueError with Docker's words (moby/term ascii.go)."""
    keys = bytearray()
    for part in text.split(","):
        if len(part) == 1 and part.isascii():
            keys.append(ord(part))
        elif part in NAMED_KEYS:
            keys.append(NAMED_KEYS[part])
        elif len(part) == 6 and part.startswith("ctrl-") and "a" <= part[5] <= "z":
            keys.append(ord(part[5]) - ord("a") + 1)
        else:
            raise ValueError(f"Unknown character: '{part}'")
    return bytes(keys)


class Escape:
    """Finds `keys` in what is typed. Typed keys that may be their beginning are held back until that is decided."""

    def __init__(self, keys: bytes) -> None:
        self.keys = keys
        self.held = b""

    def feed(self, data: bytes) -> bytes:
        """What may be passed on. Raises Detach when the sequence is complete; what stood before it is lost."""
        data = self.held + data
        if self.keys in data:
            raise Detach
        for length in range(min(len(self.keys) - 1, len(data)), 0, -1):
            if data.endswith(self.keys[:length]):
                self.held = data[-length:]
                return data[:-length]
        self.held = b""
        return data


class Demultiplexer:
    """Splits a framed stream. `targets`: stream number -> descriptor, None = drop."""

    def __init__(self, targets: dict[int, int | None]) -> None:
        self.targets = targets
        self._head = b""
        self._left = 0
        self._stream = 0
        self._error = b""

    def feed(self, data: bytes) -> list[tuple[int, memoryview]]:
        """(descriptor, payload) pieces of `data`. Raises ProtocolError for a wrong frame or a daemon's error frame."""
        out: list[tuple[int, memoryview]] = []
        view = memoryview(data)
        while view:
            if not self._left:
                wanted = HEAD - len(self._head)
                self._head += bytes(view[:wanted])
                view = view[wanted:]
                if len(self._head) == HEAD:
                    self._begin()
                continue
            piece, view = view[: self._left], view[self._left :]
            self._left -= len(piece)
            target = self.targets.get(self._stream)
            if self._stream == 3:
                self._error = (self._error + bytes(piece))[:ERROR_LIMIT]
                if not self._left:
                    raise ProtocolError("error from daemon in stream: " + self._error.decode("utf-8", "replace"))
            elif target is not None:
                out.append((target, piece))
        return out

    def _begin(self) -> None:
        self._stream = self._head[0]
        if self._stream > 3:
            raise ProtocolError(f"unrecognized input header: {self._stream}")
        self._left = int.from_bytes(self._head[4:], "big")
        self._head = b""

    @property
    def whole(self) -> bool:
        """Whether the stream may end here: not inside a frame."""
        return not self._left and not self._head


class Duplex:
    """One attached session's copying. `stdin`/`stdout`/`stderr` are descriptors or None for "not attached".

    `wake` is called when signals are queued, `news` when the connection `watched` returns has something to read; a
    True from `news` ends the loop if no output is attached. `tick`, when set, is called about every 30 ms until it
    returns False.
    """

    def __init__(
        self,
        connection: Connection,
        signals: Signals,
        wake: Callable[[], None],
        *,
        stdin: int | None,
        stdout: int | None,
        stderr: int | None,
        framed: bool,
        escape: Escape | None = None,
        watched: Callable[[], Connection | None] = lambda: None,
        news: Callable[[], bool] = bool,
    ) -> None:
        self.connection = connection
        self.sock = connection.sock
        self.signals = signals
        self.wake = wake
        self.stdin = stdin
        self.stdout = stdout
        self.escape = escape
        self.watched = watched
        self.news = news
        self.silent = stdout is None and stderr is None
        self.frames = Demultiplexer({0: stdout, 1: stdout, 2: stderr}) if framed else None
        self.tick: Callable[[], bool] | None = None
        self._last_tick = 0.0
        self._to_container = b""
        self._to_user: list[tuple[int, memoryview]] = []
        self._ended = False
        self._half_closed = False
        self._hidden: Callable[[], bool] = getattr(self.sock, "pending", bool)
        """Whether TLS holds bytes that poll does not show; a plain socket never does."""
        self._poll = select.poll()
        self._interest: dict[int, int] = {}
        self._whole_writes = frozenset(fd for fd in (stdout, stderr) if fd is not None and _is_file(fd))

    def run(self) -> None:
        """Until the connection ends and everything is written. Raises Detach, ProtocolError, OSError (user's side)."""
        first, self.connection.buffer = self.connection.buffer, b""
        self._output(first)
        while not self._ended or self._to_user:
            self._watch()
            events = dict(self._poll.poll(TICK_MS if self.tick is not None else None))
            if self.tick is not None:
                self._tick()
            if self.signals.fd in events:
                self.wake()
            if self._to_user and self._to_user[0][0] in events:
                self._write_user()
            ready = events.get(self.sock.fileno(), 0)
            if ready & select.POLLOUT:
                self._write_container()
            if ready & ~select.POLLOUT and not self._to_user and not self._ended:
                self._receive()
            if self.stdin is not None and self.stdin in events and not self._to_container:
                self._read_user()
            watched = self.watched()
            if watched is not None and watched.sock.fileno() in events and self.news() and self.silent:
                return

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._last_tick >= TICK_MS / 1000:
            self._last_tick = now
            if self.tick is not None and not self.tick():
                self.tick = None

    def _watch(self) -> None:
        """Tell poll what is wanted now: one side is read only while what it gave last is written."""
        wanted = {self.signals.fd: select.POLLIN}
        if self._to_user:
            wanted[self._to_user[0][0]] = select.POLLOUT
        elif not self._ended:
            wanted[self.sock.fileno()] = select.POLLIN
        if self._to_container and not self._ended:
            wanted[self.sock.fileno()] = wanted.get(self.sock.fileno(), 0) | select.POLLOUT
        elif self.stdin is not None and not self._ended:
            wanted[self.stdin] = wanted.get(self.stdin, 0) | select.POLLIN
        watched = self.watched()
        if watched is not None:
            wanted[watched.sock.fileno()] = select.POLLIN
        if wanted != self._interest:
            for fd in self._interest.keys() - wanted.keys():
                self._poll.unregister(fd)
            for fd, events in wanted.items():
                self._poll.register(fd, events)
            self._interest = wanted

    def _receive(self) -> None:
        more = True
        while more:
            try:
                data = self.sock.recv(READ_SIZE, MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._ended = True
                if self.frames is not None and not self.frames.whole:
                    raise ProtocolError("unexpected EOF")
                return
            self._output(data)
            more = self._hidden()

    def _output(self, data: bytes) -> None:
        if not data:
            return
        if self.frames is not None:
            self._to_user.extend(self.frames.feed(data))
        elif self.stdout is not None:
            self._to_user.append((self.stdout, memoryview(data)))

    def _write_user(self) -> None:
        fd, data = self._to_user[0]
        try:
            data = data[os.write(fd, data if fd in self._whole_writes else data[:PIPE_BUF]) :]
        except BlockingIOError:
            return
        if data:
            self._to_user[0] = (fd, data)
        else:
            del self._to_user[0]

    def _read_user(self) -> None:
        assert self.stdin is not None
        try:
            data = os.read(self.stdin, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            # EIO: the terminal hung up; EBADF: stdin was closed before we started. Both are its end.
            data = b""
        if not data and self.escape is not None and self.escape.held:
            self._to_container, self.escape.held = self.escape.held, b""
            return
        if not data:
            self.stdin = None
            self._half_close()
            return
        self._to_container = self.escape.feed(data) if self.escape is not None else data

    def _write_container(self) -> None:
        try:
            sent = self.sock.send(self._to_container, MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            # The container's side takes no more input; its output may still come.
            self.stdin, self._to_container = None, b""
            return
        self._to_container = self._to_container[sent:]

    def _half_close(self) -> None:
        if self._half_closed:
            return
        self._half_closed = True
        try:
            self.sock.shutdown(SHUT_WR)
        except OSError:
            pass


def _is_file(fd: int) -> bool:
    try:
        return os.fstat(fd).st_mode & 0o170000 == 0o100000
    except OSError:
        return False


def copy_frames(chunks: Iterable[bytes], *, stdout: int = 1, stderr: int = 2) -> None:
    """Write a framed stream that is only read (logs) to two descriptors, blocking."""
    frames = Demultiplexer({0: stdout, 1: stdout, 2: stderr})
    for chunk in chunks:
        for fd, data in frames.feed(chunk):
            while data:
                data = data[os.write(fd, data) :]
