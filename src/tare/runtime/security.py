"""Rights of the process about to become the user's: identity, capabilities, rlimits, seccomp. No I/O by name.

Runs in init, after the root is the image's: nothing is imported, looked up by NSS or executed here (rule 2, N6, N8).
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress

from tare.linux import libc, passwd, proc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["CAPABILITIES", "become", "capability_mask", "set_rlimits"]

CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
    "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split(" ")
"""Names by number, capabilities(7)."""

_LAST_CAPABILITY = int(proc.read("/proc/sys/kernel/cap_last_cap"))
"""Read once on the host: later /proc is the container's (N2)."""


def capability_mask(names: list[str]) -> int:
    """Bit mask of OCI names ("CAP_CHOWN"); unknown names are left out, as the runtime-spec allows."""
    mask = 0
    for name in names:
        short = name.removeprefix("CAP_")
        if short in CAPABILITIES:
            mask |= 1 << CAPABILITIES.index(short)
    return mask


def set_rlimits(rlimits: list[dict[str, Any]]) -> None:
    """OCI process.rlimits of this process. Above our own hard limit without CAP_SYS_RESOURCE: as much as there is."""
    for limit in rlimits:
        number = 10 if limit["type"] == "RLIMIT_LOCKS" else getattr(resource, limit["type"])  # not in the module
        soft, hard = (
            resource.RLIM_INFINITY if value < 0 or value >= 1 << 63 else value
            for value in (int(limit["soft"]), int(limit["hard"]))
        )
        try:
            resource.setrlimit(number, (soft, hard))
        except ValueError:  # Python's word for EPERM here
            own = resource.getrlimit(number)[1]
            resource.setrlimit(number, (own if soft < 0 or soft > own >= 0 else soft, own))


def become(identity: passwd.Identity, process: Mapping[str, Any], bpf: bytes) -> None:
    """Drop everything the user's program must not have. The order is the contract:

    bounding set while CAP_SETPCAP is there; seccomp before the capabilities go, because without no_new_privs it needs
    CAP_SYS_ADMIN (0.37 ms for the tree-shaped default), or last of all with it; groups before the uid.
    """
    capabilities = process.get("capabilities") or {}
    bounding = capability_mask(capabilities.get("bounding") or [])
    effective = capability_mask(capabilities.get("effective") or [])
    permitted = capability_mask(capabilities.get("permitted") or [])
    inheritable = capability_mask(capabilities.get("inheritable") or [])
    ambient = capability_mask(capabilities.get("ambient") or [])
    no_new_privs = bool(process.get("noNewPrivileges"))
    for number in range(_LAST_CAPABILITY + 1):
        if not bounding >> number & 1:
            libc.prctl(libc.PR_CAPBSET_DROP, number)
    if no_new_privs:
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    elif bpf:
        libc.seccomp_set_mode_filter(bpf)
    libc.prctl(libc.PR_SET_KEEPCAPS, 1)
    os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    libc.prctl(libc.PR_SET_KEEPCAPS, 0)
    # Docker too grants "all" as "all that this host's root has": a bounding set without CAP_SYS_RESOURCE is common.
    own = libc.capget_permitted()
    libc.capset(effective & own, permitted & own, inheritable & own)
    if ambient:
        for number in range(_LAST_CAPABILITY + 1):
            if ambient >> number & 1:
                with suppress(PermissionError):  # not inheritable or not ours: left out, as runc and crun do
                    libc.prctl(libc.PR_CAP_AMBIENT, libc.PR_CAP_AMBIENT_RAISE, number)
    if no_new_privs and bpf:
        libc.seccomp_set_mode_filter(bpf)


