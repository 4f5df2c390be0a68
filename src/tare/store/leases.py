"""Leases: what an unfinished action relies on and no row names yet. Kept in memory: the action dies with the daemon.

The garbage collector and `Images.remove` leave alone whatever a lease holds. Deliberately absent: expiry (a lease is
closed by the `with` block that took it) and files (a crash drops every lease, which is the point).
"""

from __future__ import annotations

from collections import Counter

__all__ = ["Lease", "Leases"]


class Leases:
    """The keys held now: digests and ingest names for content, chain ids and directory numbers for snapshots."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    def __contains__(self, key: str) -> bool:
        return self._held[key] > 0

    def take(self, *keys: str) -> Lease:
        """A new lease on the keys; close it, or use it as a context manager."""
        lease = Lease(self._held)
        lease.hold(*keys)
        return lease


class Lease:
    """One action's holdings."""

    def __init__(self, held: Counter[str]) -> None:
        self._held = held
        self._own: Counter[str] = Counter()

    def hold(self, *keys: str) -> None:
        """Add keys; holding one twice is harmless."""
        self._own.update(keys)
        self._held.update(keys)

    def close(self) -> None:
        """Let go of everything. A second call does nothing."""
        self._held.subtract(self._own)
        for key in self._own:
            if self._held[key] <= 0:
                del self._held[key]
        self._own.clear()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()
