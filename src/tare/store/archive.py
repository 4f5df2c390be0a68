"""What `docker load` is given, understood: a docker-archive or an OCI layout becomes a list of planned images.

Runs in the store's worker, on the files ingest.py put down. Plan, then do: nothing is unpacked here, and every document
has been checked when the plan stands. Only what a document names by its digest, or lists as a layer, is touched.

Both forms may be in one tar (Docker >= 25 writes that). Then index.json comes first, because it keeps the manifests'
digests, and manifest.json adds names, and images the index lacks.
Sources: image spec image-layout.md; moby image/tarexport/load.go. Deliberately absent: the format of Docker < 1.10
(`repositories` with `<id>/json`), which has no digests at all.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import msgspec

from tare.errors import Invalid
from tare.oci import digest as digests
from tare.oci import image as images
from tare.oci import platform as platforms
from tare.oci import reference as references
from tare.oci.digest import Digest
from tare.oci.image import Descriptor, ImageConfig, Index, Manifest
from tare.store.ingest import Ingest, Stored

__all__ = ["PlannedImage", "PlannedLayer", "plan"]

_NAME_ANNOTATION = "io.containerd.image.name"
_REF_ANNOTATION = "org.opencontainers.image.ref.name"
_INDEX_DEPTH = 4
_IMAGES_LIMIT = 1000


@dataclass
class PlannedLayer:
    """`stored` is the blob as the archive has it. `descriptor` None: docker-archive, the manifest is yet to be made."""

    stored: Stored
    diff_id: Digest
    chain_id: Digest
    parent: str
    descriptor: Descriptor | None = None


@dataclass
class PlannedImage:
    """`manifest` None: docker-archive, made when the layers' blobs are final. `tags` in full form, in order."""

    config: Stored
    config_digest: Digest
    layers: list[PlannedLayer]
    manifest: Stored | None = None
    manifest_descriptor: Descriptor | None = None
    tags: list[str] = field(default_factory=list)


class _Item(msgspec.Struct, rename="pascal", frozen=True):
    """One image of manifest.json."""

    config: str
    layers: list[str] | None = None
    repo_tags: list[str] | None = None


def plan(ingest: Ingest, platform: str) -> list[PlannedImage]:
    """All images of the archive. `platform` as in LoadJob. Invalid."""
    found: list[PlannedImage] = []
    if ingest.has("oci-layout") and ingest.has("index.json"):
        found = _Layout(ingest, platform).images()
    if ingest.has("manifest.json"):
        known = {image.config_digest: image for image in found}
        for image in _docker_archive(ingest):
            same = known.get(image.config_digest)
            if same is None:
                found.append(image)
                known[image.config_digest] = image
            else:
                same.tags += [tag for tag in image.tags if tag not in same.tags]
    elif not found and not ingest.has("index.json"):
        raise Invalid("archive holds no image: neither manifest.json nor oci-layout with index.json is there")
    if not found:
        raise Invalid("archive holds no image")
    return found


class _Layout:
    """The OCI side of an archive."""

    def __init__(self, ingest: Ingest, platform: str) -> None:
        self._ingest = ingest
        self._asked = bool(platform)
        self._platform = platforms.parse(platform) if platform else platforms.host()

    def images(self) -> list[PlannedImage]:
        layout = images.check_json(self._ingest.document(self._ingest.get("oci-layout"), "oci-layout"), "oci-layout")
        if not isinstance(layout, dict) or layout.get("imageLayoutVersion") != "1.0.0":
            raise Invalid("oci-layout has an unsupported imageLayoutVersion")
        index = images.decode_index(self._ingest.document(self._ingest.get("index.json"), "index.json"))
        found: dict[Digest, PlannedImage] = {}
        for descriptor in index.manifests[:_IMAGES_LIMIT]:
            if _attestation(descriptor):
                continue
            image = self._image(descriptor, _INDEX_DEPTH)
            same = found.setdefault(image.config_digest, image)
            same.tags += [tag for tag in _tags(descriptor) if tag not in same.tags]
        return list(found.values())

    def _image(self, descriptor: Descriptor, depth: int) -> PlannedImage:
        stored = self._blob(descriptor)
        what = f"manifest {digests.short(descriptor.digest)}"
        document = images.decode_document(self._ingest.document(stored, what), descriptor.media_type)
        if isinstance(document, Index):
            if depth == 0:
                raise Invalid("indexes are nested too deeply")
            return self._choose(document, depth)
        return self._manifest(document, stored, descriptor)

    def _choose(self, index: Index, depth: int) -> PlannedImage:
        """The image of an index that fits the platform best; if none was asked for, any that is complete."""
        ranked: list[tuple[int, int, Descriptor]] = []
        for position, descriptor in enumerate(index.manifests):
            if _attestation(descriptor) or not self._ingest.has(_path(descriptor.digest)):
                continue
            offered = descriptor.platform
            rank = 0 if offered is None else platforms.preference(self._platform, offered)
            if rank is not None or not self._asked:
                ranked.append((1000 if rank is None else rank, position, descriptor))
        for _, _, descriptor in sorted(ranked, key=lambda entry: entry[:2]):
            with contextlib.suppress(_Incomplete):
                return self._image(descriptor, depth - 1)
        raise Invalid(f"archive holds no image for platform {self._platform}")

    def _manifest(self, manifest: Manifest, stored: Stored, descriptor: Descriptor) -> PlannedImage:
        if manifest.config.media_type not in (images.CONFIG, images.DOCKER_CONFIG):
            raise Invalid(f"manifest {digests.short(descriptor.digest)} is not that of an image")
        blob = self._blob(manifest.config)
        config = images.decode_config(self._ingest.document(blob, "image config"))
        layers: list[PlannedLayer] = []
        for layer, chained in zip(manifest.layers, _chained(config, len(manifest.layers)), strict=True):
            images.compression(layer.media_type)
            layers.append(PlannedLayer(self._blob(layer), *chained, layer))
        descriptor = msgspec.structs.replace(descriptor, media_type=descriptor.media_type or manifest.media_type)
        return PlannedImage(blob, manifest.config.digest, layers, stored, descriptor)

    def _blob(self, descriptor: Descriptor) -> Stored:
        stored = self._ingest.find(descriptor.digest)
        if stored is None:
            raise _Incomplete(f"archive lacks the blob {descriptor.digest}")
        if stored.size != descriptor.size:
            raise Invalid(f"blob {descriptor.digest} has {stored.size} bytes, its descriptor says {descriptor.size}")
        return stored


