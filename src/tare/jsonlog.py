"""Docker's json-file log, written by the shim: one JSON object a line, lines of at most 16 KiB, bounded files.

`{"log":"text\\n","stream":"stdout","time":"2026-01-02T03:04:05.000000006Z"}`; a longer line is cut into entries, only
the last of which ends in "\\n". Rotation renames FILE -> FILE.1 -> FILE.2 ... A disk that is full loses lines, counts
them, and never stops the container.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from tare.linux.jsontext import quote

__all__ = ["JsonFile", "NoLog", "open_log"]

_ENTRY = 16 * 1024
"""Bytes of one entry at most, as Docker's copier."""


class NoLog:
    """The driver "none"."""

    __slots__ = ()

    def write(self, stream: int, data: bytes) -> None: ...

    def close(self) -> None: ...

    def reopen(self) -> None: ...


class JsonFile(NoLog):
    """Writer of one container's log. `max_size` bytes per file (0 = unbounded), `max_file` files in all."""

    __slots__ = ("_fd", "_max_file", "_max_size", "_path", "_pending", "_size", "_suffix", "dropped")

    def __init__(self, path: str, max_size: int, max_file: int) -> None:
        self._path = path
        self._max_size = max_size
        self._max_file = max(max_file, 1)
        self._pending = [b"", b"", b""]
        self._suffix = [b"", b',"stream":"stdout","time":"', b',"stream":"stderr","time":"']
        self.dropped = 0
        self._fd = -1
        self._size = 0
        self.reopen()

    def reopen(self) -> None:
        """Append to whatever file has the name now."""
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if self._fd >= 0:
            os.close(self._fd)  # only now: a number closed too early may be a client's socket by the next write
        self._fd = fd
        self._size = os.fstat(self._fd).st_size

    def write(self, stream: int, data: bytes) -> None:
        """Bytes of stream 1 or 2; an unfinished line waits for its end or for 16 KiB."""
        data = self._pending[stream] + data
        start, end = 0, data.rfind(b"\n") + 1
        lines: list[bytes] = []
        while start < end:
            stop = data.index(b"\n", start) + 1
            while stop - start > _ENTRY:
                cut = _cut(data, start)
                lines.append(data[start:cut])
                start = cut
            lines.append(data[start:stop])
            start = stop
        while len(data) - start >= _ENTRY:
            cut = _cut(data, start)
            lines.append(data[start:cut])
            start = cut
        self._pending[stream] = data[start:]
        if lines:
            self._emit(stream, lines)

    def _emit(self, stream: int, lines: list[bytes]) -> None:
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 1_000_000_000))
        tail = b'%s%s.%09dZ"}\n' % (self._suffix[stream], stamp.encode(), now % 1_000_000_000)
        batch: list[bytes] = []
        size = 0
        for line in lines:
            entry = b'{"log":' + quote(line.decode("utf-8", "replace")).encode() + tail
            if self._max_size and self._size + size + len(entry) > self._max_size and self._size + size:
                self._flush(batch)
                self._rotate()
                batch, size = [], 0
            batch.append(entry)
            size += len(entry)
        self._flush(batch)

    def _flush(self, batch: list[bytes]) -> None:
        view = memoryview(b"".join(batch))
        while view:
            try:
                written = os.write(self._fd, view)
            except OSError:
                # ENOSPC, EIO: the app goes on. A torn line is closed by the next write's reader, which skips it.
                self.dropped += len(batch)
                return
            self._size += written
            view = view[written:]

    def _rotate(self) -> None:
        with suppress(OSError):
            if self._max_file == 1:
                os.ftruncate(self._fd, 0)
                self._size = 0
                return
            for number in range(self._max_file - 1, 1, -1):
                with suppress(FileNotFoundError):
                    os.rename(f"{self._path}.{number - 1}", f"{self._path}.{number}")
            os.rename(self._path, f"{self._path}.1")
            self.reopen()

    def close(self) -> None:
        """Write what is left of unfinished lines."""
        for stream in (1, 2):
            if self._pending[stream]:
                lines, self._pending[stream] = [self._pending[stream]], b""
                self._emit(stream, lines)
        os.close(self._fd)


def _cut(data: bytes, start: int) -> int:
    """Where an entry of at most 16 KiB ends: in front of a UTF-8 character that would be cut in two."""
    end = start + _ENTRY
    for back in range(1, 4):
        byte = data[end - back]
        if byte & 0xC0 != 0x80:  # the first byte of the last character: does all of it fit?
            length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return end - back if length > back else end
    return end


def open_log(driver: str, path: str, max_size: int, max_file: int) -> NoLog:
    """A writer for bundle.log."""
    return JsonFile(path, max_size, max_file) if driver == "json-file" else NoLog()
