"""One container's state.json, what is true of its process now, and the hooks and end that need both."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from typing import Any

from tare.cgroups import api as cgroups
from tare.linux import proc
from tare.runtime import shim

__all__ = ["PARENT", "VERSION", "Failed", "Record", "check_id", "delete", "remove_directory", "run_hooks"]

VERSION = "1.2.0"
"""Of the runtime-spec."""
PARENT = "/tare-oci"
"""Of the cgroups of bundles that name none."""


class Failed(Exception):
    """One sentence for the user; `code` is the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Record:
    """One container's state.json."""

    def __init__(self, root: str, identifier: str, data: dict[str, Any]) -> None:
        self.directory = f"{root}/{identifier}"
        self.id = identifier
        self.data = data

    @classmethod
    def load(cls, root: str, identifier: str) -> Record:
        check_id(identifier)
        try:
            return cls(root, identifier, json.loads(proc.read(f"{root}/{identifier}/state.json")))
        except FileNotFoundError:
            raise Failed(f"container {identifier!r} does not exist") from None
        except ValueError:
            raise Failed(f"the state of container {identifier!r} is damaged: {root}/{identifier}/state.json") from None

    def save(self) -> None:
        shim.write_file(f"{self.directory}/state.json", json.dumps(self.data).encode())

    @property
    def pid(self) -> int:
        return int(self.data["pid"])

    def alive(self) -> bool:
        return proc.is_alive(self.pid, int(self.data["start_time"]))

    def cgroup(self) -> cgroups.Cgroup:
        return cgroups.detect().cgroup(self.data["cgroup"])

    def status(self) -> str:
        if not self.alive():
            return "stopped"
        if os.path.exists(f"{self.directory}/start"):
            return "created"
        with suppress(OSError):
            if self.cgroup().frozen():
                return "paused"
        return "running"

    def view(self) -> dict[str, Any]:
        """The answer to `state`, runtime-spec runtime.md#state."""
        status = self.status()
        return {
            "ociVersion": VERSION, "id": self.id, "status": status, "pid": self.pid if status != "stopped" else 0,
            "bundle": self.data["bundle"], "rootfs": self.data["rootfs"], "created": self.data["created"],
            "owner": "", "annotations": self.data["annotations"],
        }  # fmt: skip

    def require(self, *states: str) -> None:
        status = self.status()
        if status not in states:
            raise Failed(f"container {self.id!r} is {status}, not {' or '.join(states)}")


def check_id(identifier: str) -> None:
    """Names a directory: runc's grammar, letters, digits and _ + - . @ only."""
    letters = {letter for letter in identifier if not (letter.isascii() and letter.isalnum())}
    if not identifier or identifier in (".", "..") or len(identifier) > 1024 or letters - set("_+-.@"):
        raise Failed(f"invalid container id {identifier!r}")


def delete(record: Record, *, force: bool = False) -> None:
    status = record.status()
    if status != "stopped":
        if not force and status != "created":
            raise Failed(f"cannot delete container {record.id} that is not stopped: {status}")
        with suppress(OSError):
            record.cgroup().kill(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while record.alive() and time.monotonic() < deadline:
            time.sleep(0.01)
    record.cgroup().delete()
    if record.data["cgroup"] == f"{PARENT}/{record.id}":
        cgroups.detect().tidy(PARENT)
    remove_directory(record.directory)
    with suppress(Failed):
        run_hooks(record, "poststop", status="stopped")


def remove_directory(directory: str) -> None:
    with suppress(FileNotFoundError):
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)


def run_hooks(record: Record, *points: str, status: str) -> None:
    """Host-side hooks, the container's state on their standard input (runtime-spec config.md#posix-platform-hooks)."""
    if not any(record.data["hooks"].get(point) for point in points):
        return
    import subprocess

    state = json.dumps({**record.view(), "status": status, "pid": record.pid}).encode()
    for point in points:
        for hook in record.data["hooks"].get(point) or []:
            environment = dict(e.partition("=")[::2] for e in hook.get("env") or [])
            try:
                done = subprocess.run(
                    hook.get("args") or [hook["path"]], executable=hook["path"], input=state, env=environment,
                    timeout=hook.get("timeout"), capture_output=True, check=False,
                )  # fmt: skip
            except (OSError, subprocess.SubprocessError) as error:
                raise Failed(f"{point} hook {hook['path']}: {error}") from None
            if done.returncode:
                text = done.stderr.decode(errors="replace").strip()
                raise Failed(f"{point} hook {hook['path']} ended with {done.returncode}: {text}")


