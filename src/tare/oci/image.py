"""Image documents: descriptor, manifest, index, config. Pure values and their decoding; any process.

Everything here comes from strangers. A document is refused when it is larger than 4 MiB, nested deeper than 64, holds
a key twice, or can be read in two ways: `layers` beside `manifests`, or a `mediaType` that denies what the document is
(CVE-2021-41190). A digest that is not in full form never gets past the decoder.

Deliberately absent: schema 1 manifests, which are recognised only to be refused by name.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from tare.errors import Invalid
from tare.oci.digest import Digest, DigestField
from tare.oci.platform import Platform

__all__ = [
    "CONFIG",
    "DOCKER_CONFIG",
    "DOCKER_INDEX",
    "DOCKER_LAYER_GZIP",
    "DOCKER_MANIFEST",
    "DOCUMENT_LIMIT",
    "INDEX",
    "LAYER",
    "LAYER_GZIP",
    "LAYER_ZSTD",
    "MANIFEST",
    "ContainerConfig",
    "Descriptor",
    "Healthcheck",
    "History",
    "ImageConfig",
    "Index",
    "Manifest",
    "RootFs",
    "check_json",
    "compression",
    "decode_config",
    "decode_document",
    "decode_index",
    "decode_manifest",
    "encode",
    "parse_time",
]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = LAYER + "+gzip"
LAYER_ZSTD = LAYER + "+zstd"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"

_COMPRESSIONS = {
    LAYER: "",
    LAYER_GZIP: "gzip",
    LAYER_ZSTD: "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "",
    DOCKER_LAYER_GZIP: "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar": "",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar": "",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "zstd",
}

DOCUMENT_LIMIT = 4 << 20
"""Bytes of a document at most (security N11; the distribution spec asks registries for as much)."""
_DEPTH_LIMIT = 64
_LAYER_LIMIT = 500
"""Layers at most: overlayfs stacks no more in one mount (OVL_MAX_STACK, fs/overlayfs/params.h)."""

_TIME = re.compile(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_MediaType = Annotated[str, Meta(max_length=256)]
_Size = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class _Document(Struct, frozen=True, rename="camel", omit_defaults=True):
    """Base of the OCI spelled documents."""


class Descriptor(_Document, frozen=True, kw_only=True):
    """What points at content: image spec descriptor.md. `size` in bytes."""

    media_type: _MediaType = ""
    digest: DigestField
    size: _Size
    urls: tuple[str, ...] | None = None
    annotations: dict[str, str] | None = None
    data: str | None = None
    platform: Platform | None = None
    artifact_type: str | None = None


class Manifest(_Document, frozen=True, kw_only=True):
    """One image for one platform; `layers` base first."""

    schema_version: int
    media_type: _MediaType = ""
    artifact_type: str | None = None
    config: Descriptor
    layers: Annotated[tuple[Descriptor, ...], Meta(max_length=_LAYER_LIMIT)]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Index(_Document, frozen=True, kw_only=True):
    """Several manifests, usually one per platform."""

    schema_version: int
    media_type: _MediaType = ""
    artifact_type: str | None = None
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Healthcheck(Struct, frozen=True, kw_only=True, rename="pascal", omit_defaults=True):
    """Docker's extension; durations in ns, 0 inherits, `test` is ["NONE"], ["CMD", ...] or ["CMD-SHELL", text]."""

    test: tuple[str, ...] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class ContainerConfig(Struct, frozen=True, kw_only=True, rename="pascal", omit_defaults=True):
    """What an image says about containers of it: image spec config.md, with Docker's additional fields."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    exposed_ports: dict[str, dict[str, Any]] | None = None
    env: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    volumes: dict[str, dict[str, Any]] | None = None
    working_dir: str = ""
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    args_escaped: bool = False
    healthcheck: Healthcheck | None = None
    on_build: tuple[str, ...] | None = None
    shell: tuple[str, ...] | None = None


class RootFs(_Document, frozen=True, kw_only=True):
    """`diff_ids` are digests of the uncompressed layers, base first."""

    type: str
    diff_ids: Annotated[tuple[DigestField, ...], Meta(max_length=_LAYER_LIMIT)] | None = msgspec.field(
        name="diff_ids", default=None
    )


class History(_Document, frozen=True, kw_only=True):
    """One step of the build; `created` RFC 3339."""

    created: str | None = None
    created_by: str = msgspec.field(name="created_by", default="")
    author: str = ""
    comment: str = ""
    empty_layer: bool = msgspec.field(name="empty_layer", default=False)


class ImageConfig(_Document, frozen=True, kw_only=True):
    """The document whose digest is the image id. Decoding drops unknown fields: keep the bytes to keep the id."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = msgspec.field(name="os.version", default="")
    created: str | None = None
    author: str = ""
    config: ContainerConfig | None = None
    rootfs: RootFs
    history: tuple[History, ...] | None = None
    comment: str = ""
    parent: str = ""

    @property
    def platform(self) -> Platform:
        return Platform(self.os, self.architecture, self.variant)

    @property
    def diff_ids(self) -> tuple[Digest, ...]:
        return self.rootfs.diff_ids or ()


