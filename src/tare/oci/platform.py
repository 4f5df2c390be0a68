"""Platforms: operating system, architecture, variant. Pure but for `host()`, which asks uname(2); any process.

Names are Go's (GOOS, GOARCH), aliases and the order of preference those of
containerd/platforms (database.go, compare.go).
"""

from __future__ import annotations

import os
import re

from msgspec import Struct

from tare.errors import Invalid

__all__ = ["Platform", "host", "parse", "preference"]

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv8l": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5l": ("arm", "v5"),
    "loongarch64": ("loong64", ""),
}
_SPELLING = {"os_version": "os.version", "os_features": "os.features"}


class Platform(Struct, frozen=True, rename=_SPELLING, omit_defaults=True):
    """As in an index's descriptor. `variant` "" means the architecture's usual one: v8 for arm64, v7 for arm."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def normal(self) -> Platform:
        """The same with Go's names and without a variant that is the usual one."""
        system = self.os.lower() or "linux"
        architecture, implied = _ARCHITECTURES.get(self.architecture.lower(), (self.architecture.lower(), ""))
        variant = self.variant.lower() or implied
        if (architecture, variant) in (("arm64", "v8"), ("arm64", "8"), ("amd64", "v1")):
            variant = ""
        if architecture == "arm":
            variant = f"v{variant or '7'}" if not variant.startswith("v") else variant
        return Platform(system, architecture, variant)


def host() -> Platform:
    """The platform of this kernel."""
    uname = os.uname()
    return Platform(uname.sysname.lower(), uname.machine).normal()


def parse(text: str) -> Platform:
    """From "linux/arm64/v8", "linux/amd64", "arm64" or "linux" (the rest is the host's). Invalid."""
    parts = text.split("/")
    if len(parts) > 3 or not all(_PART.fullmatch(part) for part in parts):
        raise Invalid(f'"{text[:100]}": invalid platform: platform specifier component must match "[A-Za-z0-9_.-]+"')
    if len(parts) == 1:
        if parts[0].lower() in ("linux", "windows", "darwin", "freebsd"):
            ours = host()
            return Platform(parts[0].lower(), ours.architecture, ours.variant)
        parts.insert(0, "linux")
    system, architecture, variant = [*parts, ""][:3]
    return Platform(system, architecture, variant).normal()


def preference(wanted: Platform, offered: Platform) -> int | None:
    """How far `offered` is from what `wanted` can run: 0 is equal, larger is older, None does not run.

    arm/v7 runs v6 and v5, amd64/v3 runs v2 and v1, arm64 runs arm after its own, amd64 runs 386 after its own.
    """
    want, have = wanted.normal(), offered.normal()
    if want.os != have.os:
        return None
    if want.architecture == have.architecture:
        gap = _level(want) - _level(have)
        return gap if gap >= 0 else None
    fallback = {"arm64": "arm", "amd64": "386"}.get(want.architecture)
    return 100 + 10 - _level(have) if have.architecture == fallback else None


def _level(platform: Platform) -> int:
    number = re.sub(r"\D.*", "", platform.variant.removeprefix("v"))[:2]
    if number:
        return int(number)
    return {"arm64": 8, "arm": 7, "amd64": 1}.get(platform.architecture, 0)
