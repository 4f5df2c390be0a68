"""seccomp filters: rules in, classic BPF out, by libseccomp.so.2 through ctypes.

Runs in the daemon, needs no privilege and loads nothing into the kernel: init is given the bytes. The library is opened
at the first call, not at import, so that rooms of the fork path can share this package.

What libseccomp does not do is put in front of its program: names younger than the library (numbers from 424 on are the
same on every architecture), and ENOSYS instead of the default action for calls younger than the rules, so that programs
fall back as on an older kernel (runc's -ENOSYS stub; libseccomp issue 286).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator, Sequence
from errno import EEXIST, EINVAL, ENOENT, ENOSYS
from typing import Any, NamedTuple

__all__ = [
    "ACTIONS", "ALLOW", "ARCHITECTURES", "OPERATORS", "Condition", "Rule", "compile", "errno_action", "trace_action",
    "version",
]  # fmt: skip

ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_TRACE = 0x7FF00000
ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": _ERRNO,
    "SCMP_ACT_TRACE": _TRACE,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": ALLOW,
}
"""seccomp.h; the low 16 bits of ERRNO and TRACE carry a number. NOTIFY is absent: nobody would answer it."""

OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}

ARCHITECTURES = {
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_X86_64": 0xC000003E,
    "SCMP_ARCH_X32": 0x4000003E,
    "SCMP_ARCH_ARM": 0x40000028,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_MIPS": 0x00000008,
    "SCMP_ARCH_MIPS64": 0x80000008,
    "SCMP_ARCH_MIPS64N32": 0xA0000008,
    "SCMP_ARCH_MIPSEL": 0x40000008,
    "SCMP_ARCH_MIPSEL64": 0xC0000008,
    "SCMP_ARCH_MIPSEL64N32": 0xE0000008,
    "SCMP_ARCH_PPC": 0x00000014,
    "SCMP_ARCH_PPC64": 0x80000015,
    "SCMP_ARCH_PPC64LE": 0xC0000015,
    "SCMP_ARCH_S390": 0x00000016,
    "SCMP_ARCH_S390X": 0x80000016,
    "SCMP_ARCH_PARISC": 0x0000000F,
    "SCMP_ARCH_PARISC64": 0x8000000F,
    "SCMP_ARCH_RISCV64": 0xC00000F3,
    "SCMP_ARCH_LOONGARCH64": 0xC0000102,
}
"""libseccomp's tokens: the kernel's AUDIT_ARCH_*, but for x32, which the kernel reports as x86-64 with bit 30 of the
number set."""

_X32 = ARCHITECTURES["SCMP_ARCH_X32"]
_X86_64 = ARCHITECTURES["SCMP_ARCH_X86_64"]
_X32_BIT = 0x40000000
_OLD_NUMBERING = frozenset(token for name, token in ARCHITECTURES.items() if name.startswith("SCMP_ARCH_MIPS"))
"""MIPS adds a base to every number, so the table below does not hold there; libseccomp alone decides."""

_COMMON = {
    name: number
    for number, name in enumerate(
        "pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount fsopen fsconfig "
        "fsmount fspick pidfd_open clone3 close_range openat2 pidfd_getfd faccessat2 process_madvise epoll_pwait2 "
        "mount_setattr quotactl_fd landlock_create_ruleset landlock_add_rule landlock_restrict_self memfd_secret "
        "process_mrelease "
        "futex_waitv set_mempolicy_home_node cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue "
        "statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat "
        "listxattrat removexattrat open_tree_attr file_getattr file_setattr listns".split(),
        424,
    )
}
"""Names by number since Linux 5.1, when all tables were joined: include/uapi/asm-generic/unistd.h of 6.18."""

_ATTRIBUTE_NNP = 3
_ATTRIBUTE_OPTIMIZE = 8
_UNKNOWN = -1
_BINARY_TREE = 2
_TREE_FROM = 32
"""Rules from which a tree pays; libseccomp <= 2.5.4 makes a broken one of no rules at all."""


class Condition(NamedTuple):
    """One comparison of a 64-bit argument. MASKED_EQ: `value` is the mask, `value_two` the datum."""

    argument: int
    operator: int
    value: int
    value_two: int = 0


class Rule(NamedTuple):
    """An action for one system call, by name; all conditions must hold."""

    name: str
    action: int
    conditions: tuple[Condition, ...] = ()


def errno_action(number: int) -> int:
    return _ERRNO | (number & 0xFFFF)


def trace_action(number: int) -> int:
    return _TRACE | (number & 0xFFFF)


class _Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


class _Version(ctypes.Structure):
    _fields_ = [("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint)]


_library: ctypes.CDLL | None = None


def _load() -> ctypes.CDLL:
    global _library
    if _library is None:
        try:
            library = ctypes.CDLL("libseccomp.so.2")
        except OSError:
            raise OSError(
                ENOENT, "seccomp filters need libseccomp.so.2, which is not installed (Debian package libseccomp2)"
            ) from None
        library.seccomp_init.restype = ctypes.c_void_p
        library.seccomp_init.argtypes = [ctypes.c_uint32]
        library.seccomp_release.argtypes = [ctypes.c_void_p]
        library.seccomp_release.restype = None
        library.seccomp_arch_native.restype = ctypes.c_uint32
        library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
        library.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
        library.seccomp_rule_add_array.argtypes = [
            ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Compare),
        ]  # fmt: skip
        library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
        library.seccomp_version.restype = ctypes.POINTER(_Version)
        _library = library
    return _library


def version() -> tuple[int, int, int]:
    """Of the library: its tables decide what a name means, so it is part of every cache key."""
    found = _load().seccomp_version().contents
    return found.major, found.minor, found.micro


def compile(
    default_action: int, rules: Sequence[Rule], architectures: Sequence[str], *, enosys: bool | None = None
) -> bytes:
    """An array of struct sock_filter for seccomp(2). About 12 ms for the default profile with its three
    architectures, 1,290 instructions, as Docker's.

    `architectures` are keys of ARCHITECTURES besides the native one. Names that neither libseccomp nor the table above
    knows are left out, as are rules that equal the default. `enosys`: calls above the highest number any rule names
    return ENOSYS; by default just if the default action refuses. OSError(ENOENT) without the library, OSError(EINVAL)
    for a rule it refuses.
    """
    library = _load()
    native = int(library.seccomp_arch_native())
    tokens = list(dict.fromkeys([native, *(_token(name) for name in architectures)]))
    if enosys is None:
        enosys = default_action not in (ALLOW, ACTIONS["SCMP_ACT_LOG"], errno_action(ENOSYS))
        enosys = enosys and default_action & 0x7FFF0000 != _TRACE
    strange = {name for name in {rule.name for rule in rules} if _resolve(library, native, name) == _UNKNOWN}
    young = [rule for rule in rules if rule.name in strange and rule.name in _COMMON]
    known = [rule for rule in rules if rule.name not in strange and rule.action != default_action]
    program = _export(library, default_action, known, [token for token in tokens if token != native])
    last = {token: _last(library, token, rules) for token in tokens} if enosys else {}
    return _prefix(tokens, last, _young_actions(young, default_action), _multiplexers(library, tokens, known)) + program


def _token(name: str) -> int:
    if name not in ARCHITECTURES:
        raise OSError(EINVAL, f"unknown seccomp architecture {name!r}")
    return ARCHITECTURES[name]


def _resolve(library: ctypes.CDLL, token: int, name: str) -> int:
    """The number on that architecture; below -1 a pseudo number of libseccomp: known, but not there."""
    try:
        encoded = name.encode("ascii")
    except UnicodeEncodeError:
        return _UNKNOWN
    return int(library.seccomp_syscall_resolve_name_arch(token, encoded))


def _check(code: int, act: str) -> None:
    if code < 0:
        raise OSError(-code, f"libseccomp: {act}: {os.strerror(-code)}")


def _export(library: ctypes.CDLL, default_action: int, rules: Sequence[Rule], further: Sequence[int]) -> bytes:
    context = library.seccomp_init(default_action)
    if not context:
        raise OSError(EINVAL, f"libseccomp: default action {default_action:#x} refused")
    try:
        _check(library.seccomp_attr_set(context, _ATTRIBUTE_NNP, 0), "unset no_new_privs")
        for token in further:
            _check(library.seccomp_arch_add(context, token), f"add architecture {token:#x}")
        if len(rules) > _TREE_FROM:
            library.seccomp_attr_set(context, _ATTRIBUTE_OPTIMIZE, _BINARY_TREE)  # absent before 2.5: a list then
        native = int(library.seccomp_arch_native())
        for rule in rules:
            number = _resolve(library, native, rule.name)
            for conditions in _alternatives(rule.conditions):
                array = (_Compare * len(conditions))(*(_Compare(*condition) for condition in conditions))
                code = library.seccomp_rule_add_array(context, rule.action, number, len(conditions), array)
                _check(0 if code == -EEXIST else code, f"add a rule for {rule.name}")
        return _drain(library, context)
    finally:
        library.seccomp_release(context)


def _alternatives(conditions: tuple[Condition, ...]) -> Iterator[tuple[Condition, ...]]:
    """libseccomp takes one comparison per argument in a rule; several of one argument mean "or" (runc, matchCall)."""
    if len({condition.argument for condition in conditions}) == len(conditions):
        yield conditions
    else:
        for condition in conditions:
            yield (condition,)


def _drain(library: ctypes.CDLL, context: Any) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _check(library.seccomp_export_bpf(context, fd), "export the program")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _last(library: ctypes.CDLL, token: int, rules: Sequence[Rule]) -> int:
    """The highest number that any rule names on this architecture."""
    numbers = [_resolve(library, token, rule.name) for rule in rules]
    if token not in _OLD_NUMBERING:
        base = _X32_BIT if token == _X32 else 0
        numbers += [_COMMON[rule.name] + base for rule in rules if rule.name in _COMMON]
    return max(numbers, default=0)


def _young_actions(rules: Sequence[Rule], default_action: int) -> list[tuple[int, int, int]]:
    """(first, last, action) ranges of names libseccomp cannot express. A conditional rule is never widened: dropped."""
    actions: dict[int, int] = {}
    for rule in rules:
        if not rule.conditions and rule.action != default_action:
            actions.setdefault(_COMMON[rule.name], rule.action)
    ranges: list[tuple[int, int, int]] = []
    for number in sorted(actions):
        if ranges and ranges[-1][1] == number - 1 and ranges[-1][2] == actions[number]:
            ranges[-1] = (ranges[-1][0], number, actions[number])
        else:
            ranges.append((number, number, actions[number]))
    return ranges


def _multiplexers(library: ctypes.CDLL, tokens: Sequence[int], rules: Sequence[Rule]) -> dict[int, dict[int, int]]:
    """{architecture: {number: action}} of unconditional refusals of socketcall and ipc.

    For each rule on socket(2) libseccomp also lets the same function of socketcall pass, without the conditions on its
    arguments, and the outcome beside a rule on socketcall itself depends on their order: so the refusal goes first.
    """
    refused: dict[int, dict[int, int]] = {}
    for rule in rules:
        if rule.name in ("socketcall", "ipc") and not rule.conditions and rule.action != ALLOW:
            for token in tokens:
                number = _resolve(library, token, rule.name)
                if number >= 0:
                    refused.setdefault(token, {})[number] = rule.action
    return refused


_LOAD, _JUMP, _EQUAL, _GREATER, _GREATER_EQUAL, _SET, _RETURN = 0x20, 0x05, 0x15, 0x25, 0x35, 0x45, 0x06
"""BPF_LD|W|ABS, BPF_JMP|JA, JEQ, JGT, JGE, JSET, BPF_RET|K: linux/filter.h. Offsets 0 and 4 are number and arch."""


def _instruction(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, true, false, value)


def _prefix(
    tokens: Sequence[int],
    last: dict[int, int],
    young: Sequence[tuple[int, int, int]],
    refused: dict[int, dict[int, int]],
) -> bytes:
    """Instructions to run before libseccomp's program; jumps are relative, so that one moves unchanged.

    Per audit architecture a section; each ends in a jump past the whole prefix, whose length is known last.
    """
    sections: list[tuple[int, list[bytes]]] = []
    for token in tokens:
        if token == _X32:
            continue  # part of the x86-64 section
        body = _section(token, 0, last, young, refused)
        if token == _X86_64 and _X32 in tokens:
            other = _section(_X32, _X32_BIT, last, young, refused)
            if body or other:
                # +1: over the jump to the end that will follow the 64-bit body
                body = [_instruction(_SET, _X32_BIT, true=len(body) + 1), *body, b"", *other]
        elif token == _X86_64 and body:
            body = [_instruction(_SET, _X32_BIT, true=len(body)), *body]
        if body:
            sections.append((token, [_instruction(_LOAD, 0), *body, b""]))
    if not sections:
        return b""
    program: list[bytes] = [_instruction(_LOAD, 4)]
    for token, body in sections:
        program.append(_instruction(_EQUAL, token, false=len(body)))
        program.extend(body)
    return b"".join(part or _instruction(_JUMP, len(program) - index - 1) for index, part in enumerate(program))


def _section(
    token: int,
    base: int,
    last: dict[int, int],
    young: Sequence[tuple[int, int, int]],
    refused: dict[int, dict[int, int]],
) -> list[bytes]:
    """Straight-line tests of a number already loaded; falls through when nothing applies."""
    body: list[bytes] = []
    if last.get(token):
        body += [_instruction(_GREATER, last[token], false=1), _instruction(_RETURN, errno_action(ENOSYS))]
    for number, action in refused.get(token, {}).items():
        body += [_instruction(_EQUAL, number, false=1), _instruction(_RETURN, action)]
    tests: list[bytes] = []
    for first, end, action in young if token not in _OLD_NUMBERING else ():
        tests += [
            _instruction(_GREATER_EQUAL, first + base, false=2),
            _instruction(_GREATER, end + base, true=1),
            _instruction(_RETURN, action),
        ]
    if tests:
        # One test instead of all for the many calls below: they are the hot ones
        body += [_instruction(_GREATER_EQUAL, young[0][0] + base, false=len(tests)), *tests]
    return body
