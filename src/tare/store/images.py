"""Images: names, and the rows that tie a config to its manifest, blobs and layers. Runs in the daemon, on its thread.

An image is its config's digest, as in Docker's classic store; a name (tag, or digest of a manifest) points at one. An
image appears with all its layers and names in one transaction or not at all, and goes the same way. What `load`,
`import_` and `save` do with the bytes is in archives.py and in the worker process.

The words of the errors are Docker's (daemon/images/image.go, image_delete.go, reference/store.go): clients match them.

Deliberately absent: events and prune (engine/), and reading the docker-archive format.
"""

from __future__ import annotations

import builtins
import logging
import re
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Literal

from msgspec import Struct

from tare.db import Database
from tare.errors import EngineError, Invalid, NotFound
from tare.oci import digest as digests
from tare.oci import image as documents
from tare.oci import reference as references
from tare.oci.digest import Digest
from tare.oci.image import ImageConfig
from tare.oci.reference import Reference
from tare.store import archives, deletion, names
from tare.store.arrival import Arrival, NewImage
from tare.store.content import Content
from tare.store.paths import Layout
from tare.store.snapshots import Snapshots

__all__ = ["HistoryStep", "Image", "Images", "Removed"]

log = logging.getLogger(__name__)

_ID_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})", re.ASCII)
_CONFIGS_KEPT = 256

Removed = tuple[Literal["Untagged", "Deleted"], str]
"""One line of the answer to a removal: what happened, to which familiar reference, image id or chain id."""


class Image(Struct, frozen=True, kw_only=True):
    """A stored image. `size`: bytes of the unpacked layers; times in ns since the epoch, 0 = unknown or never."""

    id: str
    config: ImageConfig
    manifest: str
    """Digest of the manifest."""
    tags: tuple[str, ...]
    """Familiar: "busybox:latest"."""
    repo_digests: tuple[str, ...]
    """Familiar: "busybox@sha256:..."."""
    size: int
    chain_ids: tuple[str, ...]
    """Base first."""
    created: int
    """What the config says."""
    stored: int
    tagged: int
    parent: str
    """Image id, "" if it was not built here."""

    @property
    def top(self) -> str:
        """Chain id of the top layer: the parent of a container's snapshot; "" without layers."""
        return self.chain_ids[-1] if self.chain_ids else ""


class HistoryStep(Struct, frozen=True, kw_only=True):
    """A line of `docker history`. `id` is "<missing>" for steps of images that are not here; `created` in ns."""

    id: str
    created: int
    created_by: str
    tags: tuple[str, ...]
    size: int
    comment: str


