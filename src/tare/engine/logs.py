"""Reader of json-file logs: rotated files, tail, since/until, follow. The shim writes them, the daemon only reads.

A log is `<path>` and, when rotated, `<path>.1` (newer) .. `<path>.n` (older); a line is one JSON object
{"log": "text\\n", "stream": "stdout"|"stderr", "time": RFC 3339 with up to 9 digits and Z, "attrs"?: {..}}. Files are
held by descriptor and told apart by inode, so a rotation under the reader loses and repeats nothing; a line torn by a
crash is left out, as is one that is no JSON. Runs in the daemon's loop: blocks of 256 KiB, decoded in one call, with
the loop's turn in between. 200 MB (2 million lines) take about half a second.

Deliberately absent: writing, rotating, and the question whether somebody may read (containers.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote_plus

import msgspec

from tare.linux import libc

__all__ = ["Selection", "Watches", "read", "snapshot"]

BLOCK = 256 * 1024
MAX_LINE = 1 << 20
"""A line above this is damage: the shim cuts at 16 KiB, which JSON may make six times longer."""
MAX_FILES = 1000
_HEADER = struct.Struct(">BxxxL")
_CHANNEL = {"stdout": 1, "stderr": 2}
_EVENT = struct.Struct("iIII")
# inotify(7): IN_MODIFY, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_ONLYDIR
_MASK = 0x2 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x01000000
_IGNORED = 0x8000
_YEAR_9999 = 253_402_300_799
"""Its last second, which is datetime's last."""


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """What of a log a client wants, and how. Times in ns since the epoch, None = unbounded; `tail` None = all."""

    stdout: bool = True
    stderr: bool = True
    since_ns: int | None = None
    until_ns: int | None = None
    timestamps: bool = False
    tail: int | None = None
    details: bool = False
    mux: bool = False
    """8-byte stdcopy headers (a container without a terminal)."""


class _Text(msgspec.Struct, gc=False):
    log: str = ""
    stream: str = "stdout"


class _Entry(_Text, gc=False):
    time: str = ""
    attrs: dict[str, str] | None = None


async def read(
    path: str, selection: Selection, *, ended: asyncio.Future[Any] | None = None, watches: Watches | None = None
) -> AsyncIterator[bytes]:
    """The bytes for the client. With `watches` it follows until `ended` is done and everything is read, or `until_ns`.

    A log that is not there yet is empty. OSError if it cannot be read.
    """
    tail = _Tail(path, selection)
    try:
        if watches is None:
            async for piece in tail.rest():
                yield piece
            return
        with watches.watch(os.path.dirname(path)) as changed:
            if ended is not None:
                ended.add_done_callback(lambda _: changed.set())
            while not tail.done:
                changed.clear()
                # Asked before reading: what was written before the end is then seen by this very pass.
                last = ended is None or ended.done()
                async for piece in tail.rest():
                    yield piece
                if last or tail.done:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), tail.remaining())
    finally:
        tail.close()


async def snapshot(path: str, selection: Selection) -> bytes:
    """Everything selected at once; for short logs and tests."""
    return b"".join([piece async for piece in read(path, selection)])


