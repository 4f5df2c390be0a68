"""How a command ends early: one exception with the text for stderr and the exit status.

    Failure            status 1 unless said
    |-- UsageError     125  flags that cannot be parsed (docker/cli cli/cobra.go FlagErrorFunc)
    `-- client.py: ApiError, ConnectError
"""

from __future__ import annotations

__all__ = ["Failure", "UsageError"]


class Failure(Exception):
    """`str(failure)` goes to stderr ("" = nothing), `status` is the exit code 0..255."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


class UsageError(Failure):
    """A flag is unknown, lacks its value or has a wrong one."""

    def __init__(self, text: str) -> None:
        super().__init__(text, 125)
