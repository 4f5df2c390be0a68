"""The store's worker as the daemon sees it: job and answer types, and `Worker`, which runs one job in one process.

Runs in the daemon. Everything that parses or writes an archive happens in the child (store/worker.py), so a hostile
layer costs one process. A job is one JSON line on the child's stdin; the child answers with JSON lines on stdout, each
with a "kind". Descriptors named in a job (`archive`, `output`) are numbers in the daemon; `run` hands them over, keeps
the same numbers in the child and closes the daemon's copies.

Jobs (a tagged Struct each, daemon -> child):
```
{"kind":"load",   "archive":7, "ingest":"/d/ingest/x", "platform":"linux/amd64"}
{"kind":"import", "archive":7, "ingest":"/d/ingest/x", "staging":"/d/snapshots/9/fs", "config":{...}}
{"kind":"unpack", "archive":7, "staging":"/d/snapshots/9/fs", "digest":"sha256:..", "diff_id":"sha256:.."}
{"kind":"export", "output":8,  "layers":["/d/snapshots/9/fs", ...top to base], "whiteouts":false}
{"kind":"save",   "output":8,  "blobs":"/d/blobs", "images":[{"manifest":"sha256:..","tags":["docker.io/library/x:1"]}]}
```
Messages (child -> daemon):
```
{"kind":"progress","status":"Loading layer","id":"0123456789ab","current":1,"total":2}
{"kind":"need","layers":[{"diff_id":"sha256:..","chain_id":"sha256:..","parent":"" | chain id}]}      load only, once
{"kind":"done", ...}                                                                                  last, once
{"kind":"failed","error":"one sentence","invalid":true}                                               last, once
```
`need` lists every chain of every image in the archive, parents before children, each once. The daemon replies with one
line `{"kind":"staging","paths":{chain_id: absolute path of a fresh empty directory}}`; a chain left out is in the
store already, and its blob is then only checked against its diff id. The child unpacks a chain's own layer, not its
parents', into the directory. It reports `done` only when everything is verified and fsynced; before that, and after a
failure, both `ingest` and the staging directories are rubbish which the daemon removes.

`done` carries `images` (load, import), `blobs` (new files below `ingest`, to be renamed into the content store; some
may be there already) and `digest`, `size` (export: of the stream; unpack: of the unpacked tar).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

import tare
from tare.errors import Invalid, Unavailable
from tare.oci.digest import DigestField

__all__ = [
    "Blob",
    "Done",
    "ExportJob",
    "Failed",
    "ImportJob",
    "Job",
    "LoadJob",
    "LoadedImage",
    "LoadedLayer",
    "Message",
    "Need",
    "NeededLayer",
    "Progress",
    "SaveImage",
    "SaveJob",
    "Staging",
    "UnpackJob",
    "Worker",
    "feed",
    "pipe",
    "read",
]

_LINE_LIMIT = 64 << 20
"""Bytes of one line of JSON: `done` for an archive of a thousand images stays far below."""
_PIPE_SIZE = 1 << 20
"""Bytes asked for each pipe: /proc/sys/fs/pipe-max-size allows that to everybody (pipe(7))."""


class _Value(Struct, frozen=True, tag_field="kind"):
    """Base of what goes over the pipes."""


class LoadJob(_Value, frozen=True, tag="load", kw_only=True):
    """Read a docker-archive or an OCI layout in a tar from `archive`. `ingest` is an empty directory for new blobs.

    `platform` picks from a multi-platform index; "" takes the host's, or else the first that is complete.
    """

    archive: int
    ingest: str
    platform: str = ""


class ImportJob(_Value, frozen=True, tag="import", kw_only=True):
    """Read one tree as a tar from `archive`, unpack it into `staging`, make a one-layer image.

    `config` is an image config in OCI spelling; the child sets `rootfs` (one diff id) and nothing else.
    """

    archive: int
    ingest: str
    staging: str
    config: dict[str, Any]


class UnpackJob(_Value, frozen=True, tag="unpack", kw_only=True):
    """Unpack one layer blob into `staging`; both digests are checked, "" skips that of the blob."""

    archive: int
    staging: str
    diff_id: DigestField
    digest: str = ""


class ExportJob(_Value, frozen=True, tag="export", kw_only=True):
    """Write a tree as a tar to `output`.

    `layers`, top first, are merged as overlay would; with `whiteouts` there is exactly one, an upper directory, and
    the tar is a layer: what it hides becomes `.wh.` entries.
    """

    output: int
    layers: tuple[str, ...]
    whiteouts: bool = False


class SaveImage(Struct, frozen=True, kw_only=True):
    """`tags` in full form, "docker.io/library/nginx:latest"."""

    manifest: DigestField
    tags: tuple[str, ...] = ()


class SaveJob(_Value, frozen=True, tag="save", kw_only=True):
    """Write docker-archive and OCI layout in one tar to `output`. `blobs` is the folder above "sha256"."""

    output: int
    blobs: str
    images: tuple[SaveImage, ...]


class Staging(_Value, frozen=True, tag="staging"):
    """The daemon's reply to `Need`: where to unpack, by chain id."""

    paths: dict[str, str]


