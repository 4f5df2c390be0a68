"""What a failure looks like on the wire: kind of error -> status, always with the body {"message": "..."}.

Runs in the daemon. Deliberately absent: any guess from the text of an error; the kind decides.
"""

from __future__ import annotations

import errno
import logging
import os

import msgspec

from tare import errors
from tare.http.message import Response

__all__ = ["response", "sentence", "status"]

log = logging.getLogger("tare.api")

STATUS: tuple[tuple[type[Exception], int], ...] = (
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.Unchanged, 304),
    (errors.Invalid, 400),
    (errors.Denied, 403),
    (errors.Unavailable, 503),
    (errors.Unsupported, 501),
    (msgspec.DecodeError, 400),
)
"""ValidationError, which names the JSON path, is a DecodeError."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The sentence says it all: a trace would tell nothing."""


def status(error: BaseException) -> int:
    """The HTTP status of an error's kind; 500 for everything that is not in the table."""
    return next((code for kind, code in STATUS if isinstance(error, kind)), 500)


def response(error: Exception) -> Response:
    """The whole answer; a 304 has no body (RFC 9110 15.4.5), what was not foreseen leaves a trace in the log."""
    code = status(error)
    if code == 304:
        return Response(status=304)
    if code == 500:
        foreseen = isinstance(error, errors.EngineError) or (isinstance(error, OSError) and error.errno in FULL)
        log.error("request failed: %s", sentence(error), exc_info=None if foreseen else error)
    return Response(
        status=code,
        body=msgspec.json.encode({"message": sentence(error)}) + b"\n",
        content_type="application/json",
    )


def sentence(error: BaseException) -> str:
    """One line for the user. OSError(errno, "act", path) becomes "act path: cause"; others say their own text."""
    if isinstance(error, OSError) and error.errno is not None:
        cause = os.strerror(error.errno)
        act = "" if error.strerror in (None, cause) else error.strerror
        object_ = "" if error.filename is None else os.fsdecode(error.filename)
        words = " ".join(word for word in (act, object_) if word)
        return f"{words}: {cause.lower()}" if words else cause.lower()
    return str(error).strip() or f"internal error: {type(error).__name__}"
