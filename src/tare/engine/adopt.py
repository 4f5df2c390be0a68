"""The daemon is back: bring rows and facts together. Runs once at start, in the daemon's loop.

For each container the witness is, in this order: the boot id, the `exit` file, the shim that answers. All are looked at
in parallel, each within a deadline; what one record does wrong is logged and touches no other (N14). Deliberately
absent: restart policies (they see the ends recorded here through Lifecycle.ended), and rows that are not containers.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from signal import SIGKILL
from typing import Any

from msgspec.structs import replace

from tare.engine.lifecycle import Lifecycle
from tare.engine.model import Container, ExitStatus, State
from tare.engine.rows import Rows
from tare.engine.shims import Shim, Shims, exit_record
from tare.engine.state import is_live
from tare.errors import EngineError
from tare.linux import proc
from tare.runtime.protocol import Exited

__all__ = ["Adoption"]

log = logging.getLogger(__name__)

DEADLINE_S = 30.0
"""For one container: asking its shim takes 10 s at most, killing its cgroup as much."""
PARALLEL = 32
_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Adoption:
    """One pass over all rows and all run directories. `remove` finishes a removal that was under way."""

    def __init__(
        self,
        rows: Rows,
        shims: Shims,
        lifecycle: Lifecycle,
        run_root: Path,
        remove: Callable[[str], Awaitable[None]],
    ) -> None:
        self._rows, self._shims, self._lifecycle = rows, shims, lifecycle
        self._run_root, self._remove = run_root, remove
        self._boot_id = proc.boot_id()
        self._places = asyncio.Semaphore(PARALLEL)

    async def run(self) -> None:
        """Returns when every container is settled or its deadline is over. Never raises for one of them."""
        found = {path.name for path in self._run_root.iterdir()} if self._run_root.is_dir() else set()
        rows = {container.id: container for container in self._rows.all()}
        work = [self._bounded(container, container.id in found) for container in rows.values()]
        work += [self._stray(name) for name in sorted(found - rows.keys()) if _ID.fullmatch(name)]
        await asyncio.gather(*work)

    async def _bounded(self, container: Container, here: bool) -> None:
        if not here and not is_live(container) and container.state is not State.REMOVING:
            return
        try:
            async with self._places, asyncio.timeout(DEADLINE_S):
                if container.state is State.REMOVING:
                    await self._lifecycle.kill_cgroup(container.id, delete=True)
                    await self._remove(container.id)
                    return
                async with self._rows.live(container.id).lock:
                    await self._settle(container)
        except (EngineError, OSError, ValueError) as error:
            log.error("container %s (%s) could not be settled: %s", container.id, container.name, error)
            if isinstance(error, OSError):
                self._lifecycle.later(lambda: self._again(container.id))

    async def _again(self, container_id: str) -> None:
        """After a full disk or a slow kernel: look anew, unless somebody else has settled it meanwhile."""
        container = self._rows.find(container_id)
        if container is not None and self._rows.live(container_id).shim is None:
            await self._bounded(container, self._lifecycle.run_dir(container_id).is_dir())

    async def _settle(self, container: Container) -> None:
        if is_live(container) and container.boot_id != self._boot_id:
            gone = ExitStatus(code=255, error="the machine was restarted")
            self._lifecycle.finish(container.id, gone, time.time_ns())
            return
        run_dir = self._lifecycle.run_dir(container.id)
        exited = exit_record(run_dir)
        if exited is not None:
            self._ended(container, exited)
            return
        answer = await self._shims.connect(str(run_dir))
        if answer is None:
            # An ending shim closes its socket after it has written the exit file: perhaps only just now.
            exited = exit_record(run_dir)
            if exited is not None:
                self._ended(container, exited)
            else:
                await self._silent(container)
            return
        shim, state = answer
        if state.get("exited"):
            self._ended(container, state["exited"])
            shim.close()
        elif not state.get("started_ns"):
            # It never got its Go: the daemon that asked is dead, and nobody was told that it runs.
            shim.close()
            await self._discard(container.id)
        else:
            await self._running(container, shim, state)

    async def _running(self, container: Container, shim: Shim, state: dict[str, Any]) -> None:
        if not is_live(container):
            log.info("container %s was started by a daemon that died before it could record it", container.id)
        found = replace(
            container,
            state=State.PAUSED if state.get("frozen") else State.RUNNING,
            pid=int(state["pid"]),
            start_time=int(state["start_time"]),
            boot_id=self._boot_id,
            started=int(state["started_ns"]),
            exit=container.exit if is_live(container) else ExitStatus(code=0),
        )
        try:
            if found != container:
                self._rows.save(found)
        except OSError:
            if not is_live(container):
                # No row says that it runs (a full disk): then it must not. Its exit file speaks when there is room.
                try:
                    await shim.kill(SIGKILL)
                finally:
                    shim.close()
                raise
            log.exception("container %s runs, but its row is out of date", container.id)
        self._lifecycle.watch(container, shim)

    def _ended(self, container: Container, exited: Exited) -> None:
        """The end happened while no daemon looked, or was recorded and only the directory is left."""
        status = ExitStatus(code=exited["code"], oom_killed=exited["oom"] or container.exit.oom_killed)
        if container.state is State.EXITED and container.finished == exited["time_ns"]:
            shutil.rmtree(self._lifecycle.run_dir(container.id), ignore_errors=True)
            return
        if not is_live(container):
            # It ran, though the daemon died before it could say so.
            self._rows.save(replace(container, state=State.RUNNING, boot_id=self._boot_id, started=exited["time_ns"]))
        self._lifecycle.finish(container.id, status, exited["time_ns"])

    async def _silent(self, container: Container) -> None:
        if is_live(container):
            await self._lifecycle.orphaned(container.id)
        else:
            await self._discard(container.id)

    async def _stray(self, name: str) -> None:
        """A run directory without a row: its create or remove was cut short."""
        async with self._places:
            log.warning("run directory %s belongs to no container: removed", name)
            try:
                async with asyncio.timeout(DEADLINE_S):
                    await self._discard(name)
            except (EngineError, OSError, ValueError) as error:
                log.error("run directory %s could not be removed: %s", name, error)

    async def _discard(self, container_id: str) -> None:
        await self._lifecycle.kill_cgroup(container_id, delete=True)
        shutil.rmtree(self._lifecycle.run_dir(container_id), ignore_errors=True)
