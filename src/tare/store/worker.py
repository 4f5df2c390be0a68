"""The store's worker: one process, one job, then exit. Started by jobs.Worker, as root, with nothing but its pipes.

It reads what strangers wrote, so it is bounded: address space, no core, killed with its daemon (PR_SET_PDEATHSIG). It
never touches the ledger and never renames into the content store: the daemon does that when `done` arrives. stdin
carries the job and the reply to `need`, stdout the messages of jobs.py, stderr a traceback if this program is wrong.

Deliberately absent: a second job, a network, any knowledge of the data root's layout beyond the paths in the job.
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import sys
from collections.abc import Callable

import msgspec

from tare.errors import EngineError, Invalid
from tare.linux import libc
from tare.oci import digest as digests
from tare.oci import image as images
from tare.oci.digest import Digest
from tare.oci.image import Descriptor, Manifest
from tare.store import archive, compress, jobs, save, tar, tarwrite
from tare.store.archive import PlannedImage, PlannedLayer
from tare.store.ingest import Ingest, Stored, Tee, write_all
from tare.store.tarread import Source

__all__ = ["main", "perform"]

_ADDRESS_SPACE = 768 << 20
"""Room for xz's 256 MiB or zstd's 128 MiB window besides ~150 MB of mapped interpreter and libraries."""
_OPEN_FILES = 65536
_PROGRESS_STEP = 4 << 20
_SYNCFS = {"x86_64": 306, "aarch64": 267}
_LAYER_TYPES = {"": images.LAYER, "gzip": images.LAYER_GZIP, "zstd": images.LAYER_ZSTD}

Emit = Callable[[jobs.Message], None]


def main() -> None:
    """The process. argv: the daemon's pid."""
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)  # the daemon died before the line above
    _bound()
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=jobs.Job)
    try:
        perform(job, _emit)
    except BrokenPipeError:
        os._exit(1)  # who wanted the output is gone; nobody listens to reasons
    except EngineError as error:
        _emit(jobs.Failed(str(error), isinstance(error, Invalid)))
    except MemoryError:
        _emit(jobs.Failed("the archive needs more memory than the store's worker may use", invalid=True))
    except OSError as error:
        _emit(jobs.Failed(str(error)))
    sys.stdout.flush()
    # Nothing is left to do that the kernel does not do faster.
    os._exit(0)


def perform(job: jobs.Job, emit: Emit) -> None:
    """Do the job; the last message is `Done`. Raises EngineError, OSError."""
    if isinstance(job, jobs.LoadJob):
        emit(_load(job, emit))
    elif isinstance(job, jobs.ImportJob):
        emit(_import(job))
    elif isinstance(job, jobs.UnpackJob):
        emit(_unpack(job))
    elif isinstance(job, jobs.ExportJob):
        emit(_export(job))
    else:
        output = _Output(job.output)
        save.save(job.blobs, job.images, output.write)
        emit(output.done())


def _emit(message: jobs.Message) -> None:
    write_all(1, msgspec.json.encode(message) + b"\n")


def _bound() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _OPEN_FILES), hard))


# load


def _load(job: jobs.LoadJob, emit: Emit) -> jobs.Done:
    ingest = Ingest(job.ingest)
    source, _ = compress.open_reader(job.archive)
    ingest.receive(source)
    planned = archive.plan(ingest, job.platform)
    chains = {layer.chain_id: layer for image in planned for layer in image.layers}
    needed = tuple(jobs.NeededLayer(layer.diff_id, layer.chain_id, layer.parent) for layer in chains.values())
    emit(jobs.Need(needed))
    staging = msgspec.json.decode(sys.stdin.buffer.readline(), type=jobs.Staging).paths
    loader = _Loader(ingest, staging, emit)
    loaded = tuple(loader.image(image) for image in planned)
    _syncfs(ingest.fd)
    return jobs.Done(images=loaded, blobs=ingest.blobs())


