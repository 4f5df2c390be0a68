"""What the front door asks of the house: the engine and the stores as Protocols.

Handlers know these and nothing behind them, so tests use small objects of their own. Units as in engine/model.py.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from tare.engine.model import Container, ContainerSpec, Event, Exec, ExecSpec, ExitStatus, Streams
from tare.store.images import HistoryStep, Image

__all__ = ["Containers", "Engine", "Events", "Execs", "Host", "Images", "Subscription"]

if TYPE_CHECKING:
    from tare.engine.engine import Engine as RealEngine

Step: TypeAlias = Coroutine[Any, Any, None]


class Containers(Protocol):
    """engine/containers.py. `ref` is a full id, a unique prefix of one, or a name with or without "/"."""

    async def create(self, name: str, spec: ContainerSpec) -> Container: ...

    @property
    def get(self) -> Callable[[str], Container]: ...
    @property
    def all(self) -> Callable[[], list[Container]]:
        """Newest first."""
        ...

    @property
    def start(self) -> Callable[[str], Step]: ...
    @property
    def stop(self) -> Callable[[str, int | None, str], Step]:
        """Seconds to wait (None = the container's own), signal ("" = the container's own)."""
        ...

    @property
    def restart(self) -> Callable[[str, int | None, str], Step]: ...
    @property
    def kill(self) -> Callable[[str, str], Step]: ...
    @property
    def pause(self) -> Callable[[str], Step]: ...
    @property
    def unpause(self) -> Callable[[str], Step]: ...
    @property
    def resize(self) -> Callable[[str, int, int], Step]:
        """Rows, columns."""
        ...

    @property
    def wait(self) -> Callable[[str, str], asyncio.Future[ExitStatus]]:
        """Registered when the call returns."""
        ...

    async def remove(self, ref: str, force: bool, volumes: bool) -> None: ...

    async def rename(self, ref: str, new: str) -> None: ...

    def attachable(self, ref: str, detach_keys: str) -> Container:
        """To be asked before the answer is 101."""
        ...

    async def attach(
        self, ref: str, streams: Streams, sock: socket.socket, leftover: bytes, *, logs: bool, stream: bool
    ) -> None:
        """Takes `sock` over, also when it fails."""
        ...

    def logs(
        self,
        ref: str,
        *,
        follow: bool,
        stdout: bool,
        stderr: bool,
        since_ns: int | None,
        until_ns: int | None,
        timestamps: bool,
        tail: int | None,
        details: bool,
    ) -> AsyncIterator[bytes]: ...

    def log_path(self, container_id: str) -> Path: ...

    def directory(self, container_id: str) -> Path:
        """Where hosts, hostname and resolv.conf are."""
        ...

    async def size(self, container: Container) -> tuple[int, int]:
        """Bytes written by the container, bytes in all."""
        ...


class Execs(Protocol):
    """engine/execs.py."""

    def create(self, ref: str, spec: ExecSpec) -> Exec: ...

    async def settled(self, exec_id: str) -> Exec:
        """With the exit code, if the process is gone."""
        ...

    def of(self, container_id: str) -> Sequence[Exec]:
        """Those that have not ended."""
        ...

    def startable(self, exec_id: str) -> Exec:
        """To be asked before the answer is 101."""
        ...

    async def start(
        self,
        exec_id: str,
        detach: bool,
        tty: bool,
        console_size: tuple[int, int],
        sock: socket.socket | None,
        leftover: bytes,
    ) -> None:
        """Takes `sock` over and tells it of a failure; without one a failure is raised."""
        ...

    async def resize(self, exec_id: str, rows: int, columns: int) -> None: ...


class Snapshots(Protocol):
    def layer_usage(self, chain_id: str) -> tuple[int, int]:
        """Bytes and inodes of one layer."""
        ...


class Layout(Protocol):
    """store/paths.py, the part that is shown."""

    @property
    def root(self) -> Path: ...


class Images(Protocol):
    """store/images.py."""

    @property
    def snapshots(self) -> Snapshots: ...
    @property
    def layout(self) -> Layout: ...

    def resolve(self, ref: str) -> Image: ...

    def find(self, ref: str) -> str:
        """As resolve, the id only."""
        ...

    def list(self) -> Sequence[Image]: ...

    def history(self, ref: str) -> Sequence[HistoryStep]: ...

    def tag(self, source: str, repo: str, tag: str) -> str: ...

    def remove(
        self, ref: str, *, force: bool, noprune: bool, in_use: Callable[[str], Iterable[tuple[str, bool]]]
    ) -> Sequence[tuple[str, str]]: ...

    def load(
        self, reader: AsyncIterator[bytes], quiet: bool, loaded: Callable[[str], None]
    ) -> AsyncIterator[dict[str, Any]]:
        """`loaded` hears the id of each image of the archive, once it is stored."""
        ...

    async def import_(
        self, reader: AsyncIterator[bytes], repo: str, tag: str, message: str, changes: Sequence[str]
    ) -> str: ...

    def save(self, refs: Sequence[str]) -> AsyncIterator[bytes]: ...


class Subscription(Protocol):
    def __aiter__(self) -> AsyncIterator[Event]: ...

    async def __anext__(self) -> Event: ...

    async def aclose(self) -> None: ...


class Events(Protocol):
    def subscribe(
        self, since_ns: int | None, until_ns: int | None, filters: Mapping[str, Collection[str]] | None
    ) -> Subscription: ...

    def emit(self, kind: str, action: str, actor: str, attributes: dict[str, str] | None = None) -> None: ...


class Host(Protocol):
    """engine/limits.py HostFacts: what this machine is and allows."""

    @property
    def ncpu(self) -> int: ...
    @property
    def memory_total(self) -> int: ...
    @property
    def cgroup_version(self) -> int: ...
    @property
    def features(self) -> Collection[str]: ...


class Config(Protocol):
    """What the daemon was told and `info` shows."""

    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def debug(self) -> bool: ...
    @property
    def log_driver(self) -> str: ...


class Engine(Protocol):
    """engine/engine.py: the record that daemon.py builds."""

    @property
    def containers(self) -> Containers: ...
    @property
    def execs(self) -> Execs: ...
    @property
    def images(self) -> Images: ...
    @property
    def events(self) -> Events: ...
    @property
    def host(self) -> Host: ...
    @property
    def config(self) -> Config: ...
    @property
    def id(self) -> str: ...
    @property
    def version(self) -> str: ...


if TYPE_CHECKING:

    def checked(engine: RealEngine) -> Engine:
        """The type checker's proof that the house has what the door asks for."""
        return engine
