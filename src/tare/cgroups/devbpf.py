"""Device filter of a v2 leaf: OCI rules -> eBPF program of type CGROUP_DEVICE -> attached to the directory. As root.

bpf(2) by ctypes of its own, so that a process without v2 devices never loads this module; `import` it before the fork.
Registers: r2 = type, r3 = access bits not yet decided, r4 = major, r5 = minor (struct bpf_cgroup_dev_ctx).
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from struct import pack, unpack_from

from .convert import ALL, Rule

PROG_LOAD, PROG_ATTACH, PROG_DETACH, PROG_GET_FD_BY_ID, PROG_QUERY = 5, 8, 9, 13, 16
BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6
BPF_F_ALLOW_MULTI, BPF_F_REPLACE = 2, 4
MAX_PROGRAMS = 64
"""The kernel's own bound on programs of one type at one cgroup (BPF_CGROUP_MAX_PROGS)."""
RLIMIT_MEMLOCK = 8

# Opcodes: class | operation | source, include/uapi/linux/bpf.h
LOAD_WORD = 0x61
MOV_IMM, MOV_REG, AND_IMM, SHIFT_RIGHT_IMM, EXIT = 0xB7, 0xBF, 0x57, 0x77, 0x95
JUMP_EQUAL, JUMP_NOT_EQUAL = 0x15, 0x55

_libc = ctypes.CDLL(None, use_errno=True)


def instruction(code: int, target: int, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """One struct bpf_insn; the two register nibbles follow the byte order of the machine."""
    registers = target | source << 4 if sys.byteorder == "little" else target << 4 | source
    return pack("=BBhi", code, registers, offset, value)


def assemble(rules: list[Rule]) -> bytes:
    """The program for `convert.rules`: walks them from the last to the first.

    Each access bit is decided by the last rule that names the device and the bit; a request is granted when all its
    bits are allowed and refused at the first denied one. Whatever no rule decides is refused.
    """
    program = [
        instruction(LOAD_WORD, 2, 1, 0),
        instruction(MOV_REG, 3, 2),
        instruction(AND_IMM, 2, value=0xFFFF),
        instruction(SHIFT_RIGHT_IMM, 3, value=16),
        instruction(LOAD_WORD, 4, 1, 4),
        instruction(LOAD_WORD, 5, 1, 8),
    ]
    default = False
    for allow, kind, major, minor, bits in reversed(rules):
        if kind == "a":
            default = allow
            break
        tests = [(2, {"b": 1, "c": 2}[kind])]
        tests += [(register, number) for register, number in ((4, major), (5, minor)) if number >= 0]
        verdict: list[bytes] = []
        if allow and bits != ALL:
            # Strike the granted bits out; any that are left go to the next rule.
            verdict = [instruction(AND_IMM, 3, value=ALL & ~bits), instruction(JUMP_NOT_EQUAL, 3, offset=2)]
        elif bits != ALL:
            verdict = [
                instruction(MOV_REG, 1, 3),
                instruction(AND_IMM, 1, value=bits),
                instruction(JUMP_EQUAL, 1, offset=2),
            ]
        verdict += [instruction(MOV_IMM, 0, value=int(allow)), instruction(EXIT, 0)]
        for index, (register, number) in enumerate(tests):
            skip = len(tests) - index - 1 + len(verdict)
            program.append(instruction(JUMP_NOT_EQUAL, register, offset=skip, value=number))
        program += verdict
    program += [instruction(MOV_IMM, 0, value=int(default)), instruction(EXIT, 0)]
    return b"".join(program)


def attach(directory: str, rules: list[Rule]) -> None:
    """Make `rules` the filter of the cgroup; a filter already there is replaced without a moment of neither.

    Rules that allow everything leave no program. OSError EPERM without CAP_BPF + CAP_NET_ADMIN (or SYS_ADMIN).
    """
    target = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    opened: list[int] = []
    try:
        old = query(target)
        opened += [_by_id(number) for number in old]
        if rules and rules[-1][1] == "a" and rules[-1][0]:
            new = None
        else:
            new = load(assemble(rules))
            if len(opened) == 1 and _replace(target, new, opened[0]):
                opened.append(new)
                return
            # All programs of a cgroup must agree: with old and new attached the stricter verdict holds meanwhile.
            bpf(PROG_ATTACH, pack("=IIIII", target, new, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI, 0))
        for program in opened:
            bpf(PROG_DETACH, pack("=IIIII", target, program, BPF_CGROUP_DEVICE, 0, 0))
        if new is not None:
            opened.append(new)
    except OSError as error:
        raise OSError(error.errno, f"device filter: {error.strerror}", directory) from None
    finally:
        for fd in (*opened, target):
            os.close(fd)


def _replace(target: int, new: int, old: int) -> bool:
    """Swap in one step; False on kernels before 5.6, which do not know BPF_F_REPLACE."""
    try:
        flags = BPF_F_ALLOW_MULTI | BPF_F_REPLACE
        bpf(PROG_ATTACH, pack("=IIIII", target, new, BPF_CGROUP_DEVICE, flags, old))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def query(target: int) -> list[int]:
    """Ids of the device programs attached to the cgroup itself (not those of its parents)."""
    ids = ctypes.create_string_buffer(4 * MAX_PROGRAMS)
    attr = bytearray(pack("=IIIIQI", target, BPF_CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), MAX_PROGRAMS))
    attr += bytes(64 - len(attr))
    bpf(PROG_QUERY, attr)
    (count,) = unpack_from("=I", attr, 24)
    return list(unpack_from(f"={count}I", ids.raw))


