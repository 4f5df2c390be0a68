"""One attached container or exec as the user sees it: raw terminal, signals, window size, copying, the way out.

    with Session(...) as session:      signals are caught, the terminal is raw
        ... start ...
        session.copy(connection)       until the output ends; Detach if the user left
    the terminal is as before, whatever happened inside

`kill` and `resize` are API paths; `kill` "" means that HUP, INT, QUIT and TERM end the client (128 + n) instead of
being passed on.
"""

from __future__ import annotations

import os
import select
import time

from tare.cli import signals, terminal
from tare.cli.client import ApiError, ProtocolError, query
from tare.cli.endpoint import ConnectError
from tare.cli.failure import Failure
from tare.cli.streams import DEFAULT_KEYS, Detach, Duplex, Escape, detach_keys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from tare.cli.client import Client, Connection, Reply

__all__ = ["Session", "check_terminal", "chosen_keys"]

RESIZE_TRIES = 10
RECONNECT_S = 20.0
STDIN, STDOUT, STDERR = 0, 1, 2


def check_terminal(*, tty: bool, stdin: bool) -> None:
    """-t with -i needs a terminal. Raises Failure with Docker's words."""
    if tty and stdin and not terminal.is_terminal(STDIN):
        raise Failure("the input device is not a TTY")


def chosen_keys(flag: str, folder: str) -> str:
    """--detach-keys, else detachKeys of config.json in `folder` ("" = Docker's), checked. Raises Failure."""
    keys = flag or _configured(folder)
    if keys:
        try:
            detach_keys(keys)
        except ValueError as error:
            raise Failure(f"invalid detach keys ({keys}): {error}") from None
    return keys


def _configured(folder: str) -> str:
    folder = folder or os.environ.get("DOCKER_CONFIG") or os.path.join(os.environ.get("HOME", "/"), ".docker")
    try:
        with open(os.path.join(folder, "config.json"), "rb") as file:
            data = file.read()
    except OSError:
        return ""
    from tare.cli.jsontext import loads

    try:
        keys = loads(data).get("detachKeys", "")
    except (ValueError, AttributeError):
        return ""
    return keys if isinstance(keys, str) else ""


