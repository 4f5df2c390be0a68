"""The engine as one record, built by daemon.py and given to `api/`. No behaviour of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tare.engine.model import Ulimit

if TYPE_CHECKING:
    from tare.cgroups.api import Hierarchy
    from tare.engine.containers import Containers
    from tare.engine.events import Events
    from tare.engine.execs import Execs
    from tare.engine.limits import HostFacts
    from tare.store.images import Images

__all__ = ["Config", "Engine"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the daemon was told on its command line or in its file."""

    data_root: Path = Path("/var/lib/tare")
    exec_root: Path = Path("/run/tare")
    """On a tmpfs: facts about live processes."""
    init_path: str = ""
    """Static reaper for `--init`; "" = none found."""
    cgroup_parent: str = "/tare"
    ulimits: tuple[Ulimit, ...] = ()
    """For containers that set none of that name."""
    log_driver: str = "json-file"
    log_options: dict[str, str] = field(default_factory=lambda: {"max-size": "10m", "max-file": "3"})
    """Of json-file, for containers that give none: bounded by default."""
    labels: tuple[str, ...] = ()
    debug: bool = False

    @property
    def run_root(self) -> Path:
        """A directory for each container that lives."""
        return self.exec_root / "containers"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The parts that `api/` calls."""

    containers: Containers
    execs: Execs
    images: Images
    events: Events
    host: HostFacts
    hierarchy: Hierarchy
    config: Config
    version: str
    id: str = ""
    """Of this installation, kept in the ledger's meta table; actor of daemon events."""
