"""Image references: `[domain/]path[:tag][@digest]`, normalised the way Docker does. Pure; any process.

The grammar is that of github.com/distribution/reference (regexp.go, normalize.go) and the texts of its errors are kept:
clients show them as they are. Every pattern is linear in the length of its input.
"""

from __future__ import annotations

import re

from msgspec import Struct

from tare.errors import Invalid
from tare.oci import digest as digests

__all__ = ["DEFAULT_DOMAIN", "DEFAULT_TAG", "Reference", "check_tag", "parse"]

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"
_NAME_LIMIT = 255

_LABEL = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(rf"({_DOMAIN})/({_PATH})(?::({_TAG}))?(?:@({_DIGEST}))?", re.ASCII)
_TAG_ONLY = re.compile(_TAG, re.ASCII)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}", re.ASCII)


class Reference(Struct, frozen=True):
    """A name with everything said: `domain` and `path` are never empty; `tag` and `digest` may be ""."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        """The full form: "docker.io/library/nginx:latest"."""
        return self.name + self._suffix()

    @property
    def name(self) -> str:
        """Without tag and digest: "docker.io/library/nginx"."""
        return f"{self.domain}/{self.path}"

    def familiar_name(self) -> str:
        """What people type, without tag and digest: "nginx"."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        rest = self.path.removeprefix(_OFFICIAL)
        # "library/a/b" keeps its prefix: without it, it would be read back as the repository "a/b".
        return rest if "/" not in rest else self.path

    def familiar(self) -> str:
        """What people type: "nginx:latest", "nginx@sha256:..."."""
        return self.familiar_name() + self._suffix()

    def with_tag(self, tag: str) -> Reference:
        """The same repository with another tag and no digest. Invalid."""
        return Reference(self.domain, self.path, check_tag(tag))

    def with_digest(self, digest: str) -> Reference:
        """The same repository pinned to a digest, no tag. Invalid."""
        return Reference(self.domain, self.path, "", digests.parse(digest))

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def check_tag(tag: str) -> str:
    """Invalid("invalid tag format") unless it is a tag."""
    if not _TAG_ONLY.fullmatch(tag):
        raise Invalid("invalid tag format")
    return tag


def parse(text: str, *, default_tag: bool = True) -> Reference:
    """Read what a user typed; "latest" is added when neither tag nor digest is there, unless `default_tag` is off.

    Invalid with the texts of distribution/reference, e.g.
    "invalid reference format: repository name (library/Foo) must be lowercase".
    """
    if _IDENTIFIER.fullmatch(text):
        raise Invalid(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    domain, remainder = _split_domain(text)
    repository = remainder.partition(":")[0]
    if repository.lower() != repository:
        raise Invalid(f"invalid reference format: repository name ({_shown(repository)}) must be lowercase")
    match = _REFERENCE.fullmatch(f"{domain}/{remainder}") if len(text) <= 1024 else None
    if match is None:
        raise Invalid("invalid reference format")
    domain, path, tag, digest = (part or "" for part in match.groups())
    if len(path) > _NAME_LIMIT:
        raise Invalid("repository name must not be more than 255 characters")
    if digest:
        digests.parse(digest)
    if not tag and not digest and default_tag:
        tag = DEFAULT_TAG
    return Reference(domain, path, tag, digest)


def _split_domain(text: str) -> tuple[str, str]:
    """The first component is a domain if it has a dot, a colon, an upper-case letter, or is "localhost"."""
    first, slash, rest = text.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost" or first.lower() != first):
        domain, remainder = DEFAULT_DOMAIN, text
    else:
        domain, remainder = first, rest
    if domain == _LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in remainder:
        remainder = _OFFICIAL + remainder
    return domain, remainder


def _shown(text: str) -> str:
    return text[:255].encode("unicode_escape").decode("ascii")
