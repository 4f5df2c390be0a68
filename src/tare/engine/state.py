r"""The states of a container and the legal steps between them: one table, no I/O. Used in the daemon only.

Starting and stopping are not states but operations under the container's lock (lifecycle.py). Docker's booleans
(Running stays true while paused or restarting) are computed in `api/` and nowhere else.

```
CREATED --start--> RUNNING <--> PAUSED
   |                  |           |
   |                  +--> EXITED <+  --start--> RUNNING
   |                        |  \--policy--> RESTARTING --> RUNNING | EXITED
   v                        v
REMOVING <----------- CREATED, EXITED, DEAD
REMOVING --> (gone), or DEAD when the removal failed
```
"""

from __future__ import annotations

from tare.engine.model import Container, State
from tare.errors import Conflict, Unchanged

__all__ = ["LIVE", "STEPS", "check", "is_live"]

STEPS: dict[State, frozenset[State]] = {
    State.CREATED: frozenset({State.RUNNING, State.REMOVING}),
    State.RUNNING: frozenset({State.PAUSED, State.EXITED}),
    State.PAUSED: frozenset({State.RUNNING, State.EXITED}),
    State.EXITED: frozenset({State.RUNNING, State.RESTARTING, State.REMOVING}),
    State.RESTARTING: frozenset({State.RUNNING, State.EXITED}),
    State.REMOVING: frozenset({State.DEAD}),
    State.DEAD: frozenset({State.REMOVING}),
}
LIVE = frozenset({State.RUNNING, State.PAUSED, State.RESTARTING})
"""States that Docker calls running: "start" is already done, "remove" needs force."""


def is_live(container: Container) -> bool:
    return container.state in LIVE


def check(container: Container, target: State) -> None:
    """Raise unless `container` may go to `target` now: Unchanged if it is there, Conflict with Docker's reason else."""
    state = container.state
    if target in STEPS[state]:
        return
    if state is target:
        raise _unchanged(container)
    raise Conflict(_reason(container, target))


def _unchanged(container: Container) -> Unchanged | Conflict:
    """Docker answers 304 for start and stop only; pausing twice and removing twice are conflicts."""
    match container.state:
        case State.RUNNING:
            return Unchanged("container is already running")
        case State.EXITED:
            return Unchanged("container is already stopped")
        case State.PAUSED:
            return Conflict(f"container {container.id} is already paused")
        case State.REMOVING:
            return Conflict(f"removal of container {container.name} is already in progress")
        case _:
            return Unchanged(f"container is already {container.state}")


def _reason(container: Container, target: State) -> str:
    state = container.state
    if target is State.RUNNING:
        return "container is marked for removal and cannot be started"
    if target is State.REMOVING:
        if state is State.PAUSED:
            return "container is paused and must be unpaused first"
        return f"container is {state}: stop the container before removing or force remove"
    if target is State.PAUSED and state is State.RESTARTING:
        return f"Container {container.id} is restarting, wait until the container is running"
    return f"container {container.id} is not running"
