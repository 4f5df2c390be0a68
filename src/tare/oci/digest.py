"""Digests: "sha256:" + 64 lower-case hex, or "sha512:" + 128. Pure; any process.

`Digest` is a plain `str` at run time (msgspec neither encodes nor decodes subclasses of str) that has been through
`parse`, or through a Struct field of type `DigestField`, which holds the same pattern. Such a string contains no "/",
no "." and no NUL, so it may become part of a path (CVE-2014-9356, CVE-2024-3727).

Deliberately absent: other algorithms. The registered set of the image spec is sha256, sha512 and blake3; nobody
publishes the last.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Annotated, NewType

import msgspec

from tare.errors import Invalid

__all__ = ["Digest", "DigestField", "algorithm", "chain", "chain_ids", "encoded", "is_digest", "of", "parse", "short"]

Digest = NewType("Digest", str)

_PATTERN = r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})"
_MATCH = re.compile(_PATTERN, re.ASCII).fullmatch
_FORM = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}", re.ASCII).fullmatch
_LENGTHS = {"sha256": 64, "sha512": 128}

DigestField = Annotated[Digest, msgspec.Meta(pattern=rf"\A{_PATTERN}\Z")]


def parse(text: str) -> Digest:
    """Check and return. Invalid with go-digest's three texts: form, algorithm, length."""
    if _MATCH(text):
        return Digest(text)
    name, _, value = text.partition(":")
    if not _FORM(text):
        raise Invalid(f'invalid checksum digest format: "{_shown(text)}"')
    if name not in _LENGTHS:
        raise Invalid(f'unsupported digest algorithm: "{_shown(name)}"')
    if len(value) != _LENGTHS[name]:
        raise Invalid(f'invalid checksum digest length: "{_shown(text)}"')
    raise Invalid(f'invalid checksum digest format: "{_shown(text)}"')


def is_digest(text: str) -> bool:
    return _MATCH(text) is not None


def of(data: bytes | Iterable[bytes]) -> Digest:
    """The sha256 digest of bytes, or of the concatenation of chunks."""
    hashed = hashlib.sha256(data if isinstance(data, bytes) else b"")
    if not isinstance(data, bytes):
        for chunk in data:
            hashed.update(chunk)
    return Digest(f"sha256:{hashed.hexdigest()}")


def algorithm(digest: Digest) -> str:
    return digest.partition(":")[0]


def encoded(digest: Digest) -> str:
    return digest.partition(":")[2]


def short(digest: str) -> str:
    """Twelve hex digits, as listings show an id."""
    return digest.rpartition(":")[2][:12]


def chain(parent: str, diff_id: Digest) -> Digest:
    """The chain id of a layer on top of the chain `parent` ("" at the base): image spec config.md, Layer ChainID."""
    return of(f"{parent} {diff_id}".encode()) if parent else diff_id


def chain_ids(diff_ids: Iterable[Digest]) -> list[Digest]:
    """The chain id of every layer, base first."""
    found: list[Digest] = []
    for diff_id in diff_ids:
        found.append(chain(found[-1] if found else "", diff_id))
    return found


def _shown(text: str) -> str:
    """At most 160 printable characters: the text is not ours and goes into an error."""
    return text[:160].encode("unicode_escape").decode("ascii")
