"""The streams of a container: attach, logs, wait.

Runs in the daemon. Deliberately absent: the bytes of an attached client; its socket goes to the engine and on to the
shim, and the daemon never sees them again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from tare.engine.model import Streams
from tare.errors import EngineError, Invalid
from tare.http.message import Answer, Disconnected, Hijack, Request, Response, Stream

from . import times
from .backend import Engine
from .errors import sentence

__all__ = ["MULTIPLEXED", "RAW", "ContainerStreams", "stream_type"]

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
CONDITIONS = frozenset({"", "not-running", "next-exit", "removed"})

log = logging.getLogger("tare.api")


class ContainerStreams:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def attach(self, request: Request) -> Answer:
        """101 (200 without an upgrade), then the socket is the engine's; the state is judged before."""
        query = request.query
        container = self.engine.containers.attachable(request.params["id"], query.get("detachKeys"))
        streams = Streams(
            stdin=query.flag("stdin") and container.spec.open_stdin,
            stdout=query.flag("stdout"),
            stderr=query.flag("stderr"),
            multiplexed=not container.spec.tty,
            detach_keys=query.get("detachKeys"),
        )
        logs, stream = query.flag("logs"), query.flag("stream")

        async def run(sock: socket.socket, leftover: bytes) -> None:
            try:
                await self.engine.containers.attach(container.id, streams, sock, leftover, logs=logs, stream=stream)
            except ConnectionError as error:
                log.info("attach to %s: the client left: %s", container.id, sentence(error))
            except (EngineError, OSError) as error:
                # The engine has hung up: after a 101 there is no other way to say no.
                log.warning("attach to %s: %s", container.id, sentence(error))

        return Hijack(run, content_type=stream_type(request, multiplexed=streams.multiplexed, upgrade=True))

    async def logs(self, request: Request) -> Answer:
        query = request.query
        stdout, stderr = query.flag("stdout"), query.flag("stderr")
        if not (stdout or stderr):
            raise Invalid("must specify at least one of 'stdout' or 'stderr'")
        container = self.engine.containers.get(request.params["id"])
        source = self.engine.containers.logs(
            container.id,
            follow=query.flag("follow"),
            stdout=stdout,
            stderr=stderr,
            since_ns=times.stamp(query.get("since"), "since") or None,
            until_ns=times.stamp(query.get("until"), "until") or None,
            timestamps=query.flag("timestamps"),
            tail=tail(query.get("tail")),
            details=query.flag("details"),
        )
        return Stream(source, content_type=stream_type(request, multiplexed=not container.spec.tty))

    async def wait(self, request: Request) -> Answer:
        """The headers leave once the wait is registered: clients start the container only then (API 1.30)."""
        condition = request.query.get("condition") if request.version >= (1, 30) else ""
        if condition not in CONDITIONS:
            raise Invalid(f'invalid condition: "{condition}"')
        future = self.engine.containers.wait(request.params["id"], condition or "not-running")

        async def result() -> AsyncIterator[bytes]:
            try:
                status = await future
            finally:
                future.cancel()
            answer: dict[str, object] = {"StatusCode": status.code}
            if status.error:
                answer["Error"] = {"Message": status.error}
            yield msgspec.json.encode(answer) + b"\n"

        if request.version < (1, 30):
            gone: asyncio.Future[Any] = asyncio.ensure_future(request.disconnected())
            try:
                await asyncio.wait([gone, future], return_when=asyncio.FIRST_COMPLETED)
                if not future.done():
                    raise Disconnected("the client left while it waited for a container")
            finally:
                gone.cancel()
                future.cancel()
            return Response(body=b"".join([part async for part in result()]), content_type="application/json")
        return Stream(result())


def stream_type(request: Request, *, multiplexed: bool, upgrade: bool = False) -> str:
    """Multiplexed streams have a type of their own since API 1.42; a hijacked 200 is called raw in any case."""
    if not multiplexed or request.version < (1, 42) or (upgrade and "upgrade" not in request.headers):
        return RAW
    return MULTIPLEXED


def tail(text: str) -> int | None:
    """The last N lines; "all", "" and, as in Docker, whatever is no number mean every line."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None
