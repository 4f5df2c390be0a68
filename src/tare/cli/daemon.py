"""`tare daemon`: becomes `tared`, the program beside this one; its flags are tared's."""

from __future__ import annotations

import os
import sys

from tare.cli.autostart import Starter
from tare.cli.endpoint import Endpoint
from tare.cli.failure import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from tare.cli.main import Call

__all__ = ["daemon"]


def daemon(call: Call) -> NoReturn:
    """Does not return. Raises Failure if there is no tared."""
    program = Starter(Endpoint("", chosen=False), sys.argv[0]).program()
    try:
        os.execv(program, [program, *call.argv])
    except OSError as error:
        raise Failure(f"tare: cannot run {program}: {error.strerror}") from None
