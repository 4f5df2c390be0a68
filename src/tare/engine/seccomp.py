"""Which system calls a container may make: a profile in Docker's JSON format -> a compiled filter on disk.

Runs in the daemon. `select` (profile -> rules) is pure; `profile` keeps the compiled program in a cache directory:
compiling costs 12 ms, finding it again 0.04 ms (2 cores, three architectures).
Deliberately absent: SCMP_ACT_NOTIFY, for which nobody would listen.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Collection, Sequence
from functools import lru_cache
from importlib import resources

import msgspec

from tare.errors import Invalid
from tare.linux import seccomp as libseccomp

__all__ = ["Filter", "architecture", "default_profile", "kernel_version", "parse", "profile", "select", "wanted"]

_TEXT_LIMIT = 1 << 20
_NAME_LIMIT = 10_000
"""System call names in one profile, all groups together; the default has about 500."""
_FORMAT = 2
"""Part of the cache key: raise it when the same rules compile to another program."""

_NATIVE = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "i686": ("x86", "SCMP_ARCH_X86"),
    "armv7l": ("arm", "SCMP_ARCH_ARM"),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64"),
    "loongarch64": ("loongarch64", "SCMP_ARCH_LOONGARCH64"),
}
"""uname -m -> (name in includes.arches, name in archMap)."""

_FLAGS = frozenset(["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"])
"""The loader's ways anyway: one thread, and no speculation mitigation forced on the program."""


class Argument(msgspec.Struct, frozen=True, rename="camel"):
    index: int
    op: str
    value: int
    value_two: int = 0


class Condition(msgspec.Struct, frozen=True, rename="camel"):
    """When a group counts: all `caps` held, this machine among `arches`, kernel at least `min_kernel`."""

    caps: tuple[str, ...] | None = None
    arches: tuple[str, ...] | None = None
    min_kernel: str | None = None


class Group(msgspec.Struct, frozen=True, rename="camel"):
    action: str
    names: tuple[str, ...] | None = None
    name: str = ""
    errno_ret: int | None = None
    args: tuple[Argument, ...] | None = None
    includes: Condition | None = None
    excludes: Condition | None = None


class ArchitectureMap(msgspec.Struct, frozen=True, rename="camel"):
    architecture: str
    sub_architectures: tuple[str, ...] | None = None


class Profile(msgspec.Struct, frozen=True, rename="camel"):
    default_action: str = ""
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] | None = None
    arch_map: tuple[ArchitectureMap, ...] | None = None
    flags: tuple[str, ...] | None = None
    syscalls: tuple[Group, ...] | None = None


class Filter(msgspec.Struct, frozen=True):
    """What is left of a profile for one machine and one set of capabilities; the compiler's input."""

    default_action: int
    rules: tuple[libseccomp.Rule, ...]
    architectures: tuple[str, ...]


def parse(text: str | bytes) -> Profile:
    """The profile in `text`; Invalid with Docker's opening words."""
    if len(text) > _TEXT_LIMIT:
        raise Invalid(f"Decoding seccomp profile failed: larger than {_TEXT_LIMIT} bytes")
    try:
        profile = msgspec.json.decode(text, type=Profile)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Invalid(f"Decoding seccomp profile failed: {error}") from None
    if profile.architectures and profile.arch_map:
        raise Invalid(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, "
            "use either 'architectures' or 'archMap'"
        )
    groups = profile.syscalls or ()
    if any(group.name and group.names for group in groups):
        raise Invalid("both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'")
    if sum(len(group.names or ()) for group in groups) > _NAME_LIMIT:
        raise Invalid(f"Decoding seccomp profile failed: more than {_NAME_LIMIT} system calls")
    for flag in profile.flags or ():
        if flag not in _FLAGS:
            raise Invalid(f"seccomp flag {flag} is not supported")
    return profile


def select(
    profile: Profile, capabilities: Collection[str], arch: str, kernel: tuple[int, int], native: str = ""
) -> Filter | None:
    """The rules of the groups that count here; None if the profile says nothing at all, which Docker takes for "off".

    `capabilities` is the bounding set ("CAP_CHOWN"), `arch` the name used in includes ("amd64"), `native` the one in
    archMap. The order of the groups is kept.
    """
    if not profile.default_action and not profile.syscalls:
        return None
    rules: list[libseccomp.Rule] = []
    for group in profile.syscalls or ():
        if group.excludes and _excluded(group.excludes, capabilities, arch, kernel):
            continue
        if group.includes and not _included(group.includes, capabilities, arch, kernel):
            continue
        action = _action(group.action, group.errno_ret)
        conditions = tuple(_condition(argument) for argument in group.args or ())
        for name in group.names or ((group.name,) if group.name else ()):
            rules.append(libseccomp.Rule(name, action, conditions))
    architectures = list(profile.architectures or ())
    for entry in profile.arch_map or ():
        if entry.architecture == native:
            architectures += [entry.architecture, *(entry.sub_architectures or ())]
            break
    for name in architectures:
        if name not in libseccomp.ARCHITECTURES:
            raise Invalid(f"unknown architecture {json.dumps(name)} in the seccomp profile")
    return Filter(_action(profile.default_action, profile.default_errno_ret), tuple(rules), tuple(architectures))


