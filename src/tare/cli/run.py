"""`tare run` and `tare create`.

create -> attach (hijacked, before start) -> wait (its head read before start) -> start -> copy -> exit status. Attach
and wait are sent together on connections of their own, start goes on the first one: four round trips cost about three.
"""

from __future__ import annotations

import os

from tare.cli import terminal
from tare.cli.client import ApiError, escaped, query
from tare.cli.createbody import body
from tare.cli.createflags import CREATE, RUN
from tare.cli.failure import Failure
from tare.cli.session import Session, check_terminal, chosen_keys
from tare.cli.streams import Detach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.client import Client
    from tare.cli.main import Call
    from tare.cli.options import Flags

__all__ = ["create", "exit_code", "run"]

PULLS = ("always", "missing", "never")
HEX = frozenset("0123456789abcdef")
NOT_FOUND = ("executable file not found", "no such file or directory", "system cannot find the file specified")
NOT_EXECUTABLE = ("permission denied", "is a directory")


def exit_code(message: str) -> int:
    """127, 126 or 125 for a container that could not be started, by Docker's rule on the daemon's words."""
    if any(words in message for words in NOT_FOUND):
        return 127
    return 126 if any(words in message for words in NOT_EXECUTABLE) else 125


def _with_help(text: str, call: Call, status: int) -> Failure:
    return Failure(f"tare: {text}\n\nRun 'tare {call.name} --help' for more information", status)


def _request(call: Call, flags: Flags) -> dict[str, Any]:
    """The body for create. Raises Failure (125)."""
    pull = flags.text("pull", "missing")
    try:
        if pull and pull not in PULLS:
            raise ValueError(f"invalid pull option: '{pull}': must be one of \"always\", \"missing\" or \"never\"")
        return body(flags)
    except ValueError as error:
        raise _with_help(str(error), call, 125) from None


def run(call: Call) -> int:
    """Docker's exit codes: the container's, else 125, 126, 127."""
    flags = call.parse(RUN)
    request = _request(call, flags)
    detached = flags.on("detach")
    if detached:
        if flags.given("attach"):
            raise Failure("conflicting options: cannot specify both --attach and --detach")
        for member in ("AttachStdin", "AttachStdout", "AttachStderr", "StdinOnce"):
            request[member] = False
    else:
        check_terminal(tty=request["Tty"], stdin=request["AttachStdin"])
    keys = chosen_keys(flags.text("detach-keys"), call.settings.text("config"))
    client = call.client
    try:
        identity = _create(client, flags, request)
    except Failure as error:
        raise _with_help(str(error), call, exit_code(str(error))) from None
    if detached or not (request["AttachStdin"] or request["AttachStdout"] or request["AttachStderr"]):
        return _background(call, client, flags, identity)
    proxy = not flags.given("sig-proxy") or flags.on("sig-proxy")
    with Session(
        client,
        tty=request["Tty"],
        stdin=request["AttachStdin"],
        stdout=request["AttachStdout"],
        stderr=request["AttachStderr"],
        keys=keys,
        kill=f"/containers/{identity}/kill" if proxy else "",
        resize=f"/containers/{identity}/resize",
    ) as session:
        return _foreground(call, session, flags, identity, keys)


def _background(call: Call, client: Client, flags: Flags, identity: str) -> int:
    terminal.out(identity + "\n")
    try:
        client.post(f"/containers/{identity}/start")
    except Failure as error:
        if flags.on("rm"):
            _gone(client, identity)
        raise _with_help(str(error), call, exit_code(str(error))) from None
    return 0


def _gone(client: Client, identity: str) -> None:
    """Wait until a --rm container that failed to start is removed, so that its name is free."""
    try:
        client.post(f"/containers/{identity}/wait?condition=removed")
    except Failure:
        pass


