"""What `docker save` gives: docker-archive and OCI layout in one tar, from the blobs of the store.

Runs in the store's worker. Blobs go out as they are stored, so that manifests keep their digests; manifest.json points
at the same files, as Docker >= 25 does (moby image/tarexport/save.go), and every reader of layers looks for
compression itself. The same images in the same order give the same bytes: time stamps are 1970, blobs in order of name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tare.errors import NotFound
from tare.oci import digest as digests
from tare.oci import image as images
from tare.oci import reference as references
from tare.oci.digest import Digest
from tare.oci.image import Descriptor, ImageConfig, Index, Manifest
from tare.oci.platform import Platform
from tare.store.jobs import SaveImage
from tare.store.tarwrite import Header, Writer

__all__ = ["save"]


def save(blobs: str, wanted: tuple[SaveImage, ...], out: Callable[[bytes], object]) -> None:
    """Write the images to `out`. NotFound for a blob that is missing or cut short, perhaps midway."""
    store = _Blobs(blobs)
    index: list[Descriptor] = []
    items: list[dict[str, Any]] = []
    repositories: dict[str, dict[str, str]] = {}
    needed: dict[Digest, int] = {}
    for image in wanted:
        data = store.document(image.manifest)
        manifest = images.decode_manifest(data)
        config = images.decode_config(store.document(manifest.config.digest))
        needed[image.manifest] = len(data)
        needed |= {part.digest: part.size for part in (manifest.config, *manifest.layers)}
        index += _descriptors(image, manifest, config, len(data))
        items.append(_item(image, manifest, config))
        for tag in image.tags:
            name = references.parse(tag)
            top = digests.encoded(manifest.layers[-1].digest) if manifest.layers else ""
            repositories.setdefault(name.familiar_name(), {})[name.tag] = top
    writer = Writer(out)
    writer.add(Header(b"blobs/", b"5", 0o755))
    for algorithm in sorted({digests.algorithm(digest) for digest in needed}):
        writer.add(Header(f"blobs/{algorithm}/".encode(), b"5", 0o755))
        for digest in sorted(digest for digest in needed if digests.algorithm(digest) == algorithm):
            store.copy(digest, needed[digest], writer)
    writer.add(
        Header(b"index.json"), images.encode(Index(schema_version=2, media_type=images.INDEX, manifests=tuple(index)))
    )
    writer.add(Header(b"manifest.json"), images.encode(items))
    writer.add(Header(b"oci-layout"), b'{"imageLayoutVersion":"1.0.0"}')
    if repositories:
        writer.add(Header(b"repositories"), images.encode(repositories))
    writer.close()


class _Blobs:
    """The folder of blobs, read by digest."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def document(self, digest: Digest) -> bytes:
        with os.fdopen(self._open(digest), "rb") as file:
            return file.read(images.DOCUMENT_LIMIT + 1)

    def copy(self, digest: Digest, size: int, writer: Writer) -> None:
        fd = self._open(digest)
        try:
            found = os.fstat(fd).st_size
            if found != size:
                raise NotFound(f"content {digest} has {found} bytes, expected {size}")
            writer.add_from(Header(f"blobs/{digest.replace(':', '/')}".encode(), size=size), fd)
        finally:
            os.close(fd)

    def _open(self, digest: Digest) -> int:
        path = f"{digests.algorithm(digest)}/{digests.encoded(digests.parse(digest))}"
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            raise NotFound(f"content {digest}: not found") from None


def _descriptors(image: SaveImage, manifest: Manifest, config: ImageConfig, size: int) -> list[Descriptor]:
    """One per tag, as containerd expects them, or a bare one."""
    media_type = manifest.media_type or images.MANIFEST
    platform = Platform(config.os, config.architecture, config.variant)
    found: list[Descriptor] = []
    for tag in image.tags:
        name = references.parse(tag)
        annotations = {"io.containerd.image.name": str(name), "org.opencontainers.image.ref.name": name.tag}
        found.append(
            Descriptor(
                media_type=media_type, digest=image.manifest, size=size, annotations=annotations, platform=platform
            )
        )
    return found or [Descriptor(media_type=media_type, digest=image.manifest, size=size, platform=platform)]


def _item(image: SaveImage, manifest: Manifest, config: ImageConfig) -> dict[str, Any]:
    """The image's entry of manifest.json."""
    sources = {
        diff_id: {"mediaType": layer.media_type, "size": layer.size, "digest": layer.digest}
        for diff_id, layer in zip(config.diff_ids, manifest.layers, strict=False)
    }
    return {
        "Config": f"blobs/{manifest.config.digest.replace(':', '/')}",
        "RepoTags": [references.parse(tag).familiar() for tag in image.tags] or None,
        "Layers": [f"blobs/{layer.digest.replace(':', '/')}" for layer in manifest.layers],
        "LayerSources": sources,
    }