def _excluded(found: Condition, capabilities: Collection[str], arch: str, kernel: tuple[int, int]) -> bool:
    """Any part of an exclusion is enough."""
    return (
        arch in (found.arches or ())
        or any(name in capabilities for name in found.caps or ())
        or (found.min_kernel is not None and kernel >= kernel_version(found.min_kernel))
    )


def _included(found: Condition, capabilities: Collection[str], arch: str, kernel: tuple[int, int]) -> bool:
    """All parts of an inclusion are needed."""
    return (
        (not found.arches or arch in found.arches)
        and all(name in capabilities for name in found.caps or ())
        and (found.min_kernel is None or kernel >= kernel_version(found.min_kernel))
    )


def _action(name: str, number: int | None) -> int:
    if name not in libseccomp.ACTIONS:
        raise Invalid(f"unknown or unsupported action {json.dumps(name)} in the seccomp profile")
    if name == "SCMP_ACT_ERRNO":
        return libseccomp.errno_action(1 if number is None else number)
    if name == "SCMP_ACT_TRACE":
        return libseccomp.trace_action(1 if number is None else number)
    return libseccomp.ACTIONS[name]


def _condition(found: Argument) -> libseccomp.Condition:
    if found.op not in libseccomp.OPERATORS:
        raise Invalid(f"unknown operator {json.dumps(found.op)} in the seccomp profile")
    if not 0 <= found.index <= 5 or not 0 <= found.value < 1 << 64 or not 0 <= found.value_two < 1 << 64:
        raise Invalid("an argument of the seccomp profile is out of range: index 0 to 5, unsigned 64-bit values")
    return libseccomp.Condition(found.index, libseccomp.OPERATORS[found.op], found.value, found.value_two)


def kernel_version(release: str) -> tuple[int, int]:
    """"6.18.3-generic" -> (6, 18); Invalid if it starts otherwise."""
    parts = release.split("-")[0].split(".")
    if len(parts) < 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts[:2]):
        raise Invalid(f"invalid kernel version {json.dumps(release)}")
    return int(parts[0]), int(parts[1])


def architecture() -> tuple[str, str]:
    """(name in includes.arches, name in archMap) of this machine."""
    machine = platform.machine()
    return _NATIVE.get(machine, (machine, ""))


@lru_cache(maxsize=1)
def default_profile() -> Profile:
    """The profile shipped with the engine."""
    return parse(resources.files("tare.engine").joinpath("seccomp-default.json").read_bytes())


def wanted(options: Sequence[str], *, privileged: bool = False) -> str:
    """What --security-opt asks for: "unconfined", "builtin" or the JSON text of a profile. The last one counts."""
    choice = ""
    for option in options:
        key, separator, value = option.partition("=")
        if not separator:
            key, separator, value = option.partition(":")
        if key == "seccomp" and separator:
            choice = value
    return choice or ("unconfined" if privileged else "builtin")


def profile(
    options: Sequence[str],
    capabilities: Collection[str],
    cache: str,
    *,
    privileged: bool = False,
    kernel: tuple[int, int] | None = None,
) -> str:
    """Path of the compiled filter below `cache` (made if missing, 0700), "" for none.

    A nil return means "no filter was asked for". `options` as of Security.options, `capabilities` the bounding set.
    A privileged container gets a filter only from a profile given as text (moby, WithSeccomp). Invalid for a bad
    profile, OSError(ENOENT) without libseccomp.
    """
    choice = wanted(options, privileged=privileged)
    if choice == "unconfined" or (privileged and choice == "builtin"):
        return ""
    key = _compilable(choice, tuple(sorted(capabilities)), kernel or kernel_version(platform.release()))
    if key is None:
        return ""
    selected, digest = key
    path = os.path.join(cache, f"{digest}.bpf")
    try:
        if os.stat(path).st_size:
            return path
    except FileNotFoundError:
        pass
    try:
        program = libseccomp.compile(selected.default_action, selected.rules, selected.architectures)
    except OSError as error:
        if error.errno == 2:
            raise
        raise Invalid(f"the seccomp profile cannot be compiled: {error.strerror}") from None
    os.makedirs(cache, mode=0o700, exist_ok=True)
    _store(path, program)
    return path


@lru_cache(maxsize=64)
def _compilable(choice: str, capabilities: tuple[str, ...], kernel: tuple[int, int]) -> tuple[Filter, str] | None:
    """The rules and the name of their file: the hash of all that decides the program."""
    arch, native = architecture()
    found = default_profile() if choice == "builtin" else parse(choice)
    selected = select(found, capabilities, arch, kernel, native)
    if selected is None:
        return None
    inputs = msgspec.json.encode((_FORMAT, libseccomp.version(), native or arch, selected))
    return selected, hashlib.sha256(inputs).hexdigest()


def _store(path: str, program: bytes) -> None:
    """tmp + fsync + rename: a half-written filter must never be found under the final name (N14)."""
    fd, temporary = tempfile.mkstemp(prefix=".bpf-", dir=os.path.dirname(path))
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(program)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