def _by_id(number: int) -> int:
    return bpf(PROG_GET_FD_BY_ID, pack("=III", number, 0, 0))


def load(program: bytes) -> int:
    """Descriptor of the verified program; the verifier's words are in the OSError if it refuses."""
    try:
        return _load(program)
    except PermissionError:
        # Before Linux 5.11 programs count against RLIMIT_MEMLOCK (64 KiB by default), user-wide.
        kept, unlimited = ctypes.create_string_buffer(16), pack("=QQ", (1 << 64) - 1, (1 << 64) - 1)
        if _libc.prlimit(0, RLIMIT_MEMLOCK, unlimited, kept) != 0:
            raise
        try:
            return _load(program)
        finally:
            _libc.prlimit(0, RLIMIT_MEMLOCK, kept.raw, None)


def _load(program: bytes) -> int:
    code = ctypes.create_string_buffer(program, len(program))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    log = ctypes.create_string_buffer(4096)

    def attr(level: int) -> bytes:
        size, address = (len(log), ctypes.addressof(log)) if level else (0, 0)
        head = pack("=IIQQ", BPF_PROG_TYPE_CGROUP_DEVICE, len(program) // 8, *map(ctypes.addressof, (code, licence)))
        return head + pack("=IIQII16sII", level, size, address, 0, 0, b"tare_devices", 0, BPF_CGROUP_DEVICE)

    try:
        return bpf(PROG_LOAD, attr(0))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise
    try:
        return bpf(PROG_LOAD, attr(1))
    except OSError as error:
        words = log.value.decode(errors="replace").strip().replace("\n", "; ")
        raise OSError(error.errno, f"load device program: {os.strerror(error.errno or 0)} {words}") from None


def bpf(command: int, attr: bytes | bytearray) -> int:
    """bpf(2); a bytearray receives what the kernel wrote into the union."""
    union = ctypes.create_string_buffer(bytes(attr), len(attr))
    result: int = _libc.syscall(_number(), command, union, len(attr))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf command {command}: {os.strerror(number)}")
    if isinstance(attr, bytearray):
        attr[:] = union.raw
    return result


def _number() -> int:
    """The system call's number (asm/unistd.h); most architectures share the generic table."""
    numbers = {"x86_64": 321, "i686": 357, "armv7l": 386, "armv6l": 386, "s390x": 351, "ppc64le": 361}
    return numbers.get(os.uname().machine, 280)
