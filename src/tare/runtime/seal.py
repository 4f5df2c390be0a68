"""The interpreter re-executed once from a sealed memfd, so that no container ever sees the host's python (rule 3, N5).

`/proc/<pid>/exe` of a process that enters a container leads to the file it was executed from. If that were
/usr/bin/python3, a container's root could open it for writing once nobody executes it any more and own the next start
(CVE-2019-5736). A sealed memfd refuses every write for ever. One copy per zygote: 0.2 ms (dynamic) to 3.4 ms (static).
"""

from __future__ import annotations

import os
import sys

from tare.linux import fds, proc

__all__ = ["is_sealed", "reexec"]

_NAME = "tare-runtime"


def is_sealed() -> bool:
    """Whether this interpreter runs from the sealed copy."""
    return os.readlink("/proc/self/exe").startswith(f"/memfd:{_NAME}")


def reexec(arguments: list[str]) -> None:
    """Replace this process by the sealed interpreter with `arguments` (what follows python's name). Never returns.

    argv[0] stays the real path, because CPython derives its prefix from it.
    """
    real = sys.executable or os.readlink("/proc/self/exe")
    copy = fds.memfd_sealed(_NAME, proc.read("/proc/self/exe", 1 << 30))
    # The one descriptor that must survive the exec below is the memfd itself only until execve has mapped it.
    os.execve(copy, [real, *arguments], os.environ)