class Progress(_Value, frozen=True, tag="progress"):
    """`current` and `total` in bytes of the archive's layer as stored."""

    status: str
    id: str = ""
    current: int = 0
    total: int = 0


class NeededLayer(Struct, frozen=True):
    diff_id: DigestField
    chain_id: DigestField
    parent: str = ""


class Need(_Value, frozen=True, tag="need"):
    layers: tuple[NeededLayer, ...]


class Blob(Struct, frozen=True):
    """A finished, fsynced file `file` (one name component) below the job's `ingest`."""

    digest: DigestField
    size: int
    file: str


class LoadedLayer(Struct, frozen=True, kw_only=True):
    """`size` of the blob `digest`; `unpacked` bytes of file content and `entries` are 0 unless staged by this job."""

    digest: DigestField
    size: int
    media_type: str
    diff_id: DigestField
    chain_id: DigestField
    staged: bool = False
    unpacked: int = 0
    entries: int = 0


class LoadedImage(Struct, frozen=True, kw_only=True):
    """`config` is the image id; `layers` base first; `tags` in full form. All documents are among `Done.blobs`."""

    config: DigestField
    manifest: DigestField
    manifest_size: int
    manifest_media_type: str
    layers: tuple[LoadedLayer, ...]
    tags: tuple[str, ...] = ()


class Done(_Value, frozen=True, tag="done", kw_only=True):
    images: tuple[LoadedImage, ...] = ()
    blobs: tuple[Blob, ...] = ()
    digest: str = ""
    size: int = 0


class Failed(_Value, frozen=True, tag="failed"):
    """`invalid`: the archive is to blame, not this machine."""

    error: str
    invalid: bool = False


Job = LoadJob | ImportJob | UnpackJob | ExportJob | SaveJob
Message = Progress | Need | Done | Failed

Answer = Callable[[Need], Awaitable[Mapping[str, str]]]

_messages: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
# -S: no site-packages; the path is handed over instead, so that nothing but it is searched (-I: no PYTHON* either).
_BOOT = "import json,sys; sys.path[:]=json.loads(sys.argv.pop(1)); from tare.store.worker import main; main()"


