"""start, stop, restart, kill, rm, pause, unpause, wait, rename: one request per container.

Requests to many containers go out together on connections of their own (50 at a time); replies are told in the order
of the command line, as Docker does.
"""

from __future__ import annotations

from tare.cli import terminal
from tare.cli.attach import attach_path
from tare.cli.client import ApiError, escaped, query
from tare.cli.failure import Failure
from tare.cli.options import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tare.cli.client import Client
    from tare.cli.main import Call

__all__ = ["kill", "pause", "remove", "rename", "restart", "start", "stop", "unpause", "wait"]

AT_ONCE = 50
MANY = "[OPTIONS] CONTAINER [CONTAINER...]"
STOP_ROWS = (
    ("signal", "s", "string", "", "Signal to send to the container"),
    ("time", "", "int", "", ""),
    ("timeout", "t", "int", "", "Seconds until the container is killed"),
)
TIME = {"time": "use --timeout instead"}


def _many(verb: str, usage: str = MANY, rows: Sequence[tuple[str, str, str, str, str]] = (), also: str = "") -> Command:
    aliases = f"tare container {verb}, {also}tare {verb}"
    return Command(usage, rows, least=1, aliases=aliases, deprecated=TIME if rows is STOP_ROWS else None)


START = _many(
    "start",
    rows=(
        ("attach", "a", "bool", "", "Attach STDOUT/STDERR and pass signals on"),
        ("detach-keys", "", "string", "", "Keys that detach from the container"),
        ("interactive", "i", "bool", "", "Attach the container's STDIN"),
    ),
)
STOP = _many("stop", rows=STOP_ROWS)
RESTART = _many("restart", rows=STOP_ROWS)
KILL = _many("kill", rows=(("signal", "s", "string", "", "Signal to send to the container"),))
REMOVE = _many(
    "rm",
    rows=(
        ("force", "f", "bool", "", "Remove a running container too (uses SIGKILL)"),
        ("link", "l", "bool", "", "Remove the link"),
        ("volumes", "v", "bool", "", "Remove the container's anonymous volumes"),
    ),
    also="tare container remove, ",
)
PAUSE = _many("pause", "CONTAINER [CONTAINER...]")
UNPAUSE = _many("unpause", "CONTAINER [CONTAINER...]")
WAIT = _many("wait", "CONTAINER [CONTAINER...]")
RENAME = Command("CONTAINER NEW_NAME", least=2, most=2, aliases="tare container rename, tare rename")


def _path(name: str, rest: str = "") -> str:
    """A leading slash (Names of the API has one) is dropped, any other is escaped."""
    name = name.removeprefix("/")
    if not name:
        raise Failure("invalid container name or ID: value is empty")
    return f"/containers/{escaped(name)}{rest}"


def _each(
    client: Client,
    names: Sequence[str],
    request: Callable[[str], tuple[str, str]],
    *,
    missing_is_fine: bool = False,
) -> int:
    """Send `request(name)` (method, path) for all names; print each name that went well. 1 if one did not."""
    failed = False
    for first in range(0, len(names), AT_ONCE):
        batch = names[first : first + AT_ONCE]
        targets = [request(name) for name in batch]
        connections = [client.send(*target) for target in targets]
        for name, connection in zip(batch, connections, strict=True):
            try:
                connection.reply().check().read()
            except Failure as error:
                terminal.err(terminal.printable(str(error)) + "\n")
                missing = isinstance(error, ApiError) and error.code == 404
                failed = failed or not (missing and missing_is_fine)
                continue
            terminal.out(name + "\n")
    return 1 if failed else 0


def _stopping(call: Call, command: Command, verb: str) -> int:
    flags = call.parse(command)
    if flags.given("time") and flags.given("timeout"):
        raise Failure("conflicting options: cannot specify both --timeout and --time")
    timeout = flags.values.get("timeout", flags.values.get("time"))
    fields = query(signal=flags.text("signal") or None, t=timeout)
    return _each(call.client, flags.words, lambda name: ("POST", _path(name, f"/{verb}{fields}")))