class _Loader:
    """Turns planned images into loaded ones: unpacks what is new, checks the rest."""

    def __init__(self, ingest: Ingest, staging: dict[str, str], emit: Emit) -> None:
        self._ingest = ingest
        self._staging = staging
        self._emit = emit
        self._layers: dict[tuple[str, str], jobs.LoadedLayer] = {}  # by blob digest and chain id
        self._staged: set[str] = set()

    def image(self, planned: PlannedImage) -> jobs.LoadedImage:
        layers = tuple(self._layer(layer) for layer in planned.layers)
        self._ingest.use(planned.config, planned.config_digest)
        if planned.manifest is not None and planned.manifest_descriptor is not None:
            descriptor = planned.manifest_descriptor
            self._ingest.use(planned.manifest, descriptor.digest)
        else:
            descriptor = self._make_manifest(planned, layers)
        return jobs.LoadedImage(
            config=planned.config_digest,
            manifest=descriptor.digest,
            manifest_size=descriptor.size,
            manifest_media_type=descriptor.media_type or images.MANIFEST,
            layers=layers,
            tags=tuple(planned.tags),
        )

    def _make_manifest(self, planned: PlannedImage, layers: tuple[jobs.LoadedLayer, ...]) -> Descriptor:
        """A docker-archive has no manifest: make the one that any engine would, from the blobs as stored."""
        config = Descriptor(media_type=images.CONFIG, digest=planned.config_digest, size=planned.config.size)
        parts = tuple(Descriptor(media_type=x.media_type, digest=x.digest, size=x.size) for x in layers)
        manifest = Manifest(schema_version=2, media_type=images.MANIFEST, config=config, layers=parts)
        stored = self._ingest.write(images.encode(manifest))
        self._ingest.use(stored)
        return Descriptor(media_type=images.MANIFEST, digest=stored.digest, size=stored.size)

    def _layer(self, layer: PlannedLayer) -> jobs.LoadedLayer:
        known = self._layers.get((layer.stored.digest, layer.chain_id))
        if known is not None:
            return known
        path = self._staging.get(layer.chain_id) if layer.chain_id not in self._staged else None
        unpacked = tar.Applied(0, 0)
        stored, fd = layer.stored, self._ingest.open(layer.stored)
        try:
            report = _Steps(self._emit, "Loading layer", digests.short(layer.diff_id), stored.size)
            source, compression = compress.open_reader(_Counted(compress.Descriptor(fd), report))
            tee = Tee(self._ingest, source) if compression not in _LAYER_TYPES else None
            if path is not None:
                unpacked = _apply(tee or source, path, layer.diff_id)
                self._staged.add(layer.chain_id)
            elif compression or layer.diff_id != stored.digest:
                _check(tee or source, layer.diff_id)
            report.end()
        finally:
            os.close(fd)
        if tee is not None:
            if layer.descriptor is not None:
                raise Invalid(f"layer {layer.descriptor.digest} is compressed with {compression}: not an OCI layer")
            stored, compression = tee.finish(), ""
        media_type, digest = _LAYER_TYPES[compression], stored.digest
        if layer.descriptor is not None:
            media_type, digest = layer.descriptor.media_type, layer.descriptor.digest
        self._ingest.use(stored, digest)
        loaded = jobs.LoadedLayer(
            digest=digest,
            size=stored.size,
            media_type=media_type,
            diff_id=layer.diff_id,
            chain_id=layer.chain_id,
            staged=path is not None,
            unpacked=unpacked.size,
            entries=unpacked.entries,
        )
        self._layers[layer.stored.digest, layer.chain_id] = loaded
        return loaded


# import, unpack


def _import(job: jobs.ImportJob) -> jobs.Done:
    ingest = Ingest(job.ingest)
    raw = Tee(ingest, compress.Descriptor(job.archive))
    source, compression = compress.open_reader(raw)
    tee = raw
    if compression not in _LAYER_TYPES:  # xz and bzip2 are no OCI layers: keep what comes out instead
        raw.discard()
        source = tee = Tee(ingest, source)
        compression = ""
    hashing = compress.Hashing(source)
    applied = _apply(hashing, job.staging, None)
    stored, diff_id = tee.finish(), hashing.digest()
    config = ingest.write(images.encode({**job.config, "rootfs": {"type": "layers", "diff_ids": [diff_id]}}))
    images.decode_config(ingest.document(config, "image config"))
    layer = jobs.LoadedLayer(
        digest=stored.digest,
        size=stored.size,
        media_type=_LAYER_TYPES[compression],
        diff_id=diff_id,
        chain_id=diff_id,
        staged=True,
        unpacked=applied.size,
        entries=applied.entries,
    )
    manifest = ingest.write(images.encode(_manifest_of(config, layer)))
    for part in (config, manifest, stored):
        ingest.use(part)
    _syncfs(ingest.fd)
    loaded = jobs.LoadedImage(
        config=config.digest,
        manifest=manifest.digest,
        manifest_size=manifest.size,
        manifest_media_type=images.MANIFEST,
        layers=(layer,),
    )
    return jobs.Done(images=(loaded,), blobs=ingest.blobs())


