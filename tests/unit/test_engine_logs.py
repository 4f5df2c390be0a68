"""The log reader against a model: rotation, tail, times, follow, damage."""

from __future__ import annotations

import asyncio
import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tare.engine import logs
from tare.engine.logs import Selection, Watches, read, snapshot

BASE = "2024-05-06T07:08:09"
BASE_NS = 1_714_979_289 * 10**9


def entry(text: str, stream: str = "stdout", time: str = f"{BASE}.5Z", **more: object) -> bytes:
    return json.dumps({"log": text, "stream": stream, "time": time, **more}).encode() + b"\n"


def frame(text: str, channel: int = 1) -> bytes:
    data = text.encode()
    return struct.pack(">BxxxL", channel, len(data)) + data


def shown(path: Path, **selection: object) -> bytes:
    return asyncio.run(snapshot(str(path), Selection(**selection)))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "x-json.log"


def test_frames_and_raw(log: Path) -> None:
    log.write_bytes(entry("out\n") + entry("err é\n", "stderr") + entry("part") + entry("odd\n", "stdin"))
    assert shown(log, mux=True) == frame("out\n") + frame("err é\n", 2) + frame("part")
    assert shown(log, mux=True, stdout=False) == frame("err é\n", 2)
    assert shown(log, stderr=False) == b"out\npart"


def test_missing_and_empty(log: Path) -> None:
    assert shown(log) == b""
    log.touch()
    assert shown(log, tail=5) == b""


def test_damage_costs_only_itself(log: Path) -> None:
    torn = b'{"log":"to'
    log.write_bytes(
        entry("a\n") + b"not json\n" + torn + entry("saved\n") + b'{"log": 1}\n' + b"\xff\xfe\n" + entry("b\n") + torn
    )
    assert shown(log) == b"a\nsaved\nb\n"


def test_a_line_without_end_is_not_kept(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_LINE", 1000)
    monkeypatch.setattr(logs, "BLOCK", 64)
    log.write_bytes(b"x" * 5000 + b"\n" + entry("after\n"))
    assert shown(log) == b"after\n"


def test_times_with_and_without_trailing_zeros(log: Path) -> None:
    stamps = [f"{BASE}Z", f"{BASE}.12Z", f"{BASE}.120000000Z", f"{BASE}.123Z", f"{BASE}.2Z", "2024-05-06T07:08:10Z"]
    log.write_bytes(b"".join(entry(f"{n}\n", time=stamp) for n, stamp in enumerate(stamps)))
    at = BASE_NS + 120_000_000
    assert shown(log, since_ns=at) == b"1\n2\n3\n4\n5\n"
    assert shown(log, since_ns=at + 1) == b"3\n4\n5\n"
    assert shown(log, until_ns=at) == b"0\n1\n2\n"
    assert shown(log, since_ns=at, until_ns=BASE_NS + 123_000_000) == b"1\n2\n3\n"
    assert shown(log, until_ns=at - 1) == b"0\n"
    for far in (10**21, -(10**21)):
        assert shown(log, since_ns=far) == (b"" if far > 0 else b"0\n1\n2\n3\n4\n5\n")
        assert shown(log, until_ns=far) == (b"" if far < 0 else b"0\n1\n2\n3\n4\n5\n")
    assert shown(log, timestamps=True, until_ns=at).splitlines() == [
        f"{BASE}.000000000Z 0".encode(), f"{BASE}.120000000Z 1".encode(), f"{BASE}.120000000Z 2".encode(),
    ]  # fmt: skip


def test_details(log: Path) -> None:
    log.write_bytes(entry("x\n", attrs={"b": "1 2", "a": "ü"}) + entry("y\n"))
    assert shown(log, details=True) == b"a=%C3%BC,b=1+2 x\n y\n"
    assert shown(log, details=True, timestamps=True).startswith(f"{BASE}.500000000Z a=%C3%BC,b=1+2 x\n".encode())


def test_old_files_are_not_read_for_since(log: Path) -> None:
    old = log.with_name(log.name + ".1")
    old.write_bytes(entry("old\n", time=f"{BASE}.9Z"))
    os.utime(old, ns=(1, 1))
    log.write_bytes(entry("new\n", time=f"{BASE}.9Z"))
    assert shown(log, since_ns=BASE_NS) == b"new\n"


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.text(max_size=30)), max_size=8), max_size=4),
    st.one_of(st.none(), st.integers(0, 30)),
    st.booleans(),
    st.sampled_from([1, 7, 64, 4096]),
    st.booleans(),
)
def test_tail_over_rotated_files_is_the_model(
    tmp_path_factory: pytest.TempPathFactory, files: list, tail: int | None, only_out: bool, block: int, torn: bool
) -> None:
    log = tmp_path_factory.mktemp("l") / "x-json.log"
    for number, lines in enumerate(reversed(files)):
        path = log if number == 0 else log.with_name(f"{log.name}.{number}")
        path.write_bytes(
            b"".join(entry(text + "\n", stream) for stream, text in lines) + (b'{"log":"t' if torn else b"")
        )
    before, logs.BLOCK = logs.BLOCK, block
    try:
        found = shown(log, tail=tail, stderr=not only_out, mux=True)
    finally:
        logs.BLOCK = before
    lines = [line for each in files for line in each]
    if tail is not None:
        lines = lines[len(lines) - min(tail, len(lines)) :]
    expected = [
        frame(text + "\n", 1 if stream == "stdout" else 2)
        for stream, text in lines
        if stream == "stdout" or not only_out
    ]
    assert found == b"".join(expected)