class Worker:
    """One job at a time in a fresh process."""

    async def run(self, job: Job, answer: Answer | None = None) -> AsyncGenerator[Progress | Done, None]:
        """Yield progress and, last, `Done`. The job's descriptors belong to this call, whatever happens.

        `answer` is awaited with `Need` and returns the staging directories by chain id. The child is killed when the
        generator is closed or cancelled. Invalid if the archive is bad, Unavailable if the child died, OSError if the
        machine failed it.
        """
        descriptors = [getattr(job, name) for name in ("archive", "output") if hasattr(job, name)]
        try:
            process = await _spawn(descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        try:
            async with contextlib.aclosing(_converse(process, job, answer)) as messages:
                async for message in messages:
                    yield message
        finally:
            _kill(process)
            await asyncio.shield(process.wait())


async def _spawn(descriptors: list[int]) -> Process:
    package = str(Path(tare.__path__[0]).parent)
    search = json.dumps([package, *(entry for entry in sys.path if entry.startswith("/") and entry != package)])
    return await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", _BOOT, search, str(os.getpid()),
        stdin=PIPE, stdout=PIPE, stderr=PIPE, pass_fds=descriptors, cwd="/", env={"LC_ALL": "C.UTF-8"},
        limit=_LINE_LIMIT, start_new_session=True,
    )  # fmt: skip


def _kill(process: Process) -> None:
    """SIGKILL, if it still runs. Not by Process.kill: that may reap the child behind the back of asyncio's watcher."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(process.pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


async def _converse(process: Process, job: Job, answer: Answer | None) -> AsyncGenerator[Progress | Done, None]:
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    complaints = asyncio.ensure_future(process.stderr.read(1 << 16))
    try:
        await _say(process.stdin, job)
        while line := await process.stdout.readline():
            message = _messages.decode(line)
            if isinstance(message, Failed):
                raise Invalid(message.error) if message.invalid else OSError(message.error)
            if isinstance(message, Need):
                paths = await answer(message) if answer is not None else {}
                await _say(process.stdin, Staging(dict(paths)))
                continue
            yield message
            if isinstance(message, Done):
                return
        code = await process.wait()
        last = (await complaints).decode("utf-8", "replace").strip().rpartition("\n")[2]
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise Unavailable(f"the store's worker ended without a result ({how}{': ' + last if last else ''})")
    finally:
        complaints.cancel()


async def _say(stdin: asyncio.StreamWriter, message: Struct) -> None:
    # A child that died is reported by its stdout, with a reason.
    with contextlib.suppress(ConnectionError):
        stdin.write(msgspec.json.encode(message) + b"\n")
        await stdin.drain()


def pipe() -> tuple[int, int]:
    """A read and a write end, close-on-exec, as large as an unprivileged user may ask for."""
    read_end, write_end = os.pipe()
    with contextlib.suppress(OSError):
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    return read_end, write_end


async def feed(source: AsyncIterator[bytes], write_end: int) -> None:
    """Write all of `source` into a pipe and close it; the descriptor belongs to this call.

    Returns early, and quietly, when the reader has closed its end: it had enough, or failed and says so itself.
    """
    loop = asyncio.get_running_loop()
    os.set_blocking(write_end, False)
    try:
        async for chunk in source:
            view = memoryview(chunk)
            while view:
                try:
                    view = view[os.write(write_end, view) :]
                except BlockingIOError:
                    await _ready(loop.add_writer, loop.remove_writer, write_end)
    except BrokenPipeError:
        return
    finally:
        os.close(write_end)


async def read(read_end: int, size: int = 1 << 18) -> AsyncIterator[bytes]:
    """Everything that comes out of a pipe, until its last writer is gone; the descriptor belongs to this call."""
    loop = asyncio.get_running_loop()
    os.set_blocking(read_end, False)
    try:
        while True:
            try:
                chunk = os.read(read_end, size)
            except BlockingIOError:
                await _ready(loop.add_reader, loop.remove_reader, read_end)
                continue
            if not chunk:
                return
            yield chunk
    finally:
        os.close(read_end)


async def _ready(watch: Callable[..., None], forget: Callable[[int], bool], descriptor: int) -> None:
    event = asyncio.Event()
    watch(descriptor, event.set)
    try:
        await event.wait()
    finally:
        forget(descriptor)
