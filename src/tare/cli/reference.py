"""Image references as people write them: split, shortened, checked, put into a path. Pure.

The grammar is that of github.com/distribution/reference.

Deliberately absent: default tags and digests' own rules; the daemon judges what a reference means.
"""

from __future__ import annotations

from tare.cli.client import escaped
from tare.cli.failure import Failure

__all__ = ["familiar", "image_path", "split", "valid"]

HEX = frozenset("0123456789abcdef")
ALPHANUMERIC = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
TAG = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
DOMAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.:[]")
NAME_LIMIT = 255
TAG_LIMIT = 128


def split(text: str) -> tuple[str, str, str]:
    """(name, tag, digest), the last two "" if absent: "host:5000/a:1@sha256:0" -> ("host:5000/a", "1", "sha256:0")."""
    name, _, digest = text.partition("@")
    head, colon, tag = name.rpartition(":")
    if colon and "/" not in tag:
        return head, tag, digest
    return name, "", digest


def familiar(name: str) -> str:
    """The short form of a name: "docker.io/library/nginx" -> "nginx"."""
    for domain in ("docker.io/", "index.docker.io/"):
        if name.startswith(domain):
            return name[len(domain) :].removeprefix("library/")
    return name


def _component(text: str) -> bool:
    """Lower-case words joined by one ".", one or two "_", or any number of "-"."""
    word = ""
    joints = []
    for letter in text + "a":
        if letter in ALPHANUMERIC:
            if word:
                joints.append(word)
            word = ""
        elif letter in "._-":
            word += letter
        else:
            return False
    starts = bool(text) and text[0] in ALPHANUMERIC and text[-1] in ALPHANUMERIC
    return starts and all(joint in (".", "_", "__") or not joint.strip("-") for joint in joints)


def valid(text: str) -> bool:
    """Whether `text` is a reference, that is name[:tag][@digest] with or without a domain."""
    name, tag, digest = split(text)
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        if not first or not set(first) <= DOMAIN:
            return False
        path = rest
    else:
        path = name
        if len(name) == 64 and set(name) <= HEX and not tag:
            return False
    if not all(map(_component, path.split("/"))) or len(name) > NAME_LIMIT:
        return False
    if text.partition("@")[0] != name and (not set(tag) <= TAG or not tag or tag[0] in ".-" or len(tag) > TAG_LIMIT):
        return False
    algorithm, _, value = digest.partition(":")
    return "@" not in text or (bool(algorithm) and len(value) >= 32 and set(value) <= HEX)


def image_path(name: str) -> str:
    """The API's path of an image, "/images/<name>". Raises Failure for "", which would address the list."""
    if not name:
        raise Failure("invalid image name or ID: value is empty")
    return "/images/" + escaped(name, b"/:@")