Document = TypeVar("Document", Manifest, Index, ImageConfig)


def encode(value: object) -> bytes:
    """Compact JSON, keys in the order of the fields: the same value always gives the same bytes."""
    return msgspec.json.encode(value)


def compression(media_type: str) -> str:
    """The compression, "gzip", "zstd" or "", that a layer's media type names. Invalid if it is no layer of ours."""
    try:
        return _COMPRESSIONS[media_type]
    except KeyError:
        raise Invalid(f'unsupported layer media type "{_shown(media_type)}"') from None


def check_json(data: bytes, what: str) -> Any:
    """Parse untrusted JSON strictly: 4 MiB, depth 64, no key twice, no NaN. Invalid, saying `what` it was."""
    if len(data) > DOCUMENT_LIMIT:
        raise Invalid(f"{what} is larger than {DOCUMENT_LIMIT} bytes")
    depth = 0
    for bracket in re.findall(rb"[\[\]{}]", re.sub(rb'"(?:[^"\\]|\\.)*+"', b"", data, flags=re.DOTALL)):
        depth += 1 if bracket in b"[{" else -1
        if depth > _DEPTH_LIMIT:
            raise Invalid(f"{what} is nested deeper than {_DEPTH_LIMIT}")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{what} is not valid JSON: {_shown(str(error))}") from None


def decode_manifest(data: bytes, media_type: str = "") -> Manifest:
    """`media_type` is what the pointing descriptor or the Content-Type said, "" if nothing did. Invalid."""
    fields = check_json(data, "manifest")
    _unambiguous(fields, "manifest", media_type, (MANIFEST, DOCKER_MANIFEST), "layers", "manifests")
    return _decode(data, Manifest, "manifest")


def decode_index(data: bytes, media_type: str = "") -> Index:
    """As `decode_manifest`, for an index or a Docker manifest list. Invalid."""
    fields = check_json(data, "index")
    _unambiguous(fields, "index", media_type, (INDEX, DOCKER_INDEX), "manifests", "layers")
    return _decode(data, Index, "index")


def decode_document(data: bytes, media_type: str = "") -> Manifest | Index:
    """A manifest or an index, by its own `mediaType`, by `media_type`, or by which of the two lists it has. Invalid."""
    fields = check_json(data, "manifest")
    if not isinstance(fields, dict):
        raise Invalid("manifest is not a JSON object")
    kind = fields.get("mediaType") or media_type
    if kind in (INDEX, DOCKER_INDEX) or (not kind and "manifests" in fields):
        return decode_index(data, media_type)
    return decode_manifest(data, media_type)


def decode_config(data: bytes) -> ImageConfig:
    """Invalid also if the history names more layers than `rootfs` has; fewer are legal (image spec config.md)."""
    check_json(data, "image config")
    config = _decode(data, ImageConfig, "image config")
    if config.rootfs.type != "layers":
        raise Invalid(f'image config has rootfs type "{_shown(config.rootfs.type)}", only "layers" is known')
    if sum(not step.empty_layer for step in config.history or ()) > len(config.diff_ids):
        raise Invalid("too many non-empty layers in History section")
    return config


def parse_time(text: str | None) -> int:
    """RFC 3339 with up to nine digits of fraction -> ns since the epoch; 0 for None, "" or a malformed one."""
    match = _TIME.fullmatch(text or "")
    if match is None:
        return 0
    base, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(base.upper() + ("+00:00" if zone in "Zz" else zone))
    except ValueError:
        return 0
    elapsed = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (elapsed.days * 86400 + elapsed.seconds) * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))


def _decode(data: bytes, kind: type[Document], what: str) -> Document:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        text = str(error)
        if f"`array` of length <= {_LAYER_LIMIT}" in text:
            text = f"more than {_LAYER_LIMIT} layers, which no overlay mount can stack"
        raise Invalid(f"invalid {what}: {_shown(text)}") from None


def _unambiguous(fields: Any, what: str, media_type: str, accepted: tuple[str, ...], own: str, other: str) -> None:
    if not isinstance(fields, dict):
        raise Invalid(f"{what} is not a JSON object")
    if "fsLayers" in fields or fields.get("schemaVersion") == 1:
        raise Invalid("schema 1 manifests are not supported: pull from or push to a registry that speaks schema 2")
    if fields.get("schemaVersion") != 2:
        raise Invalid(f"{what} has an unsupported schemaVersion")
    if own not in fields:
        raise Invalid(f"{what} has no {own}")
    if other in fields or (own == "manifests" and "config" in fields):
        raise Invalid(f"{what} is ambiguous: it has both layers and manifests")
    claimed = fields.get("mediaType", "")
    for name in (claimed, media_type):
        if name and name not in accepted:
            raise Invalid(f'{what} has the media type "{_shown(str(name))}"')
    if claimed and media_type and claimed != media_type:
        raise Invalid(f'{what} says it is "{_shown(claimed)}" but was offered as "{_shown(media_type)}"')


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _shown(text: str) -> str:
    return text[:200].encode("unicode_escape").decode("ascii")