class Session:
    """See the module. `stdin`, `stdout`, `stderr` say what is attached."""

    def __init__(
        self, client: Client, *, tty: bool, stdin: bool, stdout: bool, stderr: bool, keys: str, kill: str, resize: str
    ) -> None:
        self.client = client
        self.tty = tty
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.keys = detach_keys(keys) if keys else DEFAULT_KEYS
        self.kill = kill
        self.resize_path = resize if tty and terminal.is_terminal(STDOUT) else ""
        self._raw: terminal.Raw | None = None
        self._tries = 0
        self._duplex: Duplex | None = None
        self._waiting: Reply | None = None
        self._again = ""
        self._answer: Any = None

    def __enter__(self) -> Self:
        caught = signals.FORWARDED if self.kill else signals.ENDING
        self.signals = signals.Signals((*caught, signals.SIGWINCH))
        try:
            if self.tty and self.stdin and terminal.is_terminal(STDIN):
                self._raw = terminal.Raw(STDIN)
        except BaseException:
            self.signals.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.restore()
        self.signals.close()

    def restore(self) -> None:
        """The terminal as it was before."""
        if self._raw is not None:
            self._raw.restore()

    def expect(self, reply: Reply, again: str) -> None:
        """`reply` is that of wait, its head read; `again` the path that asks another daemon for the same."""
        self._waiting = reply
        self._again = again

    def copy(self, connection: Connection) -> None:
        """Until the container's output ends (or the container, if no output is attached). Raises Detach."""
        self._duplex = duplex = Duplex(
            connection,
            self.signals,
            self._wake,
            stdin=STDIN if self.stdin else None,
            stdout=STDOUT if self.stdout or (self.tty and self.stderr) else None,
            stderr=(STDOUT if self.tty else STDERR) if self.stderr else None,
            framed=not self.tty,
            escape=Escape(self.keys) if self.tty and self.stdin else None,
            watched=lambda: self._waiting.connection if self._waiting is not None else None,
            news=self._status_news,
        )
        if self.resize_path and not self.resize():
            self._tries = RESIZE_TRIES
            duplex.tick = self._tick
        try:
            duplex.run()
        except (Detach, Failure, BrokenPipeError):
            raise
        except OSError as error:
            raise Failure(f"write /dev/stdout: {(error.strerror or str(error)).lower()}") from None
        finally:
            self.restore()
            connection.close()

    def resize(self, more: int = 0) -> bool:
        """Tell the daemon the terminal's size, `more` rows and columns added. False if it could not take it."""
        rows, columns = terminal.size(STDOUT)
        if not rows and not columns:
            return True
        try:
            self.client.post(self.resize_path + query(h=rows + more, w=columns + more))
        except Failure:
            return False
        return True

    def _tick(self) -> bool:
        """Repeat the first resize, which may have come before the terminal existed, and a lost wait. True = go on."""
        if self._tries:
            self._tries = 0 if self.resize() else self._tries - 1
        if self._lost:
            self._wait_again()
        return bool(self._tries or self._lost)

    @property
    def _lost(self) -> bool:
        """Whether the status is still owed and nobody is there who will tell it."""
        return self._waiting is None and self._answer is None and bool(self._again)

    def _status_news(self) -> bool:
        """The wait has something to read: the status (True) or the end of the daemon (False)."""
        assert self._waiting is not None
        waiting, self._waiting = self._waiting, None
        try:
            self._answer = waiting.document()
        except ProtocolError:
            waiting.connection.close()
            if self._duplex is not None:
                self._duplex.tick = self._tick
            return False
        return True

    def _wait_again(self) -> None:
        """Ask whether a new daemon is there. Containers survive a daemon, so their client does too."""
        try:
            self._waiting = self.client.send("POST", self._again, fresh=True).reply().check()
        except ApiError as error:
            self._answer = {"Error": {"Message": error.message}}
        except (ConnectError, ProtocolError):
            pass

    def _wake(self) -> None:
        for number in self.signals.take():
            if number == signals.SIGWINCH:
                if self.resize_path:
                    self.resize()
            elif not self.kill:
                raise Failure("", 128 + number)
            else:
                try:
                    self.client.post(self.kill + query(signal=signals.name(number)))
                except Failure:
                    # Not started yet or just gone: there is nobody to tell.
                    pass

    def until_readable(self, connection: Connection) -> None:
        """Wait for news on `connection` while signals are served."""
        if connection.buffer:
            return
        poll = select.poll()
        poll.register(connection.sock.fileno(), select.POLLIN)
        poll.register(self.signals.fd, select.POLLIN)
        while True:
            events = dict(poll.poll())
            if self.signals.fd in events:
                self._wake()
            if connection.sock.fileno() in events:
                return

    def pause(self, seconds: float) -> None:
        """Sleep, but serve signals."""
        poll = select.poll()
        poll.register(self.signals.fd, select.POLLIN)
        if poll.poll(seconds * 1000):
            self._wake()

    def exit_status(self) -> int:
        """The code that wait tells. If the daemon died meanwhile its successor is asked, for 20 s."""
        end = 0.0
        while self._answer is None:
            if self._waiting is not None:
                self.until_readable(self._waiting.connection)
                self._status_news()
                continue
            end = end or time.monotonic() + RECONNECT_S
            self._wait_again()
            if self._lost:
                if time.monotonic() > end:
                    raise Failure("error waiting for container: unexpected EOF", 125)
                self.pause(0.1)
        return _status(self._answer)

    def until_removed(self, reply: Reply) -> None:
        """After a failed start: wait until the --rm container is gone; its status is of no interest."""
        try:
            self.until_readable(reply.connection)
            reply.read()
        except Failure:
            pass


def _status(answer: Any) -> int:
    if not isinstance(answer, dict):
        raise Failure("error waiting for container: no status in the daemon's reply", 125)
    problem = answer.get("Error")
    if problem and problem.get("Message"):
        raise Failure(f"Error waiting for container: {problem['Message']}", 125)
    return int(answer.get("StatusCode", 125))
