"""What happened, for `events` clients: a ring of the last 256, and a queue for each subscriber; both bounded in bytes.

Runs in the daemon's loop; `emit` never waits. A subscriber who does not keep up is dropped: what is queued stays
readable, then comes one event {kind: daemon, action: "dropped"} and the end. Deliberately absent: HTTP and JSON (api/),
and any store: the ring is gone with the daemon, as Docker's is.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import deque
from collections.abc import Collection, Iterator, Mapping

from tare.engine.model import Event
from tare.errors import EngineError
from tare.oci import reference

__all__ = ["Events", "Filters", "Subscription"]

Filters = Mapping[str, Collection[str]]
"""Docker's filter JSON: {"type": ["container"], "label": ["a=b"], ...}; keys are joined by and, values by or."""

RING = 256
QUEUE = 4096
"""Events kept for one reader, about 2 MB; guess."""
MAX_BYTES = 8 << 20
"""Of the attributes in the ring, and of those in one reader's queue: containers may have very many labels; guess."""
_ATTRIBUTE_COST = 200
"""Bytes of a dict's entry and its two str objects besides their text (CPython 3.11: 104 and 2 * 49)."""
_NAMED = ("daemon", "container", "plugin", "volume", "network", "node", "service", "secret", "config")
_WITH_DETAIL = frozenset({"health_status", "exec_create", "exec_start"})


class Events:
    """The one place where events are made and handed out."""

    def __init__(self) -> None:
        self._ring = _Events()
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()

    def emit(self, kind: str, action: str, actor: str, attributes: dict[str, str] | None = None) -> None:
        """Record now and give it to every subscriber whose filters fit. `attributes` must not change any more."""
        event = Event(kind=kind, action=action, actor=actor, attributes=attributes or {}, time_ns=time.time_ns())
        self._ring.append(event)
        while len(self._ring) > RING or (self._ring.size > MAX_BYTES and len(self._ring) > 1):
            self._ring.popleft()
        for subscription in list(self._subscriptions):
            subscription.offer(event)

    def subscribe(
        self, since_ns: int | None = None, until_ns: int | None = None, filters: Filters | None = None
    ) -> Subscription:
        """Registered when this returns. Old events come only if `since_ns` or `until_ns` is given, as in Docker.

        Ends at `until_ns`, at once if that is past; without it, never. Drop the object, or call aclose(), to leave.
        """
        subscription = Subscription(until_ns, dict(filters or {}))
        if since_ns or until_ns:
            for event in self._ring:
                if event.time_ns >= (since_ns or 0) and (not until_ns or event.time_ns <= until_ns):
                    subscription.offer(event)
        if not subscription.closed:
            self._subscriptions.add(subscription)
        return subscription


class _Events:
    """A queue that knows how many bytes its events hold."""

    def __init__(self) -> None:
        self._events: deque[tuple[Event, int]] = deque()
        self.size = 0

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        return (event for event, _ in self._events)

    def append(self, event: Event) -> None:
        size = sum(len(key) + len(value) + _ATTRIBUTE_COST for key, value in event.attributes.items())
        self._events.append((event, size))
        self.size += size

    def popleft(self) -> Event:
        event, size = self._events.popleft()
        self.size -= size
        return event


class Subscription:
    """An asynchronous iterator of events for one reader."""

    def __init__(self, until_ns: int | None, filters: Filters) -> None:
        self._filters = filters
        self._queue = _Events()
        self._waiter: asyncio.Future[None] | None = None
        self._deadline: float | None = None
        self.closed = False
        """Nothing more will be queued."""
        if until_ns:
            # The monotonic clock: a jump of the wall clock must not end or prolong the stream.
            self._deadline = time.monotonic() + (until_ns - time.time_ns()) / 1e9

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            remaining = None if self._deadline is None else self._deadline - time.monotonic()
            if self.closed or (remaining is not None and remaining <= 0):
                await self.aclose()
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait_for(self._waiter, remaining)
            except TimeoutError:
                continue
            finally:
                self._waiter = None
        return self._queue.popleft()

    async def aclose(self) -> None:
        """Leave: nothing is queued any more."""
        self.closed = True
        self._wake()

    def offer(self, event: Event) -> None:
        """Queue `event` if it fits the filters; the last place is kept for the marker of a reader too slow."""
        if self.closed or not matches(event, self._filters):
            return
        if len(self._queue) >= QUEUE - 1 or self._queue.size > MAX_BYTES:
            event = Event(
                kind="daemon",
                action="dropped",
                actor="",
                attributes={"reason": "the reader did not keep up"},
                time_ns=event.time_ns,
            )
            self.closed = True
        self._queue.append(event)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def matches(event: Event, filters: Filters) -> bool:
    """Docker's rules: names and ids by prefix, labels by key or key=value, the rest exact."""
    return (
        _action_fits(event, filters.get("event"))
        and _exact(filters.get("type"), event.kind)
        and _exact(filters.get("scope"), "local")
        and all(_named(filters.get(key), event) for key in _NAMED)
        and _image_fits(event, filters.get("image"))
        and all(_labelled(label, event.attributes) for label in filters.get("label", ()))
    )


def _exact(wanted: Collection[str] | None, value: str) -> bool:
    return not wanted or value in wanted


def _prefix(wanted: Collection[str] | None, value: str) -> bool:
    return not wanted or any(value.startswith(want) for want in wanted)


def _named(wanted: Collection[str] | None, event: Event) -> bool:
    return not wanted or _prefix(wanted, event.actor) or _prefix(wanted, event.attributes.get("name", ""))


def _action_fits(event: Event, wanted: Collection[str] | None) -> bool:
    # "exec_create: ls" carries a value: a filter on the bare action asks for its prefix.
    return _prefix(wanted, event.action) if _WITH_DETAIL.intersection(wanted or ()) else _exact(wanted, event.action)


def _image_fits(event: Event, wanted: Collection[str] | None) -> bool:
    if not wanted:
        return True
    image = event.attributes.get("name" if event.kind == "image" else "image", "")
    return any(value in wanted for value in (event.actor, image, _repository(event.actor), _repository(image)))


def _repository(image: str) -> str:
    """Turn "nginx:1.27" into "nginx"; what is no reference stays as it is."""
    try:
        return reference.parse(image).familiar_name()
    except EngineError:
        return image


def _labelled(wanted: str, attributes: Mapping[str, str]) -> bool:
    key, equals, value = wanted.partition("=")
    return key in attributes and (not equals or attributes[key] == value)