class Writer:
    """As the shim's log file: append, rename to .1, .2 when asked."""

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path, self.keep = path, keep
        path.touch()

    def append(self, data: bytes) -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write(data)

    def write(self, *texts: str) -> None:
        for text in texts:
            self.append(entry(text + "\n"))

    def rotate(self) -> None:
        for number in range(self.keep, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            newer = self.path if number == 1 else self.path.with_name(f"{self.path.name}.{number - 1}")
            if newer.exists():
                newer.rename(older)
        self.path.touch()


def follow(scene, log: Path, **selection: object) -> list[str]:
    """Lines a follower gets while `scene(writer, ended)` plays."""

    async def play() -> bytes:
        ended = asyncio.get_running_loop().create_future()
        watches = Watches()
        got = bytearray()

        async def reader() -> None:
            async for piece in read(str(log), Selection(**selection), ended=ended, watches=watches):
                got.extend(piece)

        task = asyncio.ensure_future(reader())
        await asyncio.sleep(0.01)
        await scene(ended, got)
        await asyncio.wait_for(task, 10)
        assert watches._events == {}
        watches.close()
        return bytes(got)

    return asyncio.run(play()).decode().split()


async def until(check) -> None:
    async with asyncio.timeout(10):
        while not check():
            await asyncio.sleep(0.002)


def test_follow_ends_with_the_container_and_has_read_all(log: Path) -> None:
    writer = Writer(log)
    writer.write("a", "b")

    async def scene(ended: asyncio.Future, got: bytearray) -> None:
        await until(lambda: got == b"b\n")
        writer.write("c")
        await until(lambda: got == b"b\nc\n")
        writer.append(entry("d\n")[:10])
        await asyncio.sleep(0.01)
        writer.append(entry("d\n")[10:])
        writer.write("e")
        ended.set_result(None)

    assert follow(scene, log, tail=1) == ["b", "c", "d", "e"]


def test_follow_survives_rotation_without_gap_or_repeat(log: Path) -> None:
    writer = Writer(log)
    expected = [str(n) for n in range(400)]

    async def scene(ended: asyncio.Future, got: bytearray) -> None:
        for n in expected:
            writer.write(n)
            if int(n) % 20 == 19:
                writer.rotate()
            if int(n) % 7 == 0:
                await asyncio.sleep(0)
            if int(n) % 39 == 0:  # the reader may fall two files behind, not more: that is what is kept
                await until(lambda last=n: got.endswith(last.encode() + b"\n"))
        ended.set_result(None)

    assert follow(scene, log) == expected


def test_follow_a_log_that_comes_later_or_is_emptied(log: Path) -> None:
    async def scene(ended: asyncio.Future, got: bytearray) -> None:
        writer = Writer(log)
        writer.write("a")
        await until(lambda: got == b"a\n")
        os.truncate(log, 0)
        await asyncio.sleep(0.02)
        writer.write("b")
        await until(lambda: got == b"a\nb\n")
        ended.set_result(None)

    assert follow(scene, log) == ["a", "b"]


def test_follow_stops_at_until(log: Path) -> None:
    import time

    log.write_bytes(entry("a\n"))

    async def scene(ended: asyncio.Future, got: bytearray) -> None:
        await until(lambda: got == b"a\n")

    assert follow(scene, log, until_ns=time.time_ns() + 50_000_000) == ["a"]


def test_one_inotify_for_all_and_directories_may_vanish(tmp_path: Path) -> None:
    async def scene() -> None:
        watches = Watches()
        folder = tmp_path / "d"
        folder.mkdir()
        with watches.watch(str(folder)) as one, watches.watch(str(folder)) as two:
            (folder / "f").touch()
            await asyncio.wait_for(asyncio.gather(one.wait(), two.wait()), 5)
            one.clear()
            (folder / "f").unlink()
            folder.rmdir()
            await asyncio.wait_for(one.wait(), 5)
        with pytest.raises(OSError), watches.watch(str(folder)):
            pass
        watches.close()

    asyncio.run(scene())