class _Tail:
    """The reading position: open files, oldest first, and what is to be done with their lines."""

    def __init__(self, path: str, selection: Selection) -> None:
        self._path = path
        self._render = _Render(selection)
        self._until_ns = selection.until_ns
        self._files = _open_all(path)
        if selection.since_ns is not None:
            self._skip(lambda file: file.modified_ns() < (selection.since_ns or 0))
        if selection.tail is not None:
            self._seek(selection.tail)

    @property
    def done(self) -> bool:
        """Nothing that comes can be selected any more."""
        return self._render.past_until

    def remaining(self) -> float | None:
        """Seconds until `until`, None without one. When they are over the next pass is the last."""
        if self._until_ns is None:
            return None
        remaining = (self._until_ns - time.time_ns()) / 1e9
        if remaining <= 0:
            self._render.past_until = True
        return max(remaining, 0)

    async def rest(self) -> AsyncIterator[bytes]:
        """Everything from the position to the end of the newest file."""
        while not self.done:
            if not self._files:
                self._files = _open_all(self._path)
                if not self._files:
                    return
            current = self._files[0]
            async for piece in self._drain(current):
                yield piece
            if len(self._files) == 1:
                newer = self._successors(current)
                if newer is None:
                    return
                # The writer renames only after its last write: what it wrote since our end of file is read now.
                async for piece in self._drain(current):
                    yield piece
                self._files += newer
            current.close()
            del self._files[0]

    def close(self) -> None:
        for file in self._files:
            file.close()
        self._files = []

    async def _drain(self, file: _File) -> AsyncIterator[bytes]:
        while not self.done and (lines := file.lines()) is not None:
            if lines and (piece := self._render(lines)):
                yield piece
            await asyncio.sleep(0)

    def _successors(self, current: _File) -> list[_File] | None:
        """The files newer than `current`, oldest first; None while it is the newest."""
        try:
            newest = os.stat(self._path)
        except FileNotFoundError:
            return None
        if (newest.st_dev, newest.st_ino) == current.identity:
            return None
        files = _open_all(self._path)
        for index, file in enumerate(files):
            if file.identity == current.identity:
                for older in files[: index + 1]:
                    older.close()
                return files[index + 1 :]
        return files

    def _skip(self, unwanted: Callable[[_File], bool]) -> None:
        while len(self._files) > 1 and unwanted(self._files[0]):
            self._files.pop(0).close()

    def _seek(self, count: int) -> None:
        """To the last `count` lines, of whatever stream or time: as Docker counts them."""
        for index in range(len(self._files) - 1, -1, -1):
            found = self._files[index].seek_lines_from_end(count)
            count -= found
            if count <= 0 or index == 0:
                for file in self._files[:index]:
                    file.close()
                del self._files[:index]
                return