class _Incomplete(Invalid):
    """A blob that a document names is not in the archive: of a multi-platform image often only one part is."""


def _docker_archive(ingest: Ingest) -> list[PlannedImage]:
    data = ingest.document(ingest.get("manifest.json"), "manifest.json")
    images.check_json(data, "manifest.json")
    try:
        items = msgspec.json.decode(data, type=list[_Item])
    except msgspec.MsgspecError as error:
        raise Invalid(f"invalid manifest.json: {error}") from None
    if len(items) > _IMAGES_LIMIT:
        raise Invalid(f"manifest.json lists more than {_IMAGES_LIMIT} images")
    return [_docker_image(ingest, item) for item in items]


def _docker_image(ingest: Ingest, item: _Item) -> PlannedImage:
    stored = ingest.get(item.config)
    _check_name(item.config, stored)
    config = images.decode_config(ingest.document(stored, "image config"))
    names = item.layers or []
    layers: list[PlannedLayer] = []
    for name, chained in zip(names, _chained(config, len(names)), strict=True):
        layer = ingest.follow(name)
        if name.startswith("blobs/"):
            _check_name(name, layer)
        layers.append(PlannedLayer(layer, *chained))
    tags: list[str] = []
    for tag in item.repo_tags or ():
        reference = references.parse(tag, default_tag=False)
        if not reference.tag or reference.digest:
            raise Invalid(f'invalid tag "{tag}" in manifest.json')
        if str(reference) not in tags:
            tags.append(str(reference))
    return PlannedImage(stored, stored.digest, layers, tags=tags)


def _check_name(path: str, stored: Stored) -> None:
    """A file that is named by a digest must have it: "<hex>.json", "blobs/sha256/<hex>"."""
    name = path.rpartition("/")[2].removesuffix(".json")
    if digests.is_digest(f"sha256:{name}") and stored.digest != f"sha256:{name}":
        raise Invalid(f"archive member {path} has the digest {stored.digest}")


def _chained(config: ImageConfig, layers: int) -> list[tuple[Digest, Digest, str]]:
    """(diff id, chain id, parent chain id) of every layer. Invalid if the config counts other than `layers`."""
    if len(config.diff_ids) != layers:
        raise Invalid(f"invalid manifest, layers length mismatch: expected {layers}, got {len(config.diff_ids)}")
    chains = digests.chain_ids(config.diff_ids)
    return list(zip(config.diff_ids, chains, ["", *chains][: len(chains)], strict=True))


def _tags(descriptor: Descriptor) -> list[str]:
    """The name an index gives to an image: containerd's annotation, or OCI's if it is more than a tag."""
    annotations = descriptor.annotations or {}
    name = annotations.get(_NAME_ANNOTATION, "")
    if not name:
        name = annotations.get(_REF_ANNOTATION, "")
        if "/" not in name and ":" not in name:
            return []
    reference = references.parse(name)
    return [str(reference)] if reference.tag and not reference.digest else []


def _attestation(descriptor: Descriptor) -> bool:
    """BuildKit stores provenance beside the images, as manifests for an unknown platform."""
    unknown = descriptor.platform is not None and descriptor.platform.architecture == "unknown"
    return unknown or "vnd.docker.reference.type" in (descriptor.annotations or {})


def _path(digest: Digest) -> str:
    return f"blobs/{digests.algorithm(digest)}/{digests.encoded(digest)}"
