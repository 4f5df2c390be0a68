"""The kinds of failure that rooms report upwards. Level 0: every room may raise them, only `api/` turns them into HTTP.

    EngineError
    |-- NotFound      404  no such container, image, exec, ...
    |-- Conflict      409  the object's state or another object forbids the step
    |-- Unchanged     304  the step was already taken: start of a running container
    |-- Invalid       400  the request itself is wrong
    |-- Denied        403  not allowed for this caller or this object
    |-- Unavailable   503  the engine lacks something now (a helper process died, shutting down)
    `-- Unsupported   501  understood, not offered by this engine

Anything else that escapes (OSError above all) is a 500. A message says act, object, cause; it uses Docker's wording
where clients match on it ("No such container: x").
"""

from __future__ import annotations

__all__ = ["Conflict", "Denied", "EngineError", "Invalid", "NotFound", "Unavailable", "Unchanged", "Unsupported"]


class EngineError(Exception):
    """Base of all kinds; `str(error)` is one sentence for the user, without a trailing newline."""


class NotFound(EngineError):
    """The named object does not exist."""


class Conflict(EngineError):
    """The object's state, or another object, forbids the step."""


class Unchanged(EngineError):
    """The step was already taken; nothing was done."""


class Invalid(EngineError):
    """The request is wrong in itself and would fail in any state."""


class Denied(EngineError):
    """The caller, or any caller, may not do this to that object."""


class Unavailable(EngineError):
    """The engine cannot do it now; the same request may succeed later."""


class Unsupported(EngineError):
    """The request is understood but this engine does not offer it."""
