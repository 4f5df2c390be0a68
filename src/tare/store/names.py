"""Which names may be given to an image, and how the ledger spells them. Pure; the daemon."""

from __future__ import annotations

from tare.errors import Invalid
from tare.oci import reference as references
from tare.oci.reference import Reference

__all__ = ["check", "key", "to_tag"]


def key(name: Reference) -> str:
    """The primary key of `tags`: a digest, when there is one, makes the tag beside it redundant."""
    return f"{name.name}@{name.digest}" if name.digest else str(name)


def check(name: Reference) -> Reference:
    """Invalid for "sha256": "sha256:abc" could be read as an id as well."""
    if name.familiar_name() == "sha256":
        raise Invalid("refusing to create an ambiguous tag using digest algorithm as name")
    return name


def to_tag(repo: str, tag: str = "") -> Reference:
    """The reference of a new tag, "latest" by default. Invalid with Docker's texts for what cannot be tagged."""
    name = references.parse(repo)
    if name.digest:
        raise Invalid("refusing to create a tag with a digest reference")
    return check(name.with_tag(tag) if tag else name)
