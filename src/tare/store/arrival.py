"""What an image under way holds until it is stored: leases, an ingest folder, staged snapshots. Runs in the daemon.

Until `store` has committed, nothing of it is visible and everything of it is garbage; leaving the block, however that
comes about, gives the leases back and throws away what got no row. Pull and build use this as load and import do.

Deliberately absent: where the bytes come from.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from tare.oci import reference as references
from tare.oci.reference import Reference
from tare.store import jobs
from tare.store.content import Content
from tare.store.paths import Layout
from tare.store.snapshots import Snapshots, Staging

__all__ = ["Arrival", "NewImage", "NewLayer"]


class NewLayer(Struct, frozen=True, kw_only=True):
    """A layer of an image about to be stored; `number` is its staged folder, 0 if the snapshot exists already."""

    chain_id: str
    blob: str
    number: int = 0
    size: int = 0
    inodes: int = 0


class NewImage(Struct, frozen=True, kw_only=True):
    """An image whose blobs are stored and leased, and whose layers (base first) are committed or staged."""

    id: str
    manifest: str
    manifest_type: str
    manifest_size: int
    layers: Sequence[NewLayer]
    names: Sequence[Reference] = ()
    parent: str = ""


class Arrival:
    """One action that brings images in. A context manager."""

    def __init__(
        self, content: Content, snapshots: Snapshots, layout: Layout, add: Callable[[Iterable[NewImage]], list[str]]
    ) -> None:
        self._content = content
        self._snapshots = snapshots
        self._add = add
        self._staged: dict[str, Staging] = {}
        self._digests = content.leases.take()
        self._chains = snapshots.leases.take()
        self._name = f"job-{os.urandom(8).hex()}"
        self.ingest: Path = layout.ingestion(self._name)

    def __enter__(self) -> Arrival:
        self.ingest.mkdir(mode=0o700)
        self._digests.hold(self._name)
        return self

    def __exit__(self, *details: object) -> None:
        for staging in self._staged.values():
            staging.close()
        self._snapshots.trash.throw(self.ingest)
        self._chains.close()
        self._digests.close()

    def stage(self, chain_id: str) -> Path:
        """A fresh folder for the layer; "" as key when its chain id is not known yet."""
        staging = self._staged[chain_id] = self._snapshots.staging()
        return staging.path

    async def answer(self, need: jobs.Need) -> dict[str, str]:
        """Lease every chain the worker names; stage those that are not stored."""
        paths: dict[str, str] = {}
        for layer in need.layers:
            self._chains.hold(layer.chain_id)
            if not self._snapshots.exists(layer.chain_id):
                paths[layer.chain_id] = str(self.stage(layer.chain_id))
        return paths

    async def store(self, done: jobs.Done, names: Sequence[Reference] = ()) -> list[str]:
        """Publish the worker's blobs, then all rows in one transaction; the image ids.

        `names` are given to the images besides those the worker reports.
        """
        for image in done.images:
            self._digests.hold(image.config, image.manifest, *(layer.digest for layer in image.layers))
            self._chains.hold(*(layer.chain_id for layer in image.layers))
        await asyncio.to_thread(self._content.adopt, {blob.digest: self.ingest / blob.file for blob in done.blobs})
        return self._add([self._new(image, names) for image in done.images])

    def _new(self, image: jobs.LoadedImage, names: Sequence[Reference]) -> NewImage:
        return NewImage(
            id=image.config,
            manifest=image.manifest,
            manifest_type=image.manifest_media_type,
            manifest_size=image.manifest_size,
            layers=[self._layer(layer) for layer in image.layers],
            names=[*map(references.parse, image.tags), *names],
        )

    def _layer(self, layer: jobs.LoadedLayer) -> NewLayer:
        staged = self._staged.get(layer.chain_id) or self._staged.get("")
        return NewLayer(
            chain_id=layer.chain_id,
            blob=layer.digest,
            number=staged.number if staged is not None else 0,
            size=layer.unpacked,
            inodes=layer.entries,
        )
