"""What the host puts into a container: hosts, hostname and resolv.conf, written at each start, and missing sources of
binds. Runs in the daemon.

The texts are Docker's (libnetwork etchosts, resolvconf). Deliberately absent: the embedded DNS server's address, which
user-defined networks will put in place of the host's name servers.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tare.engine import plan_settings
from tare.engine.model import ContainerSpec
from tare.errors import Invalid, Unavailable

__all__ = ["hosts", "make_sources", "patiently", "resolv_conf", "write"]

_HOSTS = (
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::\tip6-localnet\n"
    "ff00::\tip6-mcastprefix\n"
    "ff02::1\tip6-allnodes\n"
    "ff02::2\tip6-allrouters\n"
)
_STUB = "127.0.0.53"
"""systemd-resolved; the servers behind it are in the second file."""
_RESOLV_CONF, _RESOLVED_CONF = "/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"
_LIMIT = 64 * 1024
PATIENCE_S = 10.0
_LOOKERS = ThreadPoolExecutor(8, "bind-source")

P = TypeVar("P")


def write(spec: ContainerSpec, name: str, directory: Path) -> None:
    """Make the three files in the container's folder, 0644. Invalid for an extra host or server that is none."""
    on_host = spec.namespaces.network == "host"
    texts = {
        "hosts": hosts(spec, base=_read("/etc/hosts") if on_host else _HOSTS),
        "hostname": name + "\n",
        "resolv.conf": resolv_conf(spec, _host_resolv_conf(), keep_loopback=on_host),
    }
    for file_name, text in texts.items():
        path = directory / file_name
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        with open(descriptor, "w", encoding="utf-8") as file:
            # The umask is 077; programs of every user in the container read these.
            os.fchmod(descriptor, 0o644)
            file.write(text)


async def patiently(look: Callable[[P], None], at: P) -> None:
    """Do what touches paths that the user names, in a thread: a dead network file system may hold it for ever.

    Unavailable after 10 s; the thread is then lost until the file system answers, and there are 8 of them.
    """
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.get_running_loop().run_in_executor(_LOOKERS, look, at)
    except TimeoutError:
        raise Unavailable(
            f"look at the sources of the bind mounts: the file system did not answer within {PATIENCE_S:.0f} s"
        ) from None


def make_sources(spec: ContainerSpec) -> None:
    """Make the missing directories of -v binds, 0755 whatever the umask; other binds must be there (Docker's texts)."""
    for mount in spec.mounts:
        if mount.type != "bind" or os.path.lexists(mount.source):
            continue
        if not mount.create_source:
            raise Invalid(f'invalid mount config for type "bind": bind source path does not exist: {mount.source}')
        missing = [path for path in (Path(mount.source), *Path(mount.source).parents) if not path.exists()]
        try:
            for path in reversed(missing):
                path.mkdir()
                path.chmod(0o755)
        except OSError as error:
            reason = f"mkdir {mount.source}: {(error.strerror or str(error)).lower()}"
            raise Invalid(f"error while creating mount source path '{mount.source}': {reason}") from None


def hosts(spec: ContainerSpec, base: str = _HOSTS) -> str:
    """/etc/hosts: `base` and a line for each --add-host "name:address" or "name=address"."""
    lines = [base if base.endswith("\n") or not base else base + "\n"]
    for entry in spec.extra_hosts:
        separator = "=" if "=" in entry else ":"
        name, _, address = entry.partition(separator)
        if address == "host-gateway":
            if spec.namespaces.network != "host":
                raise Invalid("unable to derive the IP value for host-gateway")
            address = "127.0.0.1"
        lines.append(f"{plan_settings.address(address.strip('[]'), entry)}\t{name}\n")
    return "".join(lines)


def resolv_conf(spec: ContainerSpec, host: str, *, keep_loopback: bool) -> str:
    """The host's, with --dns, --dns-search, --dns-option in the place of what they replace.

    Loopback servers of the host are left out unless the container shares its network: it could not reach them.
    """
    words = [line.split() for line in host.splitlines()]
    servers = [w[1] for w in words if len(w) > 1 and w[0] == "nameserver"]
    search = [name for w in words if w[:1] in (["search"], ["domain"]) for name in w[1:]]
    options = [option for w in words if w[:1] == ["options"] for option in w[1:]]
    if spec.dns:
        servers = [plan_settings.address(server, server) for server in spec.dns]
    elif not keep_loopback:
        servers = [server for server in servers if not _is_loopback(server)]
    if spec.dns_search:
        search = [name for name in spec.dns_search if name != "."]
    if spec.dns_options:
        options = list(spec.dns_options)
    lines = [f"nameserver {server}" for server in servers]
    if search:
        lines.append("search " + " ".join(search))
    if options:
        lines.append("options " + " ".join(options))
    return "".join(line + "\n" for line in lines)


def _host_resolv_conf() -> str:
    text = _read(_RESOLV_CONF)
    servers = [line.split()[1] for line in text.splitlines() if line.split()[:1] == ["nameserver"] and line.split()[1:]]
    return _read(_RESOLVED_CONF) or text if servers == [_STUB] else text


def _read(path: str) -> str:
    """At most 64 KiB of a file of the host; "" if it has none."""
    try:
        with open(path, "rb") as file:
            return file.read(_LIMIT).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _is_loopback(server: str) -> bool:
    try:
        return ipaddress.ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return False
