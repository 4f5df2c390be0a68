"""/containers/{id}/exec and /exec: further processes in a running container.

Runs in the daemon. Deliberately absent: the bytes of the stream, see streams.py.
"""

from __future__ import annotations

import socket
from typing import Any

from msgspec import field

from tare.engine.model import Exec, ExecSpec
from tare.engine.shims import detach_sequence
from tare.errors import Invalid
from tare.http.message import Answer, Hijack, Request, Response, json_response

from . import decode
from .backend import Engine
from .containers import rows_columns
from .streams import stream_type
from .wire import UNSET, Maybe, Wire

__all__ = ["CreateBody", "Execs", "StartBody", "shown"]


class CreateBody(Wire):
    user: str = ""
    privileged: bool = False
    tty: bool = False
    console_size: list[int] | None = None
    attach_stdin: bool = False
    attach_stderr: bool = False
    attach_stdout: bool = False
    detach: bool = False
    detach_keys: str = ""
    env: list[str] | None = None
    working_dir: str = ""
    cmd: str | list[str] | None = None


class StartBody(Wire):
    detach: bool = False
    tty: bool = False
    console_size: list[int] | None = None


class ProcessConfig(Wire, rename="lower"):
    tty: bool
    entrypoint: str
    arguments: list[str]
    privileged: bool
    user: Maybe[str] = UNSET


class Inspect(Wire, kw_only=True):
    id: str = field(name="ID")
    running: bool
    exit_code: int | None
    process_config: ProcessConfig
    open_stdin: bool
    open_stderr: bool
    open_stdout: bool
    can_remove: bool = False
    container_id: str = field(name="ContainerID")
    detach_keys: bytes | None = None
    pid: int


class Execs:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def create(self, request: Request) -> Response:
        body = await decode.body(request, CreateBody, empty=CreateBody())
        args = decode.text_list(body.cmd)
        if not args:
            raise Invalid("No exec command specified")
        for entry in body.env or ():
            if not entry or entry.startswith("="):
                raise Invalid(f"invalid environment variable: {entry}")
        spec = ExecSpec(
            args=args,
            env=tuple(body.env or ()),
            working_dir=body.working_dir,
            user=body.user,
            tty=body.tty,
            privileged=body.privileged,
            attach_stdin=body.attach_stdin,
            attach_stdout=body.attach_stdout,
            attach_stderr=body.attach_stderr,
            detach_keys=body.detach_keys,
            console_size=size(body.console_size, request, tty=body.tty),
        )
        created = self.engine.execs.create(request.params["id"], spec)
        return json_response({"Id": created.id}, 201)

    async def start(self, request: Request) -> Answer:
        """What is wrong with the exec or its container is an ordinary answer; what fails later is on the stream."""
        body = await decode.body(request, StartBody, empty=StartBody())
        found = self.engine.execs.startable(request.params["id"])
        console = size(body.console_size, request, tty=body.tty)
        if body.detach:
            await self.engine.execs.start(found.id, True, body.tty, console, None, b"")
            return Response()

        async def run(sock: socket.socket, leftover: bytes) -> None:
            await self.engine.execs.start(found.id, False, body.tty, console, sock, leftover)

        return Hijack(run, content_type=stream_type(request, multiplexed=not found.spec.tty, upgrade=True))

    async def resize(self, request: Request) -> Response:
        await self.engine.execs.resize(request.params["id"], *rows_columns(request))
        return Response()

    async def inspect(self, request: Request) -> Response:
        return json_response(shown(await self.engine.execs.settled(request.params["id"])))


def size(given: list[int] | None, request: Request, *, tty: bool) -> tuple[int, int]:
    """[height, width]; without a terminal and before API 1.42 there is none."""
    if given is None or not tty or request.version < (1, 42):
        return (0, 0)
    if len(given) != 2 or min(given) < 0:
        raise Invalid("ConsoleSize must be [height, width]")
    return (given[0], given[1])


def shown(value: Exec) -> Inspect:
    spec = value.spec
    keys: Any = bytes(detach_sequence(spec.detach_keys)) if spec.detach_keys else None
    return Inspect(
        id=value.id,
        running=value.running,
        exit_code=value.exit_code,
        process_config=ProcessConfig(
            tty=spec.tty,
            entrypoint=spec.args[0],
            arguments=list(spec.args[1:]),
            privileged=spec.privileged,
            user=spec.user or UNSET,
        ),
        open_stdin=spec.attach_stdin,
        open_stderr=spec.attach_stderr,
        open_stdout=spec.attach_stdout,
        container_id=value.container,
        detach_keys=keys,
        pid=value.pid,
    )
