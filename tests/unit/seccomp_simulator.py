"""A classic BPF machine for the subset that seccomp(2) takes: what a filter answers, without loading it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

X86_64, I386, X32_BIT = 0xC000003E, 0x40000003, 0x40000000
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026


def run(program: bytes, number: int, architecture: int = X86_64, arguments: Sequence[int] = ()) -> int:
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *padded)
    instructions = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, true, false, value = instructions[at]
        at += 1
        if code == 0x20:  # ld [k]
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif code == 0x05:  # ja
            at += value
        elif code == 0x15:  # jeq
            at += true if accumulator == value else false
        elif code == 0x25:  # jgt
            at += true if accumulator > value else false
        elif code == 0x35:  # jge
            at += true if accumulator >= value else false
        elif code == 0x45:  # jset
            at += true if accumulator & value else false
        elif code == 0x54:  # and
            accumulator &= value
        elif code == 0x06:  # ret
            return int(value)
        else:
            raise AssertionError(f"instruction {code:#x} is not expected here")
