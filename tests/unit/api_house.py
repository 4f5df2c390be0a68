"""A house of cardboard behind the API: the Protocols of api/backend.py with the least behaviour tests need."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from tare.api import errors, routes
from tare.engine.events import Events
from tare.engine.model import Container, ContainerSpec, Exec, ExecSpec, ExitStatus, State, Streams
from tare.errors import Conflict, EngineError, Invalid, NotFound
from tare.http.message import Answer, Hijack, Request, Response, Stream
from tare.oci.image import ImageConfig
from tare.store.images import HistoryStep, Image

BODIES: dict[str, Any] = json.loads((Path(__file__).parent / "api_bodies.json").read_text())
"""Bodies the docker CLI 28.2.2 sent: create with many flags, create with volumes, plain create, exec."""

CHAIN = "sha256:" + "c" * 64
IMAGE_ID = "sha256:" + "1" * 64


def container(number: int = 1, **changes: Any) -> Container:
    values: dict[str, Any] = {
        "id": f"{number:064x}",
        "name": f"box{number}",
        "spec": ContainerSpec(image="alpine", labels={"n": str(number)}),
        "image_id": IMAGE_ID,
        "args": ("/bin/sh", "-c", "echo hi"),
        "created": (1_700_000_000 + number) * 10**9,
    }
    return Container(**{**values, **changes})


def running(number: int = 1, **changes: Any) -> Container:
    return container(number, **{"state": State.RUNNING, "pid": 42, "started": 1_700_000_100 * 10**9, **changes})


def image(**changes: Any) -> Image:
    config = msgspec.json.decode(
        json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "created": "2024-01-02T03:04:05.5Z",
                "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "Labels": {"a": "b"}},
                "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "d" * 64]},
                "history": [{"created": "2024-01-02T03:04:05.5Z", "created_by": "ADD x", "comment": "hello"}],
            }
        ),
        type=ImageConfig,
    )
    values: dict[str, Any] = {
        "id": IMAGE_ID,
        "config": config,
        "manifest": "sha256:" + "2" * 64,
        "tags": ("alpine:latest",),
        "repo_digests": (),
        "size": 1000,
        "chain_ids": (CHAIN,),
        "created": 1_704_164_645_500_000_000,
        "stored": 1,
        "tagged": 0,
        "parent": "",
    }
    return Image(**{**values, **changes})


class Containers:
    """Keeps what it is given; `calls` records the steps, `failure` is raised by each of them."""

    def __init__(self, *values: Container) -> None:
        self.values = {value.id: value for value in values}
        self.calls: list[tuple[Any, ...]] = []
        self.failure: Exception | None = None
        self.specs: list[ContainerSpec] = []
        self.waiting: asyncio.Future[ExitStatus] | None = None
        self.attached: list[Streams] = []

    def get(self, ref: str) -> Container:
        for value in self.values.values():
            if ref.removeprefix("/") == value.name or value.id.startswith(ref):
                return value
        raise NotFound(f"No such container: {ref}")

    def all(self) -> list[Container]:
        return sorted(self.values.values(), key=lambda value: value.created, reverse=True)

    async def create(self, name: str, spec: ContainerSpec) -> Container:
        self._step("create", name)
        self.specs.append(spec)
        value = container(99, name=name or "calm_gauss", spec=spec, warnings=("slow",))
        self.values[value.id] = value
        return value

    def _step(self, *call: Any) -> None:
        self.calls.append(call)
        if self.failure is not None:
            raise self.failure

    async def start(self, ref: str) -> None:
        self._step("start", ref)

    async def stop(self, ref: str, timeout: int | None, signal: str) -> None:
        self._step("stop", ref, timeout, signal)

    async def restart(self, ref: str, timeout: int | None, signal: str) -> None:
        self._step("restart", ref, timeout, signal)

    async def kill(self, ref: str, signal: str) -> None:
        self._step("kill", ref, signal)

    async def pause(self, ref: str) -> None:
        self._step("pause", ref)

    async def unpause(self, ref: str) -> None:
        self._step("unpause", ref)

    async def remove(self, ref: str, force: bool, volumes: bool) -> None:
        self._step("remove", ref, force, volumes)
        self.values.pop(self.get(ref).id)

    async def rename(self, ref: str, new: str) -> None:
        self._step("rename", ref, new)

    async def resize(self, ref: str, rows: int, columns: int) -> None:
        self._step("resize", ref, rows, columns)

    def wait(self, ref: str, condition: str) -> asyncio.Future[ExitStatus]:
        self._step("wait", ref, condition)
        self.waiting = asyncio.get_running_loop().create_future()
        return self.waiting

    def attachable(self, ref: str, detach_keys: str) -> Container:
        value = self.get(ref)
        if value.state is State.PAUSED:
            raise Conflict(f"container {ref} is paused, unpause the container before attach")
        return value

    async def attach(self, ref: str, streams: Streams, sock: Any, leftover: bytes, *, logs: bool, stream: bool) -> None:
        self._step("attach", ref, leftover, logs, stream)
        self.attached.append(streams)

    def logs(self, ref: str, **options: Any) -> AsyncIterator[bytes]:
        self._step("logs", ref, options)

        async def lines() -> AsyncIterator[bytes]:
            yield b"hello\n"

        return lines()

    def log_path(self, container_id: str) -> Path:
        return Path("/data/containers") / container_id / "log"

    def directory(self, container_id: str) -> Path:
        return Path("/data/containers") / container_id

    async def size(self, value: Container) -> tuple[int, int]:
        return (7, 1007)


class Execs:
    def __init__(self) -> None:
        self.values: dict[str, Exec] = {}
        self.calls: list[tuple[Any, ...]] = []

    def create(self, ref: str, spec: ExecSpec) -> Exec:
        value = Exec(id="e" * 64, container=f"{1:064x}", spec=spec)
        self.values[value.id] = value
        return value

    def get(self, exec_id: str) -> Exec:
        if exec_id not in self.values:
            raise NotFound(f"No such exec instance: {exec_id}")
        return self.values[exec_id]

    async def settled(self, exec_id: str) -> Exec:
        return self.get(exec_id)

    def of(self, container_id: str) -> list[Exec]:
        return [value for value in self.values.values() if value.container == container_id]

    startable = get

    async def start(self, *call: Any) -> None:
        self.calls.append(call)

    async def resize(self, exec_id: str, rows: int, columns: int) -> None:
        self.calls.append(("resize", exec_id, rows, columns))


class Images:
    def __init__(self, *values: Image) -> None:
        self.values = list(values)
        self.layout = SimpleNamespace(root=Path("/data"))
        self.snapshots = SimpleNamespace(layer_usage=lambda chain_id: (300, 3))
        self.received = b""
        self.loads: list[str] = []
        self.messages: list[dict[str, Any]] = []
        self.failure: Exception | None = None
        self.imports: list[tuple[Any, ...]] = []

    def resolve(self, ref: str) -> Image:
        for value in self.values:
            if ref == value.id or ref in value.tags or f"{ref}:latest" in value.tags:
                return value
        raise NotFound(f"No such image: {ref}:latest")

    def find(self, ref: str) -> str:
        return self.resolve(ref).id

    def list(self) -> list[Image]:
        return self.values

    def history(self, ref: str) -> list[HistoryStep]:
        value = self.resolve(ref)
        return [HistoryStep(id=value.id, created=10**9, created_by="ADD x", tags=value.tags, size=5, comment="")]

    def tag(self, source: str, repo: str, tag: str) -> str:
        self.resolve(source)
        return f"{repo}:{tag or 'latest'}"

    def remove(self, ref: str, *, force: bool, noprune: bool, in_use: Any) -> Any:
        value = self.resolve(ref)
        if not force and any(True for _ in in_use(value.id)):
            raise Conflict("conflict: unable to remove repository reference")
        self.values.remove(value)
        return [*(("Untagged", tag) for tag in value.tags), ("Deleted", value.id), ("Deleted", CHAIN)]

    async def load(self, reader: AsyncIterator[bytes], quiet: bool, loaded: Any) -> AsyncIterator[dict[str, Any]]:
        async for piece in reader:
            self.received += piece
        for image_id in self.loads:
            loaded(image_id)
        for message in self.messages:
            yield message
        if self.failure is not None:
            raise self.failure

    async def import_(self, reader: AsyncIterator[bytes], *rest: Any) -> str:
        self.imports.append(rest)
        async for piece in reader:
            self.received += piece
        return IMAGE_ID

    async def save(self, refs: Any) -> AsyncIterator[bytes]:
        yield b"tar of " + ",".join(refs).encode()


def house(*containers: Container, images: tuple[Image, ...] = ()) -> Any:
    host = SimpleNamespace(ncpu=2, memory_total=1 << 30, cgroup_version=1, features={"memory", "pids", "cpu.quota"})
    return SimpleNamespace(
        containers=Containers(*containers),
        execs=Execs(),
        images=Images(*(images or (image(),))),
        events=Events(),
        host=host,
        config=SimpleNamespace(labels=("rack=7",), debug=False, log_driver="none"),
        id="11111111-2222",
        version="9.9.9",
    )


class Body:
    """A request's body in one piece."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def read(self) -> bytes:
        data, self.data = self.data, b""
        return data

    async def disconnected(self) -> None:
        await asyncio.Event().wait()


async def ask(engine: Any, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    """What the router and a handler answer; errors as the server would answer them."""
    path, _, query = target.partition("?")
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    known = {"content-type": "application/json", "content-length": str(len(data))} if data else {}
    request = Request(method, target, path, query, {**known, **(headers or {})}, Body(data))
    try:
        return await routes.build(engine).match(request)(request)
    except (EngineError, msgspec.DecodeError, OSError, Invalid) as error:
        return errors.response(error)


def call(engine: Any, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None) -> Response:
    """A plain answer; the body is decoded JSON in `.value` if there is one."""

    async def run() -> Response:
        answer = await ask(engine, method, target, body, headers)
        if isinstance(answer, Stream):
            data = b"".join([piece async for piece in answer.source])
            return Response(answer.status, data, answer.headers, answer.content_type)
        assert not isinstance(answer, Hijack)
        return answer

    return asyncio.run(run())


def value(answer: Response) -> Any:
    return json.loads(answer.body)
