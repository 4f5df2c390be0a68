"""What to tell the user when a process could not be started: Docker's sentences and exit codes. Pure.

The docker CLI decides between exit 125, 126 and 127 by searching these texts, so they keep runc's wording.
"""

from __future__ import annotations

import errno
import os

from tare.engine.shims import Failed
from tare.errors import EngineError, Invalid

__all__ = ["exec_failure", "start_failure"]

_MOUNT_HINT = (
    ": Are you trying to mount a directory onto a file (or vice-versa)? "
    "Check if the specified host path exists and is the expected type"
)


def start_failure(failed: Failed) -> tuple[EngineError, int]:
    """The error for the client (400 where the request is to blame, else 500), and the container's exit code."""
    if _about_user(failed):
        return Invalid(failed.message), 126
    return _graded(
        "failed to create task for container: failed to create shim task: OCI runtime create failed: "
        f"unable to start container process: error during container init: {_cause(failed)}"
    )


def exec_failure(failed: Failed) -> tuple[EngineError, int]:
    """The same for a further process."""
    if _about_user(failed):
        return Invalid(failed.message), 126
    error, code = _graded(
        f"OCI runtime exec failed: exec failed: unable to start container process: {_cause(failed)}: unknown"
    )
    # Docker: an exec that cannot be started is 126 unless the program is missing.
    return error, code if code == 127 else 126


def _about_user(failed: Failed) -> bool:
    return failed.step == "resolve the user" and bool(failed.message) and not failed.errno


def _cause(failed: Failed) -> str:
    reason = (os.strerror(failed.errno) if failed.errno else failed.message or "unknown error").lower()
    if failed.step == "execve":
        if failed.errno == errno.ENOENT:
            missing = f"stat {failed.path}: {reason}" if "/" in failed.path else "executable file not found in $PATH"
            return f'exec: "{failed.path}": {missing}'
        directory = "is a directory: " if failed.message.lower() == "is a directory" else ""
        return f'exec: "{failed.path}": {directory}{reason}'
    if failed.step == "change the working directory":
        return f'chdir to cwd ("{failed.path}") set in config.json failed: {reason}'
    said = failed.message.lower()
    act = f"{failed.message}: " if failed.message and said != reason and reason not in said else ""
    where = f" {failed.path}" if failed.path and failed.path not in failed.step else ""
    return f"{failed.step}{where}: {act}{reason}"


def _graded(text: str) -> tuple[EngineError, int]:
    """Docker's own grading, by text (moby daemon/errors.go setExitCodeFromError)."""
    lowered = text.lower()
    if "permission denied" in lowered:
        return Invalid(text), 126
    if "is a directory" in lowered:
        return Invalid(f"{text}: permission denied"), 126
    if "not a directory" in lowered:
        return Invalid(text + _MOUNT_HINT), 127
    if "executable file not found" in lowered or "no such file or directory" in lowered:
        return Invalid(text), 127
    return EngineError(text), 128
