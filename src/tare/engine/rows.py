"""The containers of the ledger, in memory and on disk as one: look-up, save, and whoever waits for a change.

Runs in the daemon's loop; every change of a row goes through `save`, which writes it before anybody sees it. A row that
cannot be read does not stop the start: it is listed as DEAD with the reason in its error, and can be removed.
Deliberately absent: legality of a step (state.py) and everything with processes (lifecycle.py).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import msgspec

from tare.engine import state
from tare.engine.model import Container, ContainerSpec, ExitStatus, State
from tare.errors import Conflict, Invalid, NotFound

if TYPE_CHECKING:
    from tare.db import Database
    from tare.engine.shims import Client, Shim

__all__ = ["Live", "Rows"]

log = logging.getLogger(__name__)

MAX_ROW = 1 << 20
"""Characters of JSON: every row is in memory, and each event carries its labels. Real ones have some 2 KB; guess."""


class Live:
    """What belongs to a container only while this daemon lives: its lock, its shim, who waits."""

    __slots__ = ("exit_waiters", "leaving", "lock", "pending", "removal_waiters", "restarting", "shim")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        """Held over each step of the state; never while waiting for the container itself to end."""
        self.shim: Shim | None = None
        self.pending: list[Client] = []
        """Clients that attached before the start."""
        self.leaving: Shim | None = None
        """The shim of the last life until it has cleaned up: the next one takes the same cgroup."""
        self.restarting = 0
        """Restarts under way: the end in their middle does not remove an --rm container."""
        self.exit_waiters: list[asyncio.Future[ExitStatus]] = []
        self.removal_waiters: list[asyncio.Future[ExitStatus]] = []

    def close(self) -> None:
        """Let go of the shims, which carry on."""
        for shim in filter(None, (self.shim, self.leaving)):
            shim.close()
        self.shim = self.leaving = None


class Rows:
    """All containers, by id and by name."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._by_id: dict[str, Container] = {}
        self._by_name: dict[str, str] = {}
        self._live: dict[str, Live] = {}
        for id_, name, text in db.execute("SELECT id, name, row FROM containers ORDER BY created"):
            self._remember(_decode(str(id_), str(name), text))

    def get(self, ref: str) -> Container:
        """By full id, name (with or without "/") or unique prefix of an id, in this order."""
        if not ref:
            raise Invalid(f'invalid name or ID supplied: "{ref}"')
        if ref in self._by_id:
            return self._by_id[ref]
        name = self._by_name.get(ref.removeprefix("/"))
        if name is not None:
            return self._by_id[name]
        found = [id_ for id_ in self._by_id if id_.startswith(ref)]
        if len(found) > 1:
            raise Invalid(f"multiple IDs found with provided prefix: {ref}")
        if not found:
            raise NotFound(f"No such container: {ref}")
        return self._by_id[found[0]]

    def find(self, container_id: str) -> Container | None:
        """By full id only."""
        return self._by_id.get(container_id)

    def all(self) -> list[Container]:
        """Newest first."""
        return sorted(self._by_id.values(), key=lambda container: container.created, reverse=True)

    def owner(self, name: str) -> str | None:
        """The id of the container with that name."""
        return self._by_name.get(name)

    def live(self, container_id: str) -> Live:
        live = self._live.get(container_id)
        if live is None:
            live = self._live[container_id] = Live()
        return live

    def insert(self, container: Container) -> None:
        """Claim id and name. Conflict with Docker's text if the name is taken, Invalid above MAX_ROW.

        Joins the caller's transaction. The row is visible when that has committed: call `added` then.
        """
        self.claim(container.name)
        row = _encode(container)
        if len(row) > MAX_ROW:
            raise Invalid(f"the configuration of a container may have {MAX_ROW >> 20} MiB as JSON, this one has more")
        self._db.execute(
            "INSERT INTO containers (id, name, row, created) VALUES (?, ?, ?, ?)",
            (container.id, container.name, row, container.created),
        )

    def added(self, container: Container) -> None:
        self._remember(container)

    def claim(self, name: str) -> None:
        """Conflict if somebody else has the name."""
        owner = self._by_name.get(name)
        if owner is not None:
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use by container "{owner}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )

    def save(self, container: Container) -> Container:
        """Replace the row; who waits for the end learns it here."""
        self._db.execute(
            "UPDATE containers SET name = ?, row = ? WHERE id = ?",
            (container.name, _encode(container), container.id),
        )
        before = self._by_id[container.id]
        if before.name != container.name:
            del self._by_name[before.name]
        self._remember(container)
        if state.is_live(before) and not state.is_live(container):
            _settle(self.live(container.id).exit_waiters, container.exit)
        return container

    def delete(self, container_id: str) -> None:
        """Joins the caller's transaction; call `removed` when that has committed."""
        self._db.execute("DELETE FROM containers WHERE id = ?", (container_id,))

    def removed(self, container: Container) -> None:
        """Forget it; a removal is also the last end anybody can wait for."""
        del self._by_id[container.id]
        del self._by_name[container.name]
        live = self._live.pop(container.id, None)
        if live is not None:
            # Without the reason of a failed start, as Docker: its client says it already, from the answer to start.
            last = msgspec.structs.replace(container.exit, error="")
            _settle(live.exit_waiters, last)
            _settle(live.removal_waiters, last)

    def wait(self, ref: str, condition: str = "not-running") -> asyncio.Future[ExitStatus]:
        """Registered when this returns. `condition`: not-running, next-exit or removed, else Invalid."""
        container = self.get(ref)
        live = self.live(container.id)
        future: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        match condition or "not-running":
            case "not-running":
                if state.is_live(container):
                    live.exit_waiters.append(future)
                else:
                    future.set_result(container.exit)
            case "next-exit":
                live.exit_waiters.append(future)
            case "removed":
                live.removal_waiters.append(future)
            case _:
                raise Invalid(f'invalid condition: "{condition}"')
        future.add_done_callback(lambda done: _forget(live, done))
        return future

    def _remember(self, container: Container) -> None:
        self._by_id[container.id] = container
        self._by_name[container.name] = container.id


def _settle(waiters: list[asyncio.Future[ExitStatus]], status: ExitStatus) -> None:
    woken, waiters[:] = waiters[:], []
    for future in woken:
        if not future.done():
            future.set_result(status)


def _forget(live: Live, future: asyncio.Future[ExitStatus]) -> None:
    """A client that went away must not leave its future behind."""
    for waiters in (live.exit_waiters, live.removal_waiters):
        if future in waiters:
            waiters.remove(future)


def _encode(container: Container) -> str:
    return msgspec.json.encode(container).decode()


def _decode(id_: str, name: str, text: object) -> Container:
    try:
        container = msgspec.json.decode(str(text), type=Container)
        if (container.id, container.name) == (id_, name):
            return container
        reason = "its name or id differs from its key"
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = str(error)
    log.error("the record of container %s (%s) is unreadable: %s", id_, name, reason)
    return Container(
        id=id_,
        name=name,
        spec=ContainerSpec(image=""),
        image_id="",
        state=State.DEAD,
        exit=ExitStatus(code=255, error=f"the record of this container is unreadable: {reason}"),
    )
