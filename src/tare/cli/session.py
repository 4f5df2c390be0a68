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


def chosen_keys(flag: str, environment_file: str = "") -> str:
    """--detach-keys, else detachKeys of Docker's config.json, checked. Raises Failure."""
    keys = flag or _configured(environment_file)
    if keys:
        try:
            detach_keys(keys)
        except ValueError as error:
            raise Failure(f"invalid detach keys ({keys}): {error}") from None
    return keys


def _configured(path: str) -> str:
    folder = os.environ.get("DOCKER_CONFIG") or os.path.join(os.environ.get("HOME", "/"), ".docker")
    try:
        with open(path or os.path.join(folder, "config.json"), "rb") as file:
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

    def copy(self, connection: Connection, until: Connection | None = None) -> None:
        """Until the container's output ends (or `until` has news and no output is attached). Raises Detach."""
        duplex = Duplex(
            connection,
            self.signals,
            self._wake,
            stdin=STDIN if self.stdin else None,
            stdout=STDOUT if self.stdout or (self.tty and self.stderr) else None,
            stderr=(STDOUT if self.tty else STDERR) if self.stderr else None,
            framed=not self.tty,
            escape=Escape(self.keys) if self.tty and self.stdin else None,
            until=until,
        )
        if self.resize_path and not self.resize():
            self._tries = RESIZE_TRIES
            duplex.retry = self._resize_again
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

    def _resize_again(self) -> bool:
        """A retry of the first resize, which may come before the terminal exists. True = try once more."""
        self._tries -= 1
        return not self.resize() and self._tries > 0

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

    def exit_status(self, reply: Reply, identity: str) -> int:
        """The code out of the reply of wait. If the daemon died meanwhile its successor is asked."""
        try:
            self.until_readable(reply.connection)
            return _status(reply.document())
        except ProtocolError:
            return self._status_later(identity)

    def _status_later(self, identity: str) -> int:
        end = time.monotonic() + RECONNECT_S
        while True:
            try:
                connection = self.client.send("POST", f"/containers/{identity}/wait", fresh=True)
                self.until_readable(connection)
                return _status(connection.reply().check().document())
            except ApiError as error:
                raise Failure(f"error waiting for container: {error.message}", 125) from None
            except (ConnectError, ProtocolError):
                if time.monotonic() > end:
                    raise Failure("error waiting for container: unexpected EOF", 125) from None
                self.pause(0.1)


def _status(answer: Any) -> int:
    if not isinstance(answer, dict):
        raise Failure("error waiting for container: no status in the daemon's reply", 125)
    problem = answer.get("Error")
    if problem and problem.get("Message"):
        raise Failure(f"Error waiting for container: {problem['Message']}", 125)
    return int(answer.get("StatusCode", 125))
