"""The types of the engine. Frozen values; sizes in bytes, times in nanoseconds since the epoch, `_s` in seconds.

Reading order for a newcomer: `State`, `ContainerSpec` (what the user asked), `Container` (what is), `Bundle` (what the
runtime is told; its shape is documented in runtime/protocol.py). Docker's spelling of the same things lives in
`api/` only; `ContainerSpec` is stored as JSON in the ledger (db.py), so a field may be added with a default but
neither renamed nor reused.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from msgspec import Struct


class State(StrEnum):
    """The one field for a container's state; engine/state.py holds the table of legal steps."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    EXITED = "exited"
    REMOVING = "removing"
    DEAD = "dead"


class Value(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all values below: immutable, compared by content, defaults left out of JSON."""


class Ulimit(Value, frozen=True):
    """One RLIMIT_*: `name` without prefix in lower case ("nofile"); -1 is unlimited (setrlimit(2))."""

    name: str
    soft: int
    hard: int


class Device(Value, frozen=True):
    """A host device node shown inside; `permissions` is a subset of "rwm"."""

    host: str
    container: str
    permissions: str = "rwm"


class DeviceRate(Value, frozen=True):
    """A number bound to one block device: bytes/s, operations/s or a weight, by the list it stands in."""

    path: str
    rate: int


class Resources(Value, frozen=True):
    """Every bound on what a container may use; 0 or None is "not asked", -1 "unlimited" where Docker says so."""

    memory: int = 0
    memory_swap: int = 0
    """memory + swap together, as in Docker; 0 = twice `memory`, -1 = unlimited."""
    memory_reservation: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool = False
    nano_cpus: int = 0
    """CPUs x 1e9; excludes cpu_period and cpu_quota."""
    cpu_shares: int = 0
    cpu_period: int = 0
    """Microseconds, as cpu_quota."""
    cpu_quota: int = 0
    cpu_rt_period: int = 0
    cpu_rt_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids_limit: int | None = None
    """None = the engine's default (4096); 0 or -1 = unlimited."""
    blkio_weight: int = 0
    blkio_weight_device: tuple[DeviceRate, ...] = ()
    device_read_bps: tuple[DeviceRate, ...] = ()
    device_write_bps: tuple[DeviceRate, ...] = ()
    device_read_iops: tuple[DeviceRate, ...] = ()
    device_write_iops: tuple[DeviceRate, ...] = ()
    devices: tuple[Device, ...] = ()
    device_cgroup_rules: tuple[str, ...] = ()
    """Lines of the v1 devices controller: "c 10:229 rwm"."""
    ulimits: tuple[Ulimit, ...] = ()
    cgroup_parent: str = ""


class MountSpec(Value, frozen=True):
    """A mount the user asked for. `type`: "bind", "tmpfs" or "volume"."""

    type: str
    target: str
    source: str = ""
    read_only: bool = False
    propagation: str = ""
    """Bind: "", private, rprivate, shared, rshared, slave, rslave ("" = rprivate)."""
    non_recursive: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False
    create_source: bool = False
    """Bind: make a missing source a directory (-v does, --mount does not)."""
    tmpfs_size: int = 0
    tmpfs_mode: int = 0o1777
    options: tuple[str, ...] = ()
    """Further mount(8) words of --tmpfs: "exec", "uid=1000", ..."""
    origin: str = ""
    """"binds", "mounts" or "tmpfs": the Docker field it came in, so that inspect can give it back in the same one."""


class HealthCheck(Value, frozen=True):
    """Image's or user's HEALTHCHECK; kept and shown, run by engine/health.py once there is one. Times in ns."""

    test: tuple[str, ...] = ()
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class RestartPolicy(Value, frozen=True):
    name: str = "no"
    """no, on-failure, always, unless-stopped."""
    maximum_retry: int = 0


class LogConfig(Value, frozen=True):
    driver: str = "json-file"
    """json-file or none."""
    options: dict[str, str] = {}
    """max-size ("10m"), max-file ("3")."""


class Security(Value, frozen=True):
    """Rights of the first process. `*_paths` None = the engine's default list, () = none at all."""

    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """--security-opt as given: "no-new-privileges", "seccomp=unconfined" or "=<JSON>", "systempaths=unconfined"."""
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None
    oom_score_adj: int = 0


class Namespaces(Value, frozen=True):
    """Modes as Docker spells them: "" (default), "host", "private", "container:<id>", "none", "shareable"."""

    network: str = ""
    pid: str = ""
    ipc: str = ""
    uts: str = ""
    user: str = ""
    cgroup: str = ""


class ContainerSpec(Value, frozen=True):
    """What the user asked, merged with the image's defaults; never changed after create (update makes a new one).

    `command` is the user's own (may be empty), `args` what is executed: entrypoint + command after the merge.
    """

    image: str
    """The reference as typed; the image's id is in Container."""
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    hostname: str = ""
    domainname: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    """Mount points an image or user declares without a source."""
    port_bindings: dict[str, tuple[tuple[str, str], ...]] = {}
    """"80/tcp" -> ((host ip, host port), ...); kept for inspect until networks come."""
    publish_all: bool = False
    stop_signal: str = ""
    stop_timeout: int | None = None
    """Seconds; None = 10, -1 = for ever."""
    healthcheck: HealthCheck | None = None
    resources: Resources = Resources()
    mounts: tuple[MountSpec, ...] = ()
    security: Security = Security()
    namespaces: Namespaces = Namespaces()
    group_add: tuple[str, ...] = ()
    sysctls: dict[str, str] = {}
    shm_size: int = 0
    """Bytes; 0 = 64 MiB."""
    read_only: bool = False
    init: bool | None = None
    auto_remove: bool = False
    restart: RestartPolicy = RestartPolicy()
    log: LogConfig = LogConfig()
    runtime: str = ""
    platform: str = ""
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    console_size: tuple[int, int] = (0, 0)
    """Rows, columns of the terminal at create."""
    docker_extra: dict[str, Any] = {}
    """HostConfig/Config members the engine only keeps and shows (Links, VolumeDriver, ...), in Docker's spelling."""


class ExitStatus(Value, frozen=True):
    """How the first process ended. `code`: 0..255, 128+n for signal n; 255 with `error` set if nobody could know."""

    code: int
    oom_killed: bool = False
    error: str = ""


class Container(Value, frozen=True):
    """What is: one row of the ledger. A new value replaces the old one at each step; nothing is changed in place.

    >>> changed = msgspec.structs.replace(container, state=State.RUNNING, pid=4711)
    """

    id: str
    name: str
    """Without Docker's leading slash."""
    spec: ContainerSpec
    image_id: str
    """Config digest, "sha256:..."."""
    state: State = State.CREATED
    args: tuple[str, ...] = ()
    """What is executed: path and arguments, entrypoint + command."""
    created: int = 0
    started: int = 0
    """ns; 0 = never (shown as 0001-01-01T00:00:00Z)."""
    finished: int = 0
    pid: int = 0
    start_time: int = 0
    """Field 22 of /proc/pid/stat: makes the pid unique within one boot."""
    boot_id: str = ""
    """/proc/sys/kernel/random/boot_id at start: a different one means that every process is gone."""
    exit: ExitStatus = ExitStatus(code=0)
    restart_count: int = 0
    stopped_by_user: bool = False
    warnings: tuple[str, ...] = ()


class ExecSpec(Value, frozen=True):
    """A further process in a running container (docker exec)."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    tty: bool = False
    privileged: bool = False
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    detach_keys: str = ""
    console_size: tuple[int, int] = (0, 0)


class Exec(Value, frozen=True):
    """One exec and its fate; kept in memory until its container is gone."""

    id: str
    container: str
    spec: ExecSpec
    running: bool = False
    started: bool = False
    pid: int = 0
    exit_code: int | None = None


class Streams(Value, frozen=True):
    """What one attached client wants: which streams, how framed.

    `multiplexed`: 8-byte headers of Docker's stdcopy format (no tty) instead of raw bytes.
    """

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    multiplexed: bool = True
    detach_keys: str = ""


class Event(Value, frozen=True):
    """One entry of `tare events`. `kind`: container, image, network, volume, daemon. `attributes` of the actor."""

    kind: str
    action: str
    actor: str
    attributes: dict[str, str] = {}
    time_ns: int = 0


class Bundle(Value, frozen=True):
    """What the runtime needs and nothing more; written to <exec-root>/containers/<id>/bundle.json.

    Shape of each member: runtime/protocol.py, which documents it for both sides.
    """

    id: str
    oci: dict[str, Any]
    rootfs: dict[str, Any]
    cgroup: str
    bpf: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    init: str = ""
    tty: bool = False
    stdin: bool = False
    stdin_once: bool = False
    console_size: tuple[int, int] = (0, 0)
    log: dict[str, Any] = {}
    run_dir: str = ""
    dockerenv: bool = False
