"""What /proc says about processes, mounts and this boot. Only for the host's own /proc, never a container's (N2)."""

from __future__ import annotations

import os

__all__ = [
    "boot_id", "children", "effective_capabilities", "is_alive", "mountinfo", "read", "start_time", "status", "write",
]  # fmt: skip


def read(path: str, limit: int = 1 << 20) -> bytes:
    """At most `limit` bytes of a small file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while len(data) < limit and (chunk := os.read(fd, min(65536, limit - len(data)))):
            data += chunk
        return data
    finally:
        os.close(fd)


def write(path: str, data: bytes) -> None:
    """One write(2) to a file that is there: what procfs takes must come in one piece."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def start_time(pid: int) -> int:
    """Field 22 of /proc/<pid>/stat, clock ticks since boot: with the pid it names a process once per boot.

    ProcessLookupError if there is no such process.
    """
    try:
        stat = read(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None
    # The command name may hold spaces and parentheses: fields are counted from the last one.
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


def is_alive(pid: int, started: int) -> bool:
    """Whether `pid` is still the process that started at `started`; a zombie counts as dead."""
    try:
        stat = read(f"/proc/{pid}/stat")
        fields = stat[stat.rindex(b")") + 2 :].split()
    except (OSError, ValueError):
        return False
    return int(fields[19]) == started and fields[0] not in (b"Z", b"X")


def boot_id() -> str:
    """A different one means that every process remembered is gone (random(4))."""
    return read("/proc/sys/kernel/random/boot_id").decode().strip()


def status(pid: int | str, key: str) -> str:
    """The value of one line of /proc/<pid>/status, "" if it has none."""
    prefix = key.encode() + b":"
    for line in read(f"/proc/{pid}/status").splitlines():
        if line.startswith(prefix):
            return line[len(prefix) :].strip().decode()
    return ""


def effective_capabilities() -> int:
    """CapEff of this process as a bit mask."""
    return int(status("self", "CapEff"), 16)


def children(pid: int) -> list[int]:
    """Direct children, by /proc/<pid>/task/<pid>/children."""
    try:
        return [int(child) for child in read(f"/proc/{pid}/task/{pid}/children").split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _unescape(field: str) -> str:
    # proc(5): space, tab, newline and backslash are octal escapes
    return field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def mountinfo(pid: int | str = "self") -> list[tuple[str, str, str, str, str]]:
    """[(mount point, root within the file system, type, mount options, superblock options)] in mount order."""
    mounts = []
    for line in read(f"/proc/{pid}/mountinfo", 1 << 26).decode("utf-8", "surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if len(fields) >= 6 and len(tail) >= 3:
            mounts.append((_unescape(fields[4]), _unescape(fields[3]), tail[0], fields[5], tail[2]))
    return mounts