class Images:
    """The images of one data root."""

    def __init__(self, db: Database, content: Content, snapshots: Snapshots, layout: Layout) -> None:
        self._db = db
        self.content = content
        self.snapshots = snapshots
        self.layout = layout
        self._configs: OrderedDict[str, ImageConfig] = OrderedDict()
        self._write_index()

    def resolve(self, ref: str) -> Image:
        """The image a user means: name[:tag], name@digest, an id or a unique prefix of one, with or without "sha256:".

        A name wins over an id. Invalid for what can be no reference, NotFound("No such image: nope:latest").
        """
        return self.get(self.find(ref))

    def get(self, image_id: str) -> Image:
        """The image with that full id. NotFound; OSError when its config is damaged."""
        row = self._db.execute("SELECT manifest, top, parent, stored, tagged FROM images WHERE id = ?", (image_id,))
        if not row:
            raise NotFound(f"No such image: {image_id}")
        manifest, top, parent, stored, tagged = row[0]
        config = self._config(image_id)
        tags, repo_digests = self.names_of(image_id)
        size = self._db.execute(
            "WITH RECURSIVE chain (key, parent, size) AS ("
            " SELECT key, parent, size FROM snapshots WHERE key = ?"
            " UNION ALL SELECT s.key, s.parent, s.size FROM snapshots s JOIN chain ON s.key = chain.parent"
            ") SELECT coalesce(sum(size), 0) FROM chain",
            (top,),
        )[0][0]
        return Image(
            id=image_id,
            config=config,
            manifest=manifest,
            tags=tags,
            repo_digests=repo_digests,
            size=size,
            chain_ids=tuple(digests.chain_ids(config.diff_ids)),
            created=documents.parse_time(config.created),
            stored=stored,
            tagged=tagged,
            parent=parent or "",
        )

    def list(self) -> builtins.list[Image]:
        """All images, latest creation first. One with a damaged config is left out, with a line in the log."""
        found = []
        for (image_id,) in self._db.execute("SELECT id FROM images"):
            try:
                found.append(self.get(image_id))
            except (OSError, EngineError) as error:
                log.error("image %s is not listed: %s", image_id, error)
        return sorted(found, key=lambda image: (image.created, image.id), reverse=True)

    def find(self, ref: str) -> str:
        """As `resolve`, but only the id: works for an image whose blobs are damaged."""
        if re.fullmatch(r"(?:sha256:)?[0-9a-f]{64}", ref, re.ASCII):
            image_id = "sha256:" + ref.rpartition(":")[2]
            if self._db.execute("SELECT 1 FROM images WHERE id = ?", (image_id,)):
                return image_id
            raise NotFound(f"No such image: {image_id}")
        named = references.parse(ref)
        row = self._db.execute("SELECT image_id FROM tags WHERE reference = ?", (names.key(named),))
        if row:
            return str(row[0][0])
        if prefix := _ID_PREFIX.fullmatch(ref):
            low = "sha256:" + prefix[1]
            # ids are hex: "g" sorts behind every continuation of the prefix
            matches = self._db.execute("SELECT id FROM images WHERE id >= ? AND id < ? LIMIT 2", (low, low + "g"))
            if len(matches) == 1:
                return str(matches[0][0])
        raise NotFound(f"No such image: {named.familiar()}")

    def names_of(self, image_id: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Familiar tags and familiar repository digests of an image, each sorted."""
        rows = self._db.execute("SELECT reference, digest FROM tags WHERE image_id = ? ORDER BY reference", (image_id,))
        tags = tuple(references.parse(reference).familiar() for reference, digest in rows if not digest)
        pinned = tuple(references.parse(reference).familiar() for reference, digest in rows if digest)
        return tags, pinned

    def owner(self, reference: str) -> str:
        """Id of the image a full reference points at, "" if it points at none."""
        row = self._db.execute("SELECT image_id FROM tags WHERE reference = ?", (reference,))
        return str(row[0][0]) if row else ""

    def meant(self, ref: str) -> builtins.list[tuple[str, str]]:
        """(image id, full tag or "") for what a user wants saved: a bare name means every tag of its repository.

        NotFound, Invalid.
        """
        try:
            named = references.parse(ref, default_tag=False)
        except Invalid:
            return [(self.find(ref), "")]
        if not named.tag and not named.digest:
            rows = self._db.execute(
                "SELECT image_id, reference FROM tags WHERE repository = ? AND digest = '' ORDER BY reference",
                (named.name,),
            )
            if rows:
                return [(image_id, name) for image_id, name in rows]
        image_id = self.find(ref)
        tagged = not named.digest and self.owner(str(named)) == image_id
        return [(image_id, str(named) if tagged else "")]

    def manifest(self, image_id: str) -> Digest:
        """Digest of the manifest. NotFound."""
        row = self._db.execute("SELECT manifest FROM images WHERE id = ?", (image_id,))
        if not row:
            raise NotFound(f"No such image: {image_id}")
        return digests.parse(row[0][0])

    def blobs(self, image_id: str) -> builtins.list[str]:
        """Digests of everything the image needs."""
        return [row[0] for row in self._db.execute("SELECT digest FROM image_blobs WHERE image_id = ?", (image_id,))]

    def tag(self, source: str, repo: str, tag: str = "") -> str:
        """Name the image `source` refers to; the new familiar reference. A name in use moves. NotFound, Invalid."""
        image_id = self.find(source)
        name = names.to_tag(repo, tag)
        with self._db.transaction():
            self._point(name, image_id)
            self._db.execute("UPDATE images SET tagged = ? WHERE id = ?", (time.time_ns(), image_id))
            self._db.after_commit(self._write_index)
        return name.familiar()

    def remove(
        self, ref: str, *, force: bool, noprune: bool, in_use: Callable[[str], Iterable[tuple[str, bool]]]
    ) -> builtins.list[Removed]:
        """Untag, and delete what no name is left for: the semantics of Docker's DELETE /images/{name}.

        `in_use` gives (container id, is it running) for every container of an image id. NotFound, Conflict.
        """
        with self._db.transaction():
            removed = deletion.Deletion(self._db, self.content, self.snapshots, in_use).remove(
                self.find(ref), ref, force=force, prune=not noprune
            )
            self._db.after_commit(self._write_index)
        return removed

    def add(self, images: Iterable[NewImage]) -> builtins.list[str]:
        """Store images with their layers and names in one transaction; their ids.

        Joins an open transaction. No error means the images are stored, not that this call did it. Blobs and staged
        folders must be leased by the caller until this returns. NotFound if a layer without a folder has gone.
        """
        added = []
        with self._db.transaction():
            for new in images:
                self._add(new)
                added.append(new.id)
            self._db.after_commit(self._write_index)
        return added

    def history(self, ref: str) -> builtins.list[HistoryStep]:
        """The steps an image was built in, newest first. NotFound."""
        image = self.resolve(ref)
        layers = iter(image.chain_ids)
        sizes = [
            0 if step.empty_layer else self.snapshots.layer_usage(next(layers)).size
            for step in image.config.history or ()
        ]
        owner, steps = image.id, []
        for step, size in zip(reversed(image.config.history or ()), reversed(sizes), strict=True):
            steps.append(
                HistoryStep(
                    id=owner or "<missing>",
                    created=documents.parse_time(step.created),
                    created_by=step.created_by,
                    tags=self.names_of(owner)[0] if owner else (),
                    size=size,
                    comment=step.comment,
                )
            )
            # Each step of an image built here is an image of its own; of others only the last one is known.
            row = self._db.execute("SELECT coalesce(parent, '') FROM images WHERE id = ?", (owner,))
            owner = row[0][0] if row else ""
        return steps

    def arrival(self) -> Arrival:
        """The frame for an action that brings images in."""
        return Arrival(self.content, self.snapshots, self.layout, self.add)

    def load(
        self, reader: AsyncIterator[bytes], quiet: bool = False, loaded: Callable[[str], None] = lambda image_id: None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Read a docker-archive or OCI layout tar, compressed or not; Docker's progress messages. See archives.load."""
        return archives.load(self, reader, quiet, loaded)

    async def import_(
        self,
        reader: AsyncIterator[bytes],
        repo: str = "",
        tag: str = "",
        message: str = "",
        changes: Sequence[str] = (),
    ) -> str:
        """Make an image of one layer from a tar of a root file system; its id. See archives.import_."""
        return await archives.import_(self, reader, repo, tag, message, changes)

    def save(self, refs: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """A tar that is docker-archive and OCI layout at once. NotFound at once. See archives.save."""
        return archives.save(self, refs)

    def _add(self, new: NewImage) -> None:
        parent = ""
        for layer in new.layers:
            if layer.number:
                self.snapshots.commit(layer.chain_id, layer.number, parent, layer.size, layer.inodes)
            elif not self.snapshots.exists(layer.chain_id):
                raise NotFound(f"layer {layer.chain_id} does not exist")
            parent = layer.chain_id
        self._db.execute(
            "INSERT INTO images (id, manifest, manifest_type, manifest_size, top, parent, stored)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
            (
                new.id,
                new.manifest,
                new.manifest_type,
                new.manifest_size,
                parent or None,
                new.parent or None,
                time.time_ns(),
            ),
        )
        for blob in (new.id, new.manifest, *(layer.blob for layer in new.layers)):
            self._db.execute("INSERT INTO image_blobs VALUES (?, ?) ON CONFLICT DO NOTHING", (new.id, blob))
        for name in new.names:
            self._point(name, new.id)

    def _point(self, name: Reference, image_id: str) -> None:
        names.check(name)
        self._db.execute(
            "INSERT INTO tags VALUES (?, ?, ?, ?) ON CONFLICT (reference) DO UPDATE SET image_id = excluded.image_id",
            (names.key(name), image_id, name.name, name.digest),
        )

    def _config(self, image_id: str) -> ImageConfig:
        """Decoded once: the bytes behind a digest never change."""
        config = self._configs.get(image_id)
        if config is None:
            config = self._configs[image_id] = documents.decode_config(self.content.read(image_id))
            if len(self._configs) > _CONFIGS_KEPT:
                self._configs.popitem(last=False)
        else:
            self._configs.move_to_end(image_id)
        return config

    def _write_index(self) -> None:
        """index.json with one descriptor per name; containerd's annotation carries the whole name."""
        rows = self._db.execute(
            "SELECT manifest_type, manifest, manifest_size, t.reference FROM images i LEFT JOIN tags t"
            " ON t.image_id = i.id AND t.digest = '' ORDER BY t.reference, i.id"
        )
        manifests: list[dict[str, object]] = []
        for media_type, digest, size, name in rows:
            descriptor: dict[str, object] = {"mediaType": media_type, "digest": digest, "size": size}
            if name:
                descriptor["annotations"] = {
                    "io.containerd.image.name": name,
                    "org.opencontainers.image.ref.name": references.parse(name).tag,
                }
            manifests.append(descriptor)
        self.content.write_index(manifests)