def _manifest_of(config: Stored, layer: jobs.LoadedLayer) -> Manifest:
    return Manifest(
        schema_version=2,
        media_type=images.MANIFEST,
        config=Descriptor(media_type=images.CONFIG, digest=config.digest, size=config.size),
        layers=(Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size),),
    )


def _unpack(job: jobs.UnpackJob) -> jobs.Done:
    raw = compress.Hashing(compress.Descriptor(job.archive))
    source, _ = compress.open_reader(raw)
    plain = compress.Hashing(source)
    _apply(plain, job.staging, job.diff_id)
    if job.digest and raw.digest() != job.digest:
        raise Invalid(f"layer blob has the digest {raw.digest()}, expected {job.digest}")
    return jobs.Done(digest=plain.digest(), size=plain.size)


def _apply(source: Source, path: str, diff_id: Digest | None) -> tar.Applied:
    """Unpack into the directory `path`; with `diff_id`, Invalid unless the stream has that digest."""
    hashing = source if isinstance(source, compress.Hashing) else compress.Hashing(source)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        applied = tar.apply(hashing, fd)
    finally:
        os.close(fd)
    _compare(hashing, diff_id)
    return applied


def _check(source: Source, diff_id: Digest) -> None:
    hashing = compress.Hashing(source)
    while hashing.read(1 << 20):
        pass
    _compare(hashing, diff_id)


def _compare(hashing: compress.Hashing, diff_id: Digest | None) -> None:
    if diff_id is not None and hashing.digest() != diff_id:
        raise Invalid(f'invalid diffID for layer: expected "{diff_id}", got "{hashing.digest()}"')


# export


class _Output:
    """A descriptor to write to, with count and digest of what went out."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._size += len(data)
        write_all(self._fd, data)

    def done(self) -> jobs.Done:
        os.close(self._fd)
        return jobs.Done(digest=f"sha256:{self._hash.hexdigest()}", size=self._size)


def _export(job: jobs.ExportJob) -> jobs.Done:
    output = _Output(job.output)
    if job.whiteouts and len(job.layers) != 1:
        raise Invalid("a layer is made from exactly one directory")
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    if len(job.layers) == 1:
        root = os.open(job.layers[0], flags)
    else:
        mount = _overlay(job.layers)
        root = os.open(".", flags, dir_fd=mount)
        os.close(mount)
    tarwrite.create(root, output.write, whiteouts=job.whiteouts)
    return output.done()


def _overlay(layers: tuple[str, ...]) -> int:
    """A read-only overlay of the directories, top first, that is in no mount table: it goes with its descriptor."""
    context = libc.fsopen("overlay")
    try:
        for path in layers:
            libc.fsconfig_set_string(context, "lowerdir+", path)
        libc.fsconfig_create(context)
        return libc.fsmount(context, libc.MOUNT_ATTR_RDONLY | libc.MOUNT_ATTR_NOATIME)
    finally:
        os.close(context)


# Progress, durability


class _Steps:
    """Calls with a growing count become `progress` messages, one every few megabytes."""

    def __init__(self, emit: Emit, status: str, name: str, total: int) -> None:
        self._emit = emit
        self._status = status
        self._name = name
        self._total = total
        self._next = 0

    def __call__(self, current: int) -> None:
        if current >= self._next:
            self._next = current + _PROGRESS_STEP
            self._emit(jobs.Progress(self._status, self._name, current, self._total))

    def end(self) -> None:
        self._emit(jobs.Progress(self._status, self._name, self._total, self._total))


class _Counted:
    """A source that tells how far it was read."""

    def __init__(self, source: Source, report: Callable[[int], None]) -> None:
        self._source = source
        self._report = report
        self._size = 0

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self._size += len(data)
        self._report(self._size)
        return data


def _syncfs(fd: int) -> None:
    """Make blobs and trees durable in one go: a row must never name what a power cut can take back (syncfs(2))."""
    libc.syscall("syncfs", _SYNCFS[os.uname().machine], fd)
