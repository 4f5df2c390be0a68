"""What `docker rmi` does, step by step. Runs in the daemon, inside the transaction of `Images.remove`.

A name given: it goes, unless it is the last one and a container uses the image (then only with force); the image goes
with its last name. An id given: with one name, name and image go; with several it takes force. A running container, or
an image built on this one, cannot be forced. Rules and words: moby daemon/images/image_delete.go.

Layers that nothing stands on any more, and blobs that no image names, go with the image; what a lease holds stays for
the garbage collector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from tare.db import Database
from tare.errors import Conflict
from tare.oci import digest as digests
from tare.oci import reference as references
from tare.oci.reference import Reference
from tare.store.content import Content
from tare.store.names import key
from tare.store.snapshots import Snapshots

__all__ = ["Deletion"]

Removed = tuple[Literal["Untagged", "Deleted"], str]


class Deletion:
    """One removal; `removed` collects its answer in order."""

    def __init__(
        self,
        db: Database,
        content: Content,
        snapshots: Snapshots,
        in_use: Callable[[str], Iterable[tuple[str, bool]]],
    ) -> None:
        self._db = db
        self._content = content
        self._snapshots = snapshots
        self._in_use = in_use
        self.removed: list[Removed] = []

    def remove(self, image_id: str, given: str, *, force: bool, prune: bool) -> list[Removed]:
        """`given` is what the user typed and was resolved to `image_id`. Conflict, and then nothing is removed."""
        names = self._names(image_id)
        if image_id.startswith(given) or image_id.partition(":")[2].startswith(given):
            if _single(names):
                self._check(image_id, soft=not force, names=False)
                for name in names:
                    self._untag(name)
            self._delete(image_id, force=force, prune=prune, quiet=False)
            return self.removed
        if not force and _single(names):
            for container, _ in self._in_use(image_id):
                raise Conflict(
                    f'conflict: unable to remove repository reference "{given}" (must force) - container '
                    f"{digests.short(container)} is using its referenced image {digests.short(image_id)}"
                )
        name = references.parse(given)
        self._untag(name)
        names = self._names(image_id)
        if not name.digest and not any(other.name == name.name and not other.digest for other in names):
            # With its last tag a repository's digests go too.
            for other in [other for other in names if other.name == name.name]:
                self._untag(other)
            names = self._names(image_id)
        if not names:
            self._delete(image_id, force=force, prune=prune, quiet=True)
        return self.removed

    def _delete(self, image_id: str, *, force: bool, prune: bool, quiet: bool) -> None:
        try:
            self._check(image_id, soft=not force, names=True)
        except _Blocked as blocked:
            # Quietly: the name is gone, the image stays, unless nothing but this removal could ever reach it.
            if quiet and (blocked.used or self._names(image_id) or self._children(image_id)):
                return
            raise
        for name in self._names(image_id):
            self._untag(name)
        row = self._db.execute("SELECT top, parent FROM images WHERE id = ?", (image_id,))
        blobs = [row[0] for row in self._db.execute("SELECT digest FROM image_blobs WHERE image_id = ?", (image_id,))]
        self._db.execute("DELETE FROM images WHERE id = ?", (image_id,))
        self.removed.append(("Deleted", image_id))
        top, parent = row[0]
        self._delete_layers(top)
        self._db.after_commit(lambda: self._delete_blobs(blobs))
        if prune and parent:
            self._delete(parent, force=False, prune=True, quiet=True)

    def _delete_layers(self, top: str | None) -> None:
        for chain_id in self._snapshots.chain(top or ""):
            needed = self._db.execute(
                "SELECT 1 FROM images WHERE top = ?1 UNION ALL SELECT 1 FROM snapshots WHERE parent = ?1 LIMIT 1",
                (chain_id,),
            )
            if needed or chain_id in self._snapshots.leases:
                return
            self._snapshots.remove(chain_id)
            self.removed.append(("Deleted", chain_id))

    def _delete_blobs(self, blobs: Iterable[str]) -> None:
        for blob in blobs:
            named = self._db.execute("SELECT 1 FROM image_blobs WHERE digest = ? LIMIT 1", (blob,))
            if not named and blob not in self._content.leases:
                self._content.delete(blob)

    def _check(self, image_id: str, *, soft: bool, names: bool) -> None:
        """Raise the first conflict; the soft ones, which force overrules, only if asked."""
        users = list(self._in_use(image_id))
        if self._children(image_id):
            raise _Blocked(image_id, "cannot be forced", "image has dependent child images")
        for container, running in users:
            if running:
                what = f"image is being used by running container {digests.short(container)}"
                raise _Blocked(image_id, "cannot be forced", what, used=True)
        if soft and names and self._names(image_id):
            raise _Blocked(image_id, "must be forced", "image is referenced in multiple repositories")
        if soft and users:
            what = f"image is being used by stopped container {digests.short(users[0][0])}"
            raise _Blocked(image_id, "must be forced", what, used=True)

    def _children(self, image_id: str) -> bool:
        return bool(self._db.execute("SELECT 1 FROM images WHERE parent = ? LIMIT 1", (image_id,)))

    def _names(self, image_id: str) -> list[Reference]:
        rows = self._db.execute("SELECT reference FROM tags WHERE image_id = ? ORDER BY reference", (image_id,))
        return [references.parse(row[0]) for row in rows]

    def _untag(self, name: Reference) -> None:
        """Records the name even if it was not there: asked for and absent is the same result."""
        self._db.execute("DELETE FROM tags WHERE reference = ?", (key(name),))
        self.removed.append(("Untagged", name.familiar()))


class _Blocked(Conflict):
    """`used`: a container is the reason."""

    def __init__(self, image_id: str, force: str, what: str, *, used: bool = False) -> None:
        super().__init__(f"conflict: unable to delete {digests.short(image_id)} ({force}) - {what}")
        self.used = used


def _single(names: list[Reference]) -> bool:
    """All names of one repository, with at most one tag among them; False for none."""
    tags = [name for name in names if not name.digest]
    return bool(names) and len(tags) <= 1 and len({name.name for name in names}) == 1
