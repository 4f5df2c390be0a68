"""Start the daemon when root asks for something and nobody listens on the default socket.

One line on stderr says so. Two clients at once start one daemon: a lock file is held until it answers.
The daemon gets a clean environment, its own session, no terminal, and a log file instead of stdout and stderr.
"""

from __future__ import annotations

import os
import time

from tare.cli import terminal
from tare.cli.endpoint import ConnectError
from tare.cli.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.endpoint import Endpoint

__all__ = ["LOG", "Starter", "wanted"]

LOG = "/var/log/tared.log"
LOCK = "/run/tare-autostart.lock"
ANSWER_S = 20.0
TAIL_LINES = 15
TAIL_BYTES = 8 << 10
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KEPT = ("LANG", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
DEFAULT_AGAIN = (1, 2, 3, 13, 15)
"""HUP, INT, QUIT, PIPE, TERM: Python ignores PIPE, and what is ignored stays so across execve."""


def wanted(endpoint: Endpoint, *, refused: bool) -> bool:
    """Whether a daemon may be started at all: root, default socket, not switched off."""
    return not refused and not endpoint.chosen and os.geteuid() == 0 and os.environ.get("TARE_NO_AUTOSTART") != "1"


class Starter:
    """Starts `tared` for one endpoint; the paths are parameters for the tests."""

    def __init__(self, endpoint: Endpoint, script: str, *, log: str = LOG, lock: str = LOCK) -> None:
        self.endpoint = endpoint
        self.script = script
        self.log = log
        self.lock = lock

    def __call__(self) -> bool:
        """True when a daemon answers. Raises Failure with the tail of its log when it does not."""
        import fcntl

        fd = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not self._listens():
                self._start()
        finally:
            os.close(fd)
        return True

    def program(self) -> str:
        """`tared` beside the command itself, else on PATH."""
        folders = [os.path.dirname(os.path.realpath(self.script))]
        folders += [folder for folder in os.environ.get("PATH", PATH).split(":") if folder.startswith("/")]
        for folder in folders:
            path = os.path.join(folder, "tared")
            if os.access(path, os.X_OK):
                return path
        raise Failure(f"cannot start the daemon: no tared in {folders[0]} or on PATH")

    def _listens(self) -> bool:
        try:
            self.endpoint.connect().close()
        except ConnectError:
            return False
        return True

    def _start(self) -> None:
        program = self.program()
        environment = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("TARE_")}
        environment["PATH"] = PATH
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            begin = os.fstat(log).st_size
            pid = os.posix_spawn(
                program,
                [program],
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
                setsid=True,
                setsigdef=DEFAULT_AGAIN,
            )
        except OSError as error:
            raise Failure(f"cannot start the daemon: {program}: {error.strerror}") from None
        finally:
            os.close(log)
        terminal.err(
            f"tare: started the daemon (tared, pid {pid}); --no-autostart or TARE_NO_AUTOSTART=1 turns this off\n"
        )
        self._until_it_answers(pid, begin)

    def _until_it_answers(self, pid: int, begin: int) -> None:
        end = time.monotonic() + ANSWER_S
        pause = 0.005
        while not self._answers():
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                code = os.waitstatus_to_exitcode(status)
                how = f"ended with status {code}" if code >= 0 else f"was killed by signal {-code}"
                raise Failure(f"the daemon {how} before it answered{self._tail(begin)}")
            if time.monotonic() > end:
                raise Failure(f"the daemon does not answer after {ANSWER_S:.0f} s{self._tail(begin)}")
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    def _answers(self) -> bool:
        from tare.cli.client import Client

        client = Client(self.endpoint)
        try:
            return client.request("GET", "/_ping").read() == b"OK"
        except Failure:
            return False
        finally:
            client.close()

    def _tail(self, begin: int) -> str:
        """The last lines it wrote since `begin`."""
        try:
            with open(self.log, "rb") as file:
                file.seek(max(begin, os.fstat(file.fileno()).st_size - TAIL_BYTES))
                lines = file.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
        except OSError:
            lines = []
        if not lines:
            return f" (nothing in {self.log})"
        return f"; the end of {self.log}:\n" + "\n".join("  " + line for line in lines)
