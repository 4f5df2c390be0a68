"""Images in and out as tar streams: the daemon's half of load, import and save. The worker process does the parsing.

```
client --bytes--> feed() --pipe--> worker: ingest/<job>/ blobs, snapshots/<n>/fs trees      (garbage until a row exists)
                                   worker --Done--> adopt blobs, one transaction: layers, images, names
```
Deliberately absent: archive formats and digests of layers (worker.py, tar.py), and leases (arrival.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import msgspec

from tare.oci import platform as platforms
from tare.oci import reference as references
from tare.oci.image import ContainerConfig
from tare.store import changes, jobs, names

if TYPE_CHECKING:
    from tare.store.images import Images

__all__ = ["import_", "load", "save"]


async def load(
    images: Images, reader: AsyncIterator[bytes], quiet: bool, loaded: Callable[[str], None]
) -> AsyncGenerator[dict[str, Any], None]:
    """Read a docker-archive or OCI layout tar, compressed or not, and yield Docker's progress messages.

    `loaded` is called with the id of each image of the archive, once all are stored: also for one that was there.

    Invalid for a bad archive, Unavailable when the worker died, whatever `reader` raises; then nothing is stored.
    Closing the generator kills the worker.
    """
    with images.arrival() as arrival:
        read_end, write_end = jobs.pipe()
        job = jobs.LoadJob(archive=read_end, ingest=str(arrival.ingest))
        done = jobs.Done()
        async with contextlib.aclosing(jobs.Worker().run(job, arrival.answer)) as messages, _feeding(reader, write_end):
            async for message in messages:
                if isinstance(message, jobs.Done):
                    done = message
                elif not quiet:
                    yield _progress(message)
        moved = _moved(images, done)
        await arrival.store(done)
    for image in done.images:
        loaded(image.config)
    for image in done.images:
        for tag in image.tags:
            name = references.parse(tag).familiar()
            if tag in moved:
                old = f"renaming the old one with ID {moved[tag]} to empty string"
                yield {"stream": f"The image {name} already exists, {old}\n"}
            yield {"stream": f"Loaded image: {name}\n"}
        if not image.tags:
            yield {"stream": f"Loaded image ID: {image.config}\n"}


async def import_(
    images: Images, reader: AsyncIterator[bytes], repo: str, tag: str, message: str, lines: Sequence[str]
) -> str:
    """Make an image of one layer from a tar, compressed or not, of a root file system; its id.

    `repo` "" leaves it unnamed; `lines` are Dockerfile instructions for its config. Invalid as `load`, and for a name
    or instruction that is none, before a byte is read.
    """
    given = [names.to_tag(repo, tag)] if repo else []
    config = _import_config(changes.apply(ContainerConfig(), lines), message)
    with images.arrival() as arrival:
        staging = str(arrival.stage(""))
        read_end, write_end = jobs.pipe()
        job = jobs.ImportJob(archive=read_end, ingest=str(arrival.ingest), staging=staging, config=config)
        done = jobs.Done()
        async with contextlib.aclosing(jobs.Worker().run(job)) as messages, _feeding(reader, write_end):
            async for answer in messages:
                if isinstance(answer, jobs.Done):
                    done = answer
        return (await arrival.store(done, given))[0]


def save(images: Images, refs: Sequence[str]) -> AsyncGenerator[bytes, None]:
    """A tar that is docker-archive and OCI layout at once, of the images `refs` mean.

    A name without tag stands for every tag of its repository; an id saves the image without a name. NotFound and
    Invalid are raised by this call, before the first byte; a failure later ends the stream with OSError.
    """
    chosen: dict[str, list[str]] = {}
    for ref in refs:
        for image_id, name in images.meant(ref):
            known = chosen.setdefault(image_id, [])
            if name and name not in known:
                known.append(name)
    wanted = tuple(
        jobs.SaveImage(manifest=images.manifest(image_id), tags=tuple(tags)) for image_id, tags in chosen.items()
    )
    return _saving(images, tuple(chosen), wanted)


async def _saving(
    images: Images, image_ids: Sequence[str], wanted: tuple[jobs.SaveImage, ...]
) -> AsyncGenerator[bytes, None]:
    blobs = [blob for image_id in image_ids for blob in images.blobs(image_id)]
    with images.content.leases.take(*blobs):
        read_end, write_end = jobs.pipe()
        job = jobs.SaveJob(output=write_end, blobs=str(images.layout.blobs), images=wanted)
        writing = asyncio.ensure_future(_finish(job))
        try:
            async with contextlib.aclosing(cast(AsyncGenerator[bytes, None], jobs.read(read_end))) as chunks:
                async for chunk in chunks:
                    yield chunk
            await writing
        finally:
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await writing


async def _finish(job: jobs.Job) -> None:
    async with contextlib.aclosing(jobs.Worker().run(job)) as messages:
        async for _ in messages:
            pass


@contextlib.asynccontextmanager
async def _feeding(reader: AsyncIterator[bytes], write_end: int) -> AsyncGenerator[None, None]:
    """Pump `reader` into the pipe during the block. Its failure is the cause of the worker's, and replaces it."""
    feeding = asyncio.ensure_future(jobs.feed(reader, write_end))
    try:
        yield
    finally:
        finished = feeding.done()
        feeding.cancel()
        await asyncio.wait([feeding])
        if finished and (error := feeding.exception()) is not None:
            raise error


def _moved(images: Images, done: jobs.Done) -> dict[str, str]:
    """Tags that point at another image now, with its id."""
    moved = {}
    for image in done.images:
        for tag in image.tags:
            old = images.owner(tag)
            if old not in ("", image.config):
                moved[tag] = old
    return moved


def _progress(message: jobs.Progress) -> dict[str, Any]:
    progress: dict[str, Any] = {"status": message.status}
    if message.total or message.current:
        progress["progressDetail"] = {"current": message.current, "total": message.total}
    if message.id:
        progress["id"] = message.id
    return progress


def _import_config(config: ContainerConfig, message: str) -> dict[str, Any]:
    """An image config in OCI spelling, as moby daemon/images/image_import.go makes it; the worker adds rootfs."""
    host = platforms.host()
    now = time.time_ns()
    created = datetime.fromtimestamp(now // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    created += f".{now % 1_000_000_000:09d}Z"
    document: dict[str, Any] = {"architecture": host.architecture, "os": host.os, "created": created}
    if host.variant:
        document["variant"] = host.variant
    step = {"created": created}
    if message:
        document["comment"] = step["comment"] = message
    document["config"] = msgspec.to_builtins(config)
    document["history"] = [step]
    return document
