"""`tare exec`: a further process in a running container."""

from __future__ import annotations

from tare.cli import terminal, values
from tare.cli.attach import ESCAPED
from tare.cli.client import escaped
from tare.cli.failure import Failure
from tare.cli.options import Command
from tare.cli.session import Session, check_terminal, chosen_keys
from tare.cli.streams import Detach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.main import Call
    from tare.cli.options import Flags

__all__ = ["exec_"]

EXEC = Command(
    "[OPTIONS] CONTAINER COMMAND [ARG...]",
    (
        ("detach", "d", "bool", "", "Run the command in the background"),
        ("detach-keys", "", "string", "", "Keys that detach from the container"),
        ("env", "e", "list", "", "Set environment variables"),
        ("env-file", "", "list", "", "Read environment variables from a file"),
        ("interactive", "i", "bool", "", "Keep STDIN open even if not attached"),
        ("privileged", "", "bool", "", "Give the command all rights of the host"),
        ("tty", "t", "bool", "", "Give the command a terminal"),
        ("user", "u", "string", "", 'User name or UID (format: "<name|uid>[:<group|gid>]")'),
        ("workdir", "w", "string", "", "Working directory inside the container"),
    ),
    least=2,
    interspersed=False,
    aliases="tare container exec, tare exec",
    checks={"env": values.environment},
)
POLL_S = 0.01
POLL_LIMIT_S = 0.2


def _request(flags: Flags, keys: str) -> dict[str, Any]:
    detached = flags.on("detach")
    try:
        env = [line for path in flags.many("env-file") for line in values.key_values(path, look_up=True)]
    except ValueError as error:
        raise Failure(str(error)) from None
    return {
        "User": flags.text("user"),
        "Privileged": flags.on("privileged"),
        "Tty": flags.on("tty"),
        "AttachStdin": flags.on("interactive") and not detached,
        "AttachStdout": not detached,
        "AttachStderr": not detached,
        "DetachKeys": keys,
        "Env": env + flags.many("env") or None,
        "WorkingDir": flags.text("workdir"),
        "Cmd": flags.words[1:],
    }


def exec_(call: Call) -> int:
    """The command's exit code; 126 and 127 come from the daemon as exit codes too."""
    flags = call.parse(EXEC)
    keys = chosen_keys(flags.text("detach-keys"), call.settings.text("config"))
    request = _request(flags, keys)
    client = call.client
    name = escaped(flags.words[0])
    tty, stdin = request["Tty"], request["AttachStdin"]
    if tty and stdin and not terminal.is_terminal(0):
        # That the container does not exist is the greater news.
        client.get(f"/containers/{name}/json")
    check_terminal(tty=tty, stdin=stdin)
    start: dict[str, Any] = {"Detach": flags.on("detach"), "Tty": tty}
    if tty:
        request["ConsoleSize"] = start["ConsoleSize"] = list(terminal.size(1))
    identity = escaped(client.request("POST", f"/containers/{name}/exec", request).document()["Id"])
    if flags.on("detach"):
        client.post(f"/exec/{identity}/start", start)
        return 0
    with Session(
        client, tty=tty, stdin=stdin, stdout=True, stderr=True, keys=keys, kill="", resize=f"/exec/{identity}/resize"
    ) as session:
        try:
            session.copy(client.opened(client.hijack(f"/exec/{identity}/start", start)))
        except Detach:
            raise Failure(ESCAPED) from None
        return _exit_code(session, identity)


def _exit_code(session: Session, identity: str) -> int:
    """A process may close its output long before it ends: ask until it has."""
    pause = POLL_S
    while True:
        found = session.client.get(f"/exec/{identity}/json")
        if not found.get("Running"):
            return int(found.get("ExitCode") or 0)
        session.pause(pause)
        pause = min(pause * 2, POLL_LIMIT_S)
