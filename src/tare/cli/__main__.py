"""`python -m tare.cli`: the same command without the launcher bin/tare, for work on the client itself."""

from __future__ import annotations

from tare.cli.main import run

run()