def _foreground(call: Call, session: Session, flags: Flags, identity: str, keys: str) -> int:
    client = session.client
    base = f"/containers/{identity}"
    attach = client.hijack(
        base
        + "/attach"
        + query(
            detachKeys=keys or None,
            stderr=1 if session.stderr else None,
            stdin=1 if session.stdin else None,
            stdout=1 if session.stdout else None,
            stream=1,
        )
    )
    wait = client.send("POST", f"{base}/wait?condition={'removed' if flags.on('rm') else 'next-exit'}", fresh=True)
    client.opened(attach)
    reply = wait.reply().check()
    try:
        client.post(base + "/start")
    except Failure as error:
        session.restore()
        attach.close()
        if flags.on("rm"):
            session.until_removed(reply)
        raise _with_help(str(error), call, exit_code(str(error))) from None
    try:
        session.expect(reply, base + ("/wait?condition=removed" if flags.on("rm") else "/wait"))
        session.copy(attach)
    except Detach:
        return 0
    return session.exit_status()


def create(call: Call) -> int:
    """Prints the new container's id."""
    flags = call.parse(CREATE)
    request = _request(call, flags)
    terminal.out(_create(call.client, flags, request) + "\n")
    return 0


def _create(client: Client, flags: Flags, request: dict[str, Any]) -> str:
    """POST /containers/create, with a pull where --pull says so; warnings and the pull's progress go to stderr."""
    with _IdFile(flags.text("cidfile")) as id_file:
        platform = flags.text("platform") or os.environ.get("DOCKER_DEFAULT_PLATFORM", "")
        pull = flags.text("pull", "missing")
        image = request["Image"]
        if pull == "always":
            _pull(client, image, platform, quiet=flags.on("quiet"))
        request["HostConfig"]["ConsoleSize"] = list(terminal.size(1))
        path = "/containers/create" + query(name=flags.text("name") or None, platform=platform or None)
        try:
            answer = client.request("POST", path, request).document()
        except ApiError as error:
            missing = error.code == 404 and "no such image" in error.message.lower()
            if not missing or pull not in ("missing", "") or _is_id(image):
                raise
            if not flags.on("quiet"):
                terminal.err(f"Unable to find image '{terminal.printable(_familiar(image))}' locally\n")
            _pull(client, image, platform, quiet=flags.on("quiet"))
            answer = client.request("POST", path, request).document()
        for warning in answer.get("Warnings") or ():
            terminal.err(f"WARNING: {terminal.printable(str(warning))}\n")
        identity = str(answer["Id"])
        id_file.write(identity)
        return escaped(identity)


class _IdFile:
    """--cidfile: must not exist before, holds the id after, is removed if there is none."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._written = False

    def __enter__(self) -> _IdFile:
        if self.path:
            try:
                self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            except FileExistsError:
                raise Failure(
                    "container ID file found, make sure the other container isn't running or delete " + self.path
                ) from None
            except OSError as error:
                cause = (error.strerror or "").lower()
                raise Failure(f"failed to create the container ID file: open {self.path}: {cause}") from None
        return self

    def write(self, identity: str) -> None:
        if self._fd >= 0:
            os.write(self._fd, identity.encode())
            self._written = True

    def __exit__(self, *_error: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            if not self._written:
                os.unlink(self.path)


def _is_id(image: str) -> bool:
    """Whether `image` names an image by its digest: that cannot be pulled."""
    return len(image.removeprefix("sha256:")) == 64 and set(image.removeprefix("sha256:")) <= HEX


def _split(image: str) -> tuple[str, str]:
    """"a/b:1" -> ("a/b", "1"), "a@sha256:.." -> ("a", "sha256:.."), "a" -> ("a", "latest")."""
    name, at, digest = image.partition("@")
    if at:
        return name, digest
    head, colon, tag = name.rpartition(":")
    if colon and "/" not in tag:
        return head, tag
    return name, "latest"


def _familiar(image: str) -> str:
    name, tag = _split(image)
    name = name.removeprefix("index.docker.io/").removeprefix("docker.io/").removeprefix("library/")
    return f"{name}@{tag}" if "@" in image else f"{name}:{tag}"


def _pull(client: Client, image: str, platform: str, *, quiet: bool) -> None:
    from tare.cli.progress import show

    name, tag = _split(image)
    path = "/images/create" + query(fromImage=name, platform=platform or None, tag=tag)
    # "e30=" is {} in base64url: no credentials.
    reply = client.request("POST", path, headers="X-Registry-Auth: e30=\r\n")
    show(reply.messages(), fd=2, quiet=quiet)
