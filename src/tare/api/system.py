"""/_ping, /version, /info, /events, /system/df, and the answers of an engine without swarm and plugins.

Runs in the daemon.
"""

from __future__ import annotations

import os
import platform
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from tare.engine.model import Event, State
from tare.errors import Invalid, NotFound, Unavailable
from tare.http.message import Answer, Request, Response, Stream, json_response

from . import filters, times
from .backend import Engine
from .containers import Containers
from .images import Images

__all__ = ["MAXIMUM", "MINIMUM", "NOT_A_MANAGER", "System", "message", "unavailable"]

MINIMUM, MAXIMUM = "1.24", "1.47"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "riscv64": "riscv64"}
"""uname -m -> Go's GOARCH."""
EVENT_FILTERS = (
    "builder", "config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope",
    "secret", "service", "type", "volume",
)  # fmt: skip
NOT_A_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm '
    "and try again."
)
SWARM = {
    "NodeID": "",
    "NodeAddr": "",
    "LocalNodeState": "inactive",
    "ControlAvailable": False,
    "Error": "",
    "RemoteManagers": None,
}
DISK_TYPES = ("container", "image", "volume", "build-cache")


class System:
    def __init__(self, engine: Engine, containers: Containers, images: Images) -> None:
        self.engine = engine
        self._containers, self._images = containers, images
        self._os_release = os_release()

    async def ping(self, request: Request) -> Response:
        """The headers are what clients come for: versions, swarm, and which builder the CLI should take."""
        headers = {
            "Builder-Version": "2",
            "Swarm": "inactive",
            "Cache-Control": "no-cache, no-store, must-revalidate",
            "Pragma": "no-cache",
        }
        body = b"" if request.method == "HEAD" else b"OK"
        return Response(body=body, headers=headers, content_type="text/plain; charset=utf-8")

    async def version(self, request: Request) -> Response:
        uname = os.uname()
        facts = {
            "GitCommit": "",
            "GoVersion": f"{platform.python_implementation()} {platform.python_version()}",
            "Os": "linux",
            "Arch": ARCHITECTURES.get(uname.machine, uname.machine),
            "KernelVersion": uname.release,
            "BuildTime": "",
        }
        details = {"ApiVersion": MAXIMUM, "MinAPIVersion": MINIMUM, "Experimental": "false", **facts}
        return json_response(
            {
                "Platform": {"Name": "Tare Engine"},
                "Components": [{"Name": "Engine", "Version": self.engine.version, "Details": details}],
                "Version": self.engine.version,
                "ApiVersion": MAXIMUM,
                "MinAPIVersion": MINIMUM,
                **facts,
            }
        )

    async def info(self, request: Request) -> Response:
        security = "seccomp" if request.version < (1, 25) else "name=seccomp,profile=builtin"
        runtime: dict[str, Any] = {"path": "tare-oci"}
        if request.version >= (1, 44):
            runtime["status"] = {}
        return json_response(
            {
                "ID": self.engine.id,
                **self._counts(),
                "Driver": "overlay2",
                "DriverStatus": [["Supports d_type", "true"], ["userxattr", "false"]],
                "Plugins": {
                    "Volume": ["local"],
                    "Network": ["host", "null"],
                    "Authorization": None,
                    "Log": ["json-file", "none"],
                },
                **self._abilities(),
                **self._process(),
                **self._host(),
                "LoggingDriver": self.engine.config.log_driver,
                "CgroupDriver": "cgroupfs",
                "CgroupVersion": str(self.engine.host.cgroup_version),
                **REGISTRY,
                "GenericResources": None,
                "DockerRootDir": str(self.engine.images.layout.root),
                "HttpProxy": "",
                "HttpsProxy": "",
                "NoProxy": "",
                "Labels": list(self.engine.config.labels),
                "ExperimentalBuild": False,
                "ServerVersion": self.engine.version,
                "Runtimes": {"runc": runtime},
                "DefaultRuntime": "runc",
                "Swarm": SWARM,
                "LiveRestoreEnabled": True,
                "Isolation": "",
                "InitBinary": "docker-init",
                "ContainerdCommit": {"ID": "", "Expected": ""},
                "RuncCommit": {"ID": "", "Expected": ""},
                "InitCommit": {"ID": "", "Expected": ""},
                "SecurityOptions": [security],
                "CDISpecDirs": [],
                "Warnings": self._warnings(),
            }
        )

    def _counts(self) -> dict[str, int]:
        states = [container.state for container in self.engine.containers.all()]
        running = sum(state in (State.RUNNING, State.RESTARTING) for state in states)
        paused = states.count(State.PAUSED)
        return {
            "Containers": len(states),
            "ContainersRunning": running,
            "ContainersPaused": paused,
            "ContainersStopped": len(states) - running - paused,
            "Images": len(self.engine.images.list()),
        }

    def _abilities(self) -> dict[str, bool]:
        """Which limits this host can set."""
        there = self.engine.host.features
        quota = "cpu.quota" in there
        return {
            "MemoryLimit": "memory" in there,
            "SwapLimit": "memory.swap" in there,
            "CpuCfsPeriod": quota,
            "CpuCfsQuota": quota,
            "CPUShares": "cpu.shares" in there,
            "CPUSet": "cpuset" in there,
            "PidsLimit": "pids" in there,
            "OomKillDisable": "memory.oom_control" in there,
            "IPv4Forwarding": read("/proc/sys/net/ipv4/ip_forward") == "1",
            "BridgeNfIptables": False,
            "BridgeNfIp6tables": False,
        }

    def _warnings(self) -> list[str] | None:
        """Docker's sentences for what is missing."""
        can = self._abilities()
        texts = {
            "MemoryLimit": "WARNING: No memory limit support",
            "SwapLimit": "WARNING: No swap limit support",
            "CpuCfsQuota": "WARNING: No cpu cfs quota support",
            "CPUShares": "WARNING: No cpu shares support",
            "CPUSet": "WARNING: No cpuset support",
            "PidsLimit": "WARNING: No pids limit support",
        }
        return [text for name, text in texts.items() if not can[name]] or None

    def _process(self) -> dict[str, Any]:
        return {
            "Debug": self.engine.config.debug,
            "NFd": len(os.listdir("/proc/self/fd")),
            "NGoroutines": 0,
            "SystemTime": datetime.now().astimezone().isoformat(),
            "NEventsListener": 0,
        }

    def _host(self) -> dict[str, Any]:
        uname, host = os.uname(), self.engine.host
        return {
            "KernelVersion": uname.release,
            "OperatingSystem": self._os_release.get("PRETTY_NAME", "<unknown>"),
            "OSVersion": self._os_release.get("VERSION_ID", ""),
            "OSType": "linux",
            "Architecture": uname.machine,
            "NCPU": host.ncpu,
            "MemTotal": host.memory_total,
            "Name": uname.nodename,
        }

    async def events(self, request: Request) -> Answer:
        """One JSON object per line; registered before the headers leave."""
        query = request.query
        since, until = times.stamp(query.get("since"), "since"), times.stamp(query.get("until"), "until")
        if until and until < since:
            raise Invalid(f"`since` time ({query.get('since')}) cannot be after `until` time ({query.get('until')})")
        wanted = filters.parse(query.get("filters"), EVENT_FILTERS)
        subscription = self.engine.events.subscribe(since or None, until or None, wanted.values)
        skip_created = request.version < (1, 46)

        async def lines() -> AsyncIterator[bytes]:
            try:
                async for event in subscription:
                    if not (skip_created and event.kind == "image" and event.action == "create"):
                        yield msgspec.json.encode(message(event)) + b"\n"
            finally:
                await subscription.aclose()

        return Stream(lines(), content_type="application/json")

    async def disk_usage(self, request: Request) -> Response:
        """Since API 1.42 only the types asked for; the others are null."""
        asked = set(request.query.all("type")) if request.version >= (1, 42) else set()
        for name in asked:
            if name not in DISK_TYPES:
                raise Invalid(f"unknown object type: {name}")
        chosen = asked or set(DISK_TYPES)
        answer: dict[str, Any] = {"LayersSize": 0, "Images": None, "Containers": None, "Volumes": None}
        if "image" in chosen:
            answer["LayersSize"] = self._images.layers_size()
            answer["Images"] = self._image_usage(request.version)
        if "container" in chosen:
            every = self.engine.containers.all()
            answer["Containers"] = [
                msgspec.Raw(line) for line in await self._containers.lines(every, request.version, sizes=True)
            ]
        if "volume" in chosen:
            answer["Volumes"] = []
        answer["BuildCache"] = [] if "build-cache" in chosen else None
        return json_response(answer)

    def _image_usage(self, version: tuple[int, int]) -> list[Any]:
        shared = self._images.shared_sizes()
        used = [container.image_id for container in self.engine.containers.all()]
        return [
            self._images.summary(image, image.tags, version, shared, used.count(image.id))
            for image in self.engine.images.list()
        ]

    async def plugins(self, request: Request) -> Response:
        return json_response([])

    async def plugin(self, request: Request) -> Response:
        raise NotFound(f'plugin "{request.params["name"]}" not found')


