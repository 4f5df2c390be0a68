"""The lines of `tare info`, in the layout of Docker's client (docker/cli cli/command/system/info.go). Pure."""

from __future__ import annotations

from tare.cli.human import binary_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["client_lines", "server_lines"]


def _go(value: Any) -> str:
    """Println of a simple value."""
    return ("true" if value else "false") if isinstance(value, bool) else "" if value is None else str(value)


def client_lines(client: Mapping[str, Any]) -> list[str]:
    return [
        "Client:",
        f" Version:    {client['Version']}",
        f" Context:    {client['Context']}",
        f" Debug Mode: {_go(client['Debug'])}",
    ]


def server_lines(info: Mapping[str, Any], *, debug: bool) -> list[str]:
    """`debug`: the daemon's own numbers too, as when the daemon itself is in debug mode."""
    return [
        *_counts(info),
        *_plugins(info),
        *_runtimes(info),
        *_security(info.get("SecurityOptions") or ()),
        *_host(info),
        *_debugging(info, debug=debug),
        *_settings(info),
    ]


def _named(info: Mapping[str, Any], rows: Mapping[str, str]) -> list[str]:
    """" Title: value" of the members that are not empty."""
    return [f" {title}: {info[name]}" for title, name in rows.items() if info.get(name)]


def _counts(info: Mapping[str, Any]) -> list[str]:
    lines = [
        f" Containers: {info.get('Containers', 0)}",
        f"  Running: {info.get('ContainersRunning', 0)}",
        f"  Paused: {info.get('ContainersPaused', 0)}",
        f"  Stopped: {info.get('ContainersStopped', 0)}",
        f" Images: {info.get('Images', 0)}",
        *_named(info, {"Server Version": "ServerVersion", "Storage Driver": "Driver"}),
    ]
    lines += [f"  {name}: {value}" for name, value in info.get("DriverStatus") or ()]
    return lines + _named(
        info, {"Logging Driver": "LoggingDriver", "Cgroup Driver": "CgroupDriver", "Cgroup Version": "CgroupVersion"}
    )


def _plugins(info: Mapping[str, Any]) -> list[str]:
    plugins = info.get("Plugins") or {}
    lines = [" Plugins:"]
    for name in ("Volume", "Network", "Authorization", "Log"):
        words = plugins.get(name) or ()
        if words or name != "Authorization":
            lines.append(f"  {name}: {' '.join(words)}")
    if info.get("CDISpecDirs"):
        lines += [" CDI spec directories:", *(f"  {each}" for each in info["CDISpecDirs"])]
    return lines


def _runtimes(info: Mapping[str, Any]) -> list[str]:
    lines = [f" Swarm: {(info.get('Swarm') or {}).get('LocalNodeState', '')}"]
    if info.get("Runtimes"):
        lines += [f" Runtimes: {' '.join(info['Runtimes'])}", f" Default Runtime: {info.get('DefaultRuntime', '')}"]
    if info.get("OSType") == "linux":
        lines.append(f" Init Binary: {info.get('InitBinary', '')}")
        for title, name in (("containerd", "ContainerdCommit"), ("runc", "RuncCommit"), ("init", "InitCommit")):
            lines.append(f" {title} version: {(info.get(name) or {}).get('ID', '')}")
    return lines


def _security(options: Any) -> list[str]:
    """"name=seccomp,profile=builtin" -> two lines."""
    lines = []
    for option in options:
        pairs = [part.partition("=")[::2] for part in option.split(",")]
        lines += [f"  {value or key}" for key, value in pairs if key == "name" or not value]
        lines += [f"   Profile: {value}" for key, value in pairs if key == "profile"]
    return [" Security Options:", *lines] if lines else []


def _host(info: Mapping[str, Any]) -> list[str]:
    return [
        *_named(
            info,
            {
                "Kernel Version": "KernelVersion",
                "Operating System": "OperatingSystem",
                "OSType": "OSType",
                "Architecture": "Architecture",
            },
        ),
        f" CPUs: {info.get('NCPU', 0)}",
        f" Total Memory: {binary_size(info.get('MemTotal', 0))}",
        *_named(info, {"Name": "Name", "ID": "ID"}),
        f" Docker Root Dir: {info.get('DockerRootDir', '')}",
        f" Debug Mode: {_go(bool(info.get('Debug')))}",
    ]


def _debugging(info: Mapping[str, Any], *, debug: bool) -> list[str]:
    if not (debug or info.get("Debug")):
        return []
    rows = {
        "File Descriptors": "NFd",
        "Goroutines": "NGoroutines",
        "System Time": "SystemTime",
        "EventsListeners": "NEventsListener",
    }
    return [f"  {title}: {_go(info.get(name))}" for title, name in rows.items()]


def _settings(info: Mapping[str, Any]) -> list[str]:
    lines = _named(info, {"HTTP Proxy": "HttpProxy", "HTTPS Proxy": "HttpsProxy", "No Proxy": "NoProxy"})
    if info.get("Labels"):
        lines += [" Labels:", *(f"  {label}" for label in info["Labels"])]
    lines.append(f" Experimental: {_go(bool(info.get('ExperimentalBuild')))}")
    registry = info.get("RegistryConfig") or {}
    if registry.get("InsecureRegistryCIDRs") or registry.get("IndexConfigs"):
        lines.append(" Insecure Registries:")
        indexes = (registry.get("IndexConfigs") or {}).values()
        lines += [f"  {index.get('Name', '')}" for index in indexes if not index.get("Secure")]
        lines += [f"  {network}" for network in registry.get("InsecureRegistryCIDRs") or ()]
    if registry.get("Mirrors"):
        lines += [" Registry Mirrors:", *(f"  {mirror}" for mirror in registry["Mirrors"])]
    lines.append(f" Live Restore Enabled: {_go(bool(info.get('LiveRestoreEnabled')))}")
    if info.get("ProductLicense"):
        lines.append(f" Product License: {info['ProductLicense']}")
    if info.get("DefaultAddressPools"):
        pools = info["DefaultAddressPools"]
        lines += [" Default Address Pools:", *(f"   Base: {each['Base']}, Size: {each['Size']}" for each in pools)]
    return lines
