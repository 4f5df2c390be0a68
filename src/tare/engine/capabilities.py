"""Capabilities by name: what --cap-add and --cap-drop come to. Pure; texts are Docker's (moby, daemon/pkg/oci/caps)."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tare.errors import Invalid

__all__ = ["DEFAULT", "NAMES", "check", "granted", "named"]

NAMES = tuple(
    "CAP_" + name
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
        "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
        "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL "
        "SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)
"""By number, capabilities(7)."""

DEFAULT = tuple(
    "CAP_" + name
    for name in (
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL "
        "AUDIT_WRITE"
    ).split()
)
"""Docker's 14, mask a80425fb."""

_ALL = "ALL"


def named(mask: int) -> tuple[str, ...]:
    """Names of the bits set, by number; bits without a name here are left out."""
    return tuple(name for number, name in enumerate(NAMES) if mask >> number & 1)


def check(names: Iterable[str], available: Collection[str], field: str) -> tuple[str, ...]:
    """Upper case with CAP_ prefix, "ALL" kept. Invalid 'invalid CapAdd: unknown capability: "CAP_FOO"'."""
    checked = []
    for name in names:
        full = name.upper()
        if full != _ALL:
            full = full if full.startswith("CAP_") else "CAP_" + full
            if full not in NAMES:
                raise Invalid(f'invalid {field}: unknown capability: "{full}"')
            if full not in available:
                raise Invalid(
                    f"invalid {field}: capability not supported by your kernel or not available in the current "
                    f'environment: "{full}"'
                )
        checked.append(full)
    return tuple(checked)


def granted(
    add: Iterable[str], drop: Iterable[str], available: Collection[str], *, privileged: bool = False
) -> tuple[str, ...]:
    """Bounding, permitted and effective set, each name once. `available`: what this host's root has.

    "ALL" added wins over "ALL" dropped; a single name dropped from ALL is dropped. Defaults that the host lacks are
    left out.
    """
    everything = tuple(name for name in NAMES if name in available)
    if privileged:
        return everything
    dropped = check(drop, available, "CapDrop")
    added = check(add, available, "CapAdd")
    if _ALL in added:
        return tuple(name for name in everything if name not in dropped)
    kept = () if _ALL in dropped else tuple(name for name in DEFAULT if name not in dropped and name in available)
    return tuple(dict.fromkeys([*kept, *added]))