def stop(call: Call) -> int:
    return _stopping(call, STOP, "stop")


def restart(call: Call) -> int:
    return _stopping(call, RESTART, "restart")


def kill(call: Call) -> int:
    flags = call.parse(KILL)
    fields = query(signal=flags.text("signal") or None)
    return _each(call.client, flags.words, lambda name: ("POST", _path(name, f"/kill{fields}")))


def remove(call: Call) -> int:
    """With --force a container that is not there is told, but no failure."""
    flags = call.parse(REMOVE)
    fields = query(
        force=1 if flags.on("force") else None,
        link=1 if flags.on("link") else None,
        v=1 if flags.on("volumes") else None,
    )
    return _each(
        call.client, flags.words, lambda name: ("DELETE", _path(name, fields)), missing_is_fine=flags.on("force")
    )


def pause(call: Call) -> int:
    flags = call.parse(PAUSE)
    return _each(call.client, flags.words, lambda name: ("POST", _path(name, "/pause")))


def unpause(call: Call) -> int:
    flags = call.parse(UNPAUSE)
    return _each(call.client, flags.words, lambda name: ("POST", _path(name, "/unpause")))


def wait(call: Call) -> int:
    """Prints each container's exit code."""
    flags = call.parse(WAIT)
    failed = False
    for name in flags.words:
        try:
            answer = call.client.request("POST", _path(name, "/wait")).document()
        except ApiError as error:
            terminal.err(terminal.printable(str(error)) + "\n")
            failed = True
            continue
        terminal.out(f"{int(answer['StatusCode'])}\n")
    return 1 if failed else 0


def rename(call: Call) -> int:
    flags = call.parse(RENAME)
    old, new = flags.words
    try:
        call.client.post(_path(old, "/rename" + query(name=new)))
    except ApiError as error:
        raise Failure(f"{error}\nError: failed to rename container named {old}") from None
    return 0


def start(call: Call) -> int:
    flags = call.parse(START)
    if flags.on("attach") or flags.on("interactive"):
        if len(flags.words) > 1:
            raise Failure("you cannot start and attach multiple containers at once")
        return _start_attached(call, flags.words[0], stdin=flags.on("interactive"), flag=flags.text("detach-keys"))
    failed = []
    for name in flags.words:
        try:
            call.client.post(_path(name, "/start"))
        except ApiError as error:
            terminal.err(terminal.printable(str(error)) + "\n")
            failed.append(name)
        else:
            terminal.out(name + "\n")
    if failed:
        terminal.err(terminal.printable(f"Error: failed to start containers: {', '.join(failed)}") + "\n")
    return 1 if failed else 0


def _start_attached(call: Call, name: str, *, stdin: bool, flag: str) -> int:
    from tare.cli.session import Session, chosen_keys
    from tare.cli.streams import Detach

    keys = chosen_keys(flag, call.settings.text("config"))
    client = call.client
    found = client.get(_path(name, "/json"))
    identity = escaped(found["Id"])
    tty = bool(found["Config"]["Tty"])
    stdin = stdin and bool(found["Config"]["OpenStdin"])
    removed = bool(found["HostConfig"]["AutoRemove"])
    with Session(
        client,
        tty=tty,
        stdin=stdin,
        stdout=True,
        stderr=True,
        keys=keys,
        kill="" if tty else f"/containers/{identity}/kill",
        resize=f"/containers/{identity}/resize",
    ) as session:
        stream = client.hijack(attach_path(identity, stdin=stdin, keys=keys))
        condition = "removed" if removed else "next-exit"
        waiting = client.send("POST", f"/containers/{identity}/wait?condition={condition}", fresh=True)
        client.opened(stream)
        reply = waiting.reply().check()
        try:
            client.post(f"/containers/{identity}/start")
        except Failure:
            session.restore()
            if removed:
                session.until_removed(reply)
            raise
        session.expect(reply, f"/containers/{identity}/wait" + ("?condition=removed" if removed else ""))
        try:
            session.copy(stream)
        except Detach:
            return 0
        return session.exit_status()