class _File:
    """One log file by descriptor, its position, and the torn rest of a line at the end of what was read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        status = os.fstat(fd)
        self.identity = (status.st_dev, status.st_ino)
        self._position = 0
        self._rest = b""

    def close(self) -> None:
        os.close(self._fd)

    def modified_ns(self) -> int:
        return os.fstat(self._fd).st_mtime_ns

    def lines(self) -> bytes | None:
        """The next whole lines, b"" if the block ends none, None at the end of the file."""
        block = os.pread(self._fd, BLOCK, self._position)
        if not block:
            if os.fstat(self._fd).st_size < self._position:
                # Emptied in place (truncate -s 0): what comes now is new.
                self._position, self._rest = 0, b""
                return b""
            return None
        self._position += len(block)
        end = block.rfind(b"\n") + 1
        if not end:
            self._rest = self._rest + block if len(self._rest) < MAX_LINE else b""
            return b""
        lines = self._rest + block[:end] if self._rest else block[:end]
        self._rest = block[end:]
        return lines

    def seek_lines_from_end(self, count: int) -> int:
        """Go before the last `count` whole lines, or to the start; how many whole lines lie ahead."""
        position, found = os.fstat(self._fd).st_size, 0
        while position:
            start = max(0, position - BLOCK)
            block = os.pread(self._fd, position - start, start)
            here = block.count(b"\n")
            if found + here > count:
                at = len(block)
                for _ in range(count - found + 1):
                    at = block.rfind(b"\n", 0, at)
                self._position = start + at + 1
                return count
            found += here
            position = start
        self._position = 0
        return found


def _open_all(path: str) -> list[_File]:
    """The log's files, oldest first. One that a rotation shows twice during the look is taken once."""
    descriptors = []
    for number in range(MAX_FILES):
        try:
            descriptors.append(os.open(f"{path}.{number}" if number else path, os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            # Between rename and create the newest name is missing for an instant.
            if number:
                break
    files: dict[tuple[int, int], _File] = {}
    for descriptor in reversed(descriptors):
        file = _File(descriptor)
        if file.identity in files:
            file.close()
        else:
            files[file.identity] = file
    return list(files.values())


class _Render:
    """Whole lines in, the client's bytes out."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._plain = not (
            selection.timestamps
            or selection.details
            or selection.since_ns is not None
            or selection.until_ns is not None
        )
        self._decoder: msgspec.json.Decoder[_Text] | msgspec.json.Decoder[_Entry] = (
            msgspec.json.Decoder(_Text) if self._plain else msgspec.json.Decoder(_Entry)
        )
        self._wanted = {name for name in _CHANNEL if getattr(selection, name)}
        self._since = "" if selection.since_ns is None else _stamp(selection.since_ns).rstrip("0").rstrip(".")
        self._until = None if selection.until_ns is None else _stamp(selection.until_ns)
        self._headers: dict[str, dict[int, bytes]] = {name: {} for name in self._wanted}
        self.past_until = False

    def __call__(self, lines: bytes) -> bytes:
        entries: list[_Text] | list[_Entry]
        try:
            entries = self._decoder.decode_lines(lines)
        except (msgspec.DecodeError, UnicodeDecodeError):
            entries = self._salvage(lines)
        if not self._plain:
            entries = self._dressed(entries)
        if not self._selection.mux:
            if len(self._wanted) == len(_CHANNEL):
                return "".join([entry.log for entry in entries]).encode()
            return "".join([entry.log for entry in entries if entry.stream in self._wanted]).encode()
        return self._framed(entries)

    def _framed(self, entries: list[_Text] | list[_Entry]) -> bytes:
        headers = self._headers
        out: list[bytes] = []
        for entry in entries:
            known = headers.get(entry.stream)
            if known is None:
                continue
            data = entry.log.encode()
            size = len(data)
            header = known.get(size)
            if header is None:
                header = known[size] = _HEADER.pack(_CHANNEL[entry.stream], size)
            out += (header, data)
        return b"".join(out)

    def _dressed(self, entries: list[_Text] | list[_Entry]) -> list[_Text]:
        """Those within the times, with timestamp and details before the text."""
        chosen: list[_Text] = []
        for entry in entries:
            assert isinstance(entry, _Entry)
            # Without the Z, digits compare as text whether trailing zeros are written or not.
            stamp = entry.time[:-1]
            if stamp < self._since:
                continue
            if self._until is not None and stamp > self._until:
                self.past_until = True
                break
            text = entry.log
            if self._selection.details:
                text = f"{_attributes(entry.attrs)} {text}"
            if self._selection.timestamps:
                text = f"{_padded(stamp)}Z {text}"
            chosen.append(_Text(text, entry.stream))
        return chosen

    def _salvage(self, lines: bytes) -> list[_Text]:
        """Line by line: a damaged one is left out, but a whole one behind a torn one is saved."""
        entries: list[_Text] = []
        for line in lines.splitlines():
            for start in (0, line.rfind(b'{"log":')):
                if start < 0 or len(line) > MAX_LINE:
                    break
                try:
                    entries.append(self._decoder.decode(line[start:]))
                    break
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue
        return entries


def _stamp(time_ns: int) -> str:
    """RFC 3339 in UTC with nine digits, without the Z. Beyond 1970 and 9999 no log has lines: those stand for it."""
    seconds, rest = divmod(max(time_ns, 0), 1_000_000_000)
    return f"{datetime.fromtimestamp(min(seconds, _YEAR_9999), UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}"


def _padded(stamp: str) -> str:
    if len(stamp) == 29:
        return stamp
    whole, _, fraction = stamp.partition(".")
    return f"{whole}.{fraction:0<9.9}"


def _attributes(attrs: dict[str, str] | None) -> str:
    """`--details`: "k=v,k=v" sorted, form-encoded as moby's attrsByteSlice."""
    return ",".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in sorted((attrs or {}).items()))


class Watches:
    """One inotify descriptor for all followed directories: max_user_instances is 128 on most hosts."""

    def __init__(self) -> None:
        self._fd = -1
        self._events: dict[int, set[asyncio.Event]] = {}

    @contextlib.contextmanager
    def watch(self, directory: str) -> Iterator[asyncio.Event]:
        """An event that is set at every change in `directory`. OSError if it is not there or inotify is used up."""
        if self._fd < 0:
            self._fd = libc.inotify_init1()
            asyncio.get_running_loop().add_reader(self._fd, self._readable)
        number = libc.inotify_add_watch(self._fd, directory, _MASK)
        changed = asyncio.Event()
        self._events.setdefault(number, set()).add(changed)
        try:
            yield changed
        finally:
            waiting = self._events.get(number, set())
            waiting.discard(changed)
            if not waiting and self._events.pop(number, None) is not None and self._fd >= 0:
                with contextlib.suppress(OSError):
                    libc.inotify_rm_watch(self._fd, number)

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        offset = 0
        while offset + _EVENT.size <= len(data):
            number, mask, _, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size + length
            # -1 is an overflow of the queue: everybody looks. A watch that is gone (directory removed) is forgotten.
            touched = list(self._events.values()) if number == -1 else [self._events.get(number, set())]
            for events in touched:
                for event in events:
                    event.set()
            if mask & _IGNORED:
                self._events.pop(number, None)
