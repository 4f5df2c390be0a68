"""Events, the state table, names, and the files of the host's side."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from pathlib import Path

import pytest

from tare.engine import events as events_module
from tare.engine import files, names, state
from tare.engine.events import MAX_BYTES, Events, matches
from tare.engine.model import Container, ContainerSpec, Event, MountSpec, Namespaces, State
from tare.errors import Conflict, Invalid, Unavailable, Unchanged


def box(at: State) -> Container:
    return Container(id="c" * 64, name="box", spec=ContainerSpec(image="i"), image_id="sha256:0", state=at)


def test_the_table_is_what_the_design_says() -> None:
    steps = {(one.value, other.value) for one, others in state.STEPS.items() for other in others}
    assert steps == {
        ("created", "running"), ("created", "removing"), ("running", "paused"), ("running", "exited"),
        ("paused", "running"), ("paused", "exited"), ("exited", "running"), ("exited", "restarting"),
        ("exited", "removing"), ("restarting", "running"), ("restarting", "exited"), ("removing", "dead"),
        ("dead", "removing"),
    }  # fmt: skip


@pytest.mark.parametrize(("at", "to"), [(one, other) for one in State for other in State])
def test_every_step_is_allowed_or_refused_in_one_kind(at: State, to: State) -> None:
    if to in state.STEPS[at]:
        state.check(box(at), to)
    else:
        with pytest.raises((Conflict, Unchanged)) as caught:
            state.check(box(at), to)
        assert caught.type is Conflict or at is to


@pytest.mark.parametrize(
    ("at", "to", "kind", "text"),
    [
        (State.RUNNING, State.RUNNING, Unchanged, "container is already running"),
        (State.EXITED, State.EXITED, Unchanged, "container is already stopped"),
        (State.PAUSED, State.PAUSED, Conflict, f"container {'c' * 64} is already paused"),
        (State.CREATED, State.PAUSED, Conflict, f"container {'c' * 64} is not running"),
        (State.DEAD, State.RUNNING, Conflict, "container is marked for removal and cannot be started"),
        (
            State.RUNNING,
            State.REMOVING,
            Conflict,
            "container is running: stop the container before removing or force remove",
        ),
        (State.PAUSED, State.REMOVING, Conflict, "container is paused and must be unpaused first"),
    ],
)
def test_dockers_reasons(at: State, to: State, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        state.check(box(at), to)
    assert str(caught.value) == text


async def drain(subscription: events_module.Subscription) -> list[str]:
    await subscription.aclose()
    return [event.action async for event in subscription]


def test_live_events_in_order_and_only_from_now() -> None:
    async def scene() -> None:
        events = Events()
        events.emit("container", "early", "1")
        subscription = events.subscribe()
        waiting = asyncio.ensure_future(anext(subscription))
        await asyncio.sleep(0)
        events.emit("container", "start", "1", {"name": "x"})
        event = await waiting
        assert (event.kind, event.action, event.actor, event.attributes) == ("container", "start", "1", {"name": "x"})
        events.emit("image", "tag", "2")
        assert await drain(subscription) == ["tag"]

    asyncio.run(scene())


def test_since_until_and_the_ring() -> None:
    async def scene() -> None:
        events = Events()
        for number in range(300):
            events.emit("container", str(number), "1")
        assert await drain(events.subscribe(since_ns=1)) == [str(n) for n in range(44, 300)]
        past = events.subscribe(since_ns=1, until_ns=time.time_ns())
        assert len([event async for event in past]) == 256
        soon = events.subscribe(until_ns=time.time_ns() + 30_000_000)
        events.emit("container", "last", "1")
        assert [event.action async for event in soon][-1] == "last"
        assert [event async for event in events.subscribe(until_ns=1)] == []

    asyncio.run(scene())


def test_a_slow_reader_is_dropped_with_a_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "QUEUE", 5)

    async def scene() -> None:
        events = Events()
        subscription = events.subscribe()
        for number in range(10):
            events.emit("container", str(number), "1")
        got = [event.action async for event in subscription]
        assert got == ["0", "1", "2", "3", "dropped"]

    asyncio.run(scene())


def test_a_forgotten_subscription_costs_nothing() -> None:
    async def scene() -> None:
        events = Events()
        events.subscribe()
        gc.collect()
        assert len(events._subscriptions) == 0

    asyncio.run(scene())


def test_filters() -> None:
    start = Event(
        kind="container", action="start", actor="abc123", attributes={"name": "web", "image": "nginx:1", "l": "v"}
    )
    health = Event(kind="container", action="exec_create: ls -l", actor="abc123", attributes={"image": "x/y@sha256:z"})
    tag = Event(kind="image", action="tag", actor="sha256:1", attributes={"name": "docker.io/library/nginx:1"})
    assert matches(start, {})
    assert matches(start, {"container": ["abc"]}) and matches(start, {"container": ["web"]})
    assert not matches(start, {"container": ["other"]}) and not matches(tag, {"container": ["web"]})
    assert matches(start, {"event": ["stop", "start"]}) and not matches(start, {"event": ["sta"]})
    assert matches(health, {"event": ["exec_create"]}) and not matches(health, {"event": ["exec_start"]})
    assert matches(start, {"image": ["nginx"]}) and matches(start, {"image": ["nginx:1"]})
    assert matches(tag, {"image": ["nginx"]}) and not matches(start, {"image": ["redis"]})
    assert matches(start, {"label": ["l"]}) and matches(start, {"label": ["l=v"]})
    assert not matches(start, {"label": ["l=v", "m"]}) and not matches(start, {"label": ["l=w"]})
    assert matches(start, {"type": ["container"], "scope": ["local"]}) and not matches(start, {"type": ["image"]})
    assert not matches(start, {"scope": ["swarm"]})


@pytest.mark.parametrize("name", ["ab", "/web", "a.b-c_d", "0x", "A" * 255])
def test_names_that_are_some(name: str) -> None:
    assert names.check(name) == name.removeprefix("/")


@pytest.mark.parametrize("name", ["a", "", "-ab", "a b", "a/b", "../x", "é1", "ab\n", "a\0b", "//ab", "A" * 256])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(Invalid) as caught:
        names.check(name)
    assert str(caught.value) == f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"


def test_suggested_names_are_names() -> None:
    assert all(names.check(names.suggest(attempt)).count("_") == 1 for attempt in range(8) for _ in range(50))


def test_hosts_and_resolv_conf(tmp_path: Path) -> None:
    spec = ContainerSpec(
        image="i",
        extra_hosts=("db:10.0.0.1", "six=2001:db8::1", "seven:[::2]"),
        dns_search=("a.example", "b.example"),
    )
    assert files.hosts(spec).splitlines()[0] == "127.0.0.1\tlocalhost"
    assert files.hosts(spec).splitlines()[-3:] == ["10.0.0.1\tdb", "2001:db8::1\tsix", "::2\tseven"]
    host = "# x\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nsearch old\noptions ndots:2\n"
    assert files.resolv_conf(spec, host, keep_loopback=False) == (
        "nameserver 9.9.9.9\nsearch a.example b.example\noptions ndots:2\n"
    )
    own = ContainerSpec(image="i", dns=("1.1.1.1",), dns_search=(".",), dns_options=("rotate",))
    assert files.resolv_conf(own, host, keep_loopback=True) == "nameserver 1.1.1.1\noptions rotate\n"
    for bad in ("db:nowhere", "db"):
        with pytest.raises(Invalid, match="invalid IP address"):
            files.hosts(ContainerSpec(image="i", extra_hosts=(bad,)))
    with pytest.raises(Invalid, match="unable to derive the IP value for host-gateway"):
        files.hosts(ContainerSpec(image="i", extra_hosts=("h:host-gateway",)))
    files.write(spec, "me", tmp_path)
    assert (tmp_path / "hostname").read_text() == "me\n"
    shared = ContainerSpec(image="i", namespaces=Namespaces(network="host"), extra_hosts=("h:host-gateway",))
    files.write(shared, "me", tmp_path)
    assert (tmp_path / "hosts").read_text().endswith("127.0.0.1\th\n")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_sources_of_binds(tmp_path: Path) -> None:
    def spec(path: Path, *, create: bool) -> ContainerSpec:
        mount = MountSpec(type="bind", target="/x", source=str(path), create_source=create)
        return ContainerSpec(image="i", mounts=(mount,))

    before = os.umask(0o077)
    try:
        files.make_sources(spec(tmp_path / "a/b", create=True))
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755 == (tmp_path / "a/b").stat().st_mode & 0o777
    with pytest.raises(Invalid, match="bind source path does not exist: .*/c"):
        files.make_sources(spec(tmp_path / "c", create=False))
    (tmp_path / "f").touch()
    with pytest.raises(Invalid, match="error while creating mount source path"):
        files.make_sources(spec(tmp_path / "f/x", create=True))


def test_ring_and_queue_are_bounded_in_bytes() -> None:
    async def main() -> None:
        events = Events()
        slow = events.subscribe()
        labels = {str(number): "x" * 10 for number in range(10_000)}
        for _ in range(20):
            events.emit("container", "start", "a", labels)
        cost = MAX_BYTES // (10_000 * 200)
        ring = events.subscribe(since_ns=1)
        await ring.aclose()
        kept = [event async for event in ring]
        assert 0 < len(kept) <= cost + 1 and all(event.attributes is labels for event in kept)
        heard = [event async for event in slow]
        assert len(heard) <= cost + 2 and heard[-1].action == "dropped"

    asyncio.run(main())


def test_a_file_system_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PATIENCE_S", 0.05)
    answers = threading.Event()

    async def main() -> None:
        with pytest.raises(Unavailable, match="the file system did not answer within"):
            await files.patiently(lambda _: answers.wait(30) and None, None)
        answers.set()
        mount = MountSpec(type="bind", source="/no/such", target="/t")
        with pytest.raises(Invalid, match="bind source path does not exist"):
            await files.patiently(files.make_sources, ContainerSpec(image="x", mounts=(mount,)))

    asyncio.run(main())