def unavailable(text: str) -> Callable[[Request], Awaitable[Response]]:
    """A handler that says 503 with `text`."""

    async def refuse(request: Request) -> Response:
        raise Unavailable(text)

    return refuse


def message(event: Event) -> dict[str, Any]:
    """api/types/events/events.go of API 1.47; `status`, `id`, `from` are what old clients read."""
    legacy: dict[str, str] = {}
    if event.kind in ("container", "image"):
        legacy = {"status": event.action, "id": event.actor}
        if event.kind == "container" and "image" in event.attributes:
            legacy["from"] = event.attributes["image"]
    return {
        **legacy,
        "Type": event.kind,
        "Action": event.action,
        "Actor": {"ID": event.actor, "Attributes": event.attributes},
        "scope": "local",
        "time": event.time_ns // 10**9,
        "timeNano": event.time_ns,
    }


REGISTRY = {
    "IndexServerAddress": "https://index.docker.io/v1/",
    "RegistryConfig": {
        "AllowNondistributableArtifactsCIDRs": None,
        "AllowNondistributableArtifactsHostnames": None,
        "InsecureRegistryCIDRs": ["127.0.0.0/8"],
        "IndexConfigs": {"docker.io": {"Name": "docker.io", "Mirrors": [], "Secure": True, "Official": True}},
        "Mirrors": [],
    },
}


def os_release() -> dict[str, str]:
    """os-release(5) of the host, at most 64 KiB."""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        if text := read(path):
            pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
            return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}
    return {}


def read(path: str) -> str:
    """A small text file of the host; "" if it cannot be read."""
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            return file.read(64 << 10).strip()
    except OSError:
        return ""
