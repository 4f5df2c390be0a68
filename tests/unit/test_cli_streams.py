"""The copy loop, the frames, the detach keys."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest
from cli_fake_daemon import HANG_S, frame
from hypothesis import given
from hypothesis import strategies as st

from tare.cli.client import Connection, ProtocolError
from tare.cli.signals import Signals
from tare.cli.streams import Demultiplexer, Detach, Duplex, Escape, copy_frames, detach_keys

FRAMES = st.lists(st.tuples(st.integers(1, 2), st.binary(max_size=50)), max_size=8)


@given(FRAMES, st.integers(1, 20))
def test_frames_in_pieces_of_any_size(frames: list[tuple[int, bytes]], step: int) -> None:
    data = b"".join(frame(stream, payload) for stream, payload in frames)
    splitter = Demultiplexer({1: 1, 2: 2})
    got = {1: b"", 2: b""}
    for start in range(0, len(data), step):
        for fd, piece in splitter.feed(data[start : start + step]):
            got[fd] += bytes(piece)
    assert splitter.whole
    for stream in (1, 2):
        assert got[stream] == b"".join(payload for number, payload in frames if number == stream)


def test_wrong_frames() -> None:
    with pytest.raises(ProtocolError, match="unrecognized input header: 104"):
        Demultiplexer({1: 1}).feed(b"hello, raw text")
    with pytest.raises(ProtocolError, match="error from daemon in stream: log is gone"):
        Demultiplexer({1: 1}).feed(frame(3, b"log is gone"))
    cut = Demultiplexer({1: 1})
    assert bytes(cut.feed(frame(1, b"abc")[:-1])[0][1]) == b"ab"
    assert not cut.whole


def test_a_stream_without_target_is_dropped() -> None:
    assert Demultiplexer({1: None, 2: 2}).feed(frame(1, b"x") + frame(2, b"y")) == [(2, b"y")]


@pytest.mark.parametrize(
    ("text", "keys"),
    [("ctrl-p,ctrl-q", b"\x10\x11"), ("a,b", b"ab"), ("ctrl-@,ctrl-\\,ctrl-_", b"\x00\x1c\x1f"), ("DEL", b"\x7f")],
)
def test_detach_keys(text: str, keys: bytes) -> None:
    assert detach_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-pp", "ab", "ctrl-A", "a,,b"])
def test_wrong_detach_keys(text: str) -> None:
    with pytest.raises(ValueError, match="Unknown character"):
        detach_keys(text)


def test_escape() -> None:
    escape = Escape(b"\x10\x11")
    assert escape.feed(b"ab\x10") == b"ab"
    assert escape.feed(b"c") == b"\x10c"
    assert escape.feed(b"\x10") == b""
    with pytest.raises(Detach):
        escape.feed(b"\x11")
    with pytest.raises(Detach):
        Escape(b"\x10\x11").feed(b"x\x10\x11y")


@given(st.lists(st.binary(max_size=4).filter(lambda b: b"\x10" not in b), max_size=10))
def test_escape_loses_nothing(pieces: list[bytes]) -> None:
    escape = Escape(b"aab")
    try:
        out = b"".join(escape.feed(piece) for piece in pieces)
    except Detach:
        assert b"aab" in b"".join(pieces)
    else:
        assert out + escape.held == b"".join(pieces)


class Pipes:
    """A Duplex between pipes of the test and a socketpair."""

    def __init__(self) -> None:
        self.mine, theirs = socket.socketpair()
        self.connection = Connection(theirs)
        self.stdin, self.feed = os.pipe()
        self.output, self.stdout = os.pipe()
        self.signals = Signals(())
        self.open = {self.stdin, self.feed, self.output, self.stdout}

    def duplex(self, *, framed: bool, escape: Escape | None = None) -> Duplex:
        return Duplex(
            self.connection, self.signals, lambda: None, stdin=self.stdin, stdout=self.stdout, stderr=self.stdout,
            framed=framed, escape=escape,
        )  # fmt: skip

    def shut(self, fd: int) -> None:
        self.open.discard(fd)
        os.close(fd)

    def close(self) -> None:
        self.signals.close()
        self.mine.close()
        self.connection.close()
        for fd in self.open:
            os.close(fd)


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    pipes = Pipes()
    yield pipes
    pipes.close()


def read_all(fd: int) -> bytes:
    out = b""
    while data := os.read(fd, 65536):
        out += data
    return out


def test_both_directions_and_half_close(pipes: Pipes) -> None:
    def other() -> None:
        got = b""
        while data := pipes.mine.recv(100):
            got += data
        pipes.mine.sendall(b"got " + got)
        pipes.mine.close()

    thread = threading.Thread(target=other)
    thread.start()
    os.write(pipes.feed, b"hello")
    pipes.shut(pipes.feed)
    pipes.duplex(framed=False).run()
    thread.join(HANG_S)
    pipes.shut(pipes.stdout)
    assert read_all(pipes.output) == b"got hello"


def test_first_bytes_that_came_with_the_head(pipes: Pipes) -> None:
    pipes.connection.buffer = frame(1, b"early ")
    pipes.mine.sendall(frame(2, b"late"))
    pipes.mine.shutdown(socket.SHUT_WR)
    pipes.duplex(framed=True).run()
    pipes.shut(pipes.stdout)
    assert read_all(pipes.output) == b"early late"


def test_no_deadlock_when_nobody_reads_first(pipes: Pipes) -> None:
    """The container writes 2 MB before it reads anything, and we have 2 MB for it."""
    size = 2 << 20
    got: list[bytes] = []

    def container() -> None:
        pipes.mine.sendall(b"o" * size)
        while data := pipes.mine.recv(65536):
            got.append(data)
        pipes.mine.close()

    def user() -> None:
        left = size
        while left:
            left -= os.write(pipes.feed, b"i" * min(left, 65536))
        pipes.shut(pipes.feed)

    outputs: list[bytes] = []
    reader = threading.Thread(target=lambda: outputs.append(read_all(pipes.output)))
    threads = [threading.Thread(target=container), threading.Thread(target=user), reader]
    for thread in threads:
        thread.start()
    pipes.duplex(framed=False).run()
    pipes.shut(pipes.stdout)
    for thread in threads:
        thread.join(HANG_S)
    assert len(outputs[0]) == size
    assert sum(map(len, got)) == size


def test_detach_ends_the_loop(pipes: Pipes) -> None:
    os.write(pipes.feed, b"x\x10\x11")
    with pytest.raises(Detach):
        pipes.duplex(framed=False, escape=Escape(b"\x10\x11")).run()


def test_a_lost_reader_is_a_broken_pipe(pipes: Pipes) -> None:
    pipes.shut(pipes.output)
    pipes.mine.sendall(b"x")
    with pytest.raises(BrokenPipeError):
        pipes.duplex(framed=False).run()


def test_a_stream_cut_inside_a_frame(pipes: Pipes) -> None:
    pipes.mine.sendall(frame(1, b"abc")[:-1])
    pipes.mine.close()
    with pytest.raises(ProtocolError, match="unexpected EOF"):
        pipes.duplex(framed=True).run()


def test_copy_frames(pipes: Pipes) -> None:
    copy_frames([frame(1, b"a") + frame(2, b"b")[:5], frame(2, b"b")[5:]], stdout=pipes.stdout, stderr=pipes.stdout)
    pipes.shut(pipes.stdout)
    assert read_all(pipes.output) == b"ab"
