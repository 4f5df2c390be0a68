"""`tare attach`: the terminal onto a running container's first process."""

from __future__ import annotations

from tare.cli.client import escaped, query
from tare.cli.failure import Failure
from tare.cli.options import Command
from tare.cli.session import Session, check_terminal, chosen_keys
from tare.cli.streams import Detach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.main import Call

__all__ = ["ESCAPED", "attach", "attach_path"]

ESCAPED = "read escape sequence"
ATTACH = Command(
    "[OPTIONS] CONTAINER",
    (
        ("detach-keys", "", "string", "", "Keys that detach from the container"),
        ("no-stdin", "", "bool", "", "Do not attach STDIN"),
        ("sig-proxy", "", "bool", "true", "Pass received signals on to the process"),
    ),
    least=1,
    most=1,
    aliases="tare container attach, tare attach",
)


def attach_path(identity: str, *, stdin: bool, keys: str) -> str:
    """The request that attaches to everything, stdin if asked for."""
    fields = query(detachKeys=keys or None, stderr=1, stdin=1 if stdin else None, stdout=1, stream=1)
    return f"/containers/{identity}/attach{fields}"


def _check_state(state: dict[str, Any]) -> None:
    if not state.get("Running"):
        raise Failure("cannot attach to a stopped container, start it first")
    if state.get("Paused"):
        raise Failure("cannot attach to a paused container, unpause it first")
    if state.get("Restarting"):
        raise Failure("cannot attach to a restarting container, wait until it is running")


def attach(call: Call) -> int:
    """The container's exit code, 1 after the detach keys."""
    flags = call.parse(ATTACH)
    keys = chosen_keys(flags.text("detach-keys"), call.settings.text("config"))
    client = call.client
    found = client.get(f"/containers/{escaped(flags.words[0])}/json")
    _check_state(found["State"])
    identity = escaped(found["Id"])
    tty = bool(found["Config"]["Tty"])
    check_terminal(tty=tty, stdin=not flags.on("no-stdin"))
    stdin = not flags.on("no-stdin") and bool(found["Config"]["OpenStdin"])
    proxy = not tty and (not flags.given("sig-proxy") or flags.on("sig-proxy"))
    with Session(
        client,
        tty=tty,
        stdin=stdin,
        stdout=True,
        stderr=True,
        keys=keys,
        kill=f"/containers/{identity}/kill" if proxy else "",
        resize=f"/containers/{identity}/resize",
    ) as session:
        # Before attach: a container that ends between the two would leave nothing to wait for.
        again = f"/containers/{identity}/wait"
        session.expect(client.send("POST", again, fresh=True).reply().check(), again)
        stream = client.opened(client.hijack(attach_path(identity, stdin=stdin, keys=keys)))
        _check_state(client.get(f"/containers/{identity}/json")["State"])
        if session.resize_path:
            # A shell draws its prompt again only when the size changes; copy() sends the true one.
            session.resize(more=1)
        try:
            session.copy(stream)
        except Detach:
            raise Failure(ESCAPED) from None
        return session.exit_status()
