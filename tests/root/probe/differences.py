"""Where a container of tare may look unlike one of Docker 28.5, and why. docs/isolation.md shows these tables.

A row is (keys as a shell pattern, regular expression for the whole value here, reason). A key that is missing has the
value "(absent)". Rows of DELIBERATE must occur, or they are out of date; the others allow for what was not the same
when the reference was taken: the network, the image, the kernel, cgroup v1.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import NamedTuple

ABSENT = "(absent)"
ID = r"/[\w/.-]*<id>"


class Difference(NamedTuple):
    keys: str
    value: str
    reason: str

    def explains(self, key: str, value: str) -> bool:
        return fnmatchcase(key, self.keys) and re.fullmatch(self.value, value) is not None


def rows(*table: tuple[str, str, str]) -> tuple[Difference, ...]:
    return tuple(Difference(*row) for row in table)


DELIBERATE = rows(
    ("devcg.tun_c10:200", "mknod:OK open:EPERM", "the TUN device is nobody's by default: --device /dev/net/tun"),
    ("cgroup.pids.max", "4096", "a fork bomb without --pids-limit ends at 4096 tasks, not at the host's end"),
    ("mnt.host_paths_leaked", r"lowerdir\+ upperdir workdir ", "fsconfig(2) names each layer singly: no page limit"),
)
"""Stricter than Docker, or seen and of no consequence."""

V1 = rows(
    ("devcg.list", r"(?!.*10:200).*c 5:2 rwm;", "the list of devices allowed, without 10:200"),
    ("cgroup.paths", rf"(:{ID} )?(\S+:{ID} ?)+", "the parent is named /tare"),
    ("cgroup.root_visible", rf"{ID} ", "the parent is named /tare"),
)
V2 = rows(
    ("ns.cgroup", "private", "as Docker does on v2"),
    ("mnt./sys/fs/cgroup", r"cgroup2 ro,nosuid,nodev,noexec,relatime.*", "one tree, read-only"),
    ("cgroup.fs", "cgroup2", "one tree"),
    ("cgroup.mounts", "/sys/fs/cgroup:cgroup2:ro ", "one tree, read-only"),
    ("cgroup.paths", r":/", "own cgroup namespace"),
    ("cgroup.root_visible", "/ ", "own cgroup namespace"),
    ("cgroup.*.mkdir", r"\(absent\)|EROFS", "no directory per controller; the tree is read-only"),
    ("cgroup.devices_allow", "ENOENT", "a BPF program decides, no file"),
    ("devcg.list", "", "a BPF program decides, no file"),
    ("cgroup.memory.max", "max", "spelling of v2"),
    ("cgroup.cpu.quota", "max 100000", "spelling of v2"),
    ("cgroup.cpu.shares", "100", "spelling of v2"),
    ("cgroup.oom_control", "0", "memory.oom.group"),
    ("cgroup.swappiness", "max|n/a", "memory.swap.max"),
)

NO_NETWORK = rows(
    ("net.ifaces", "lo ", "--network none"),
    ("net.eth0.*", "no|", "--network none"),
    ("net.routes", "", "--network none"),
    ("net.hosts.lines", "6", "no address of its own to name"),
    ("sysctl.net/ipv4/conf/eth0/route_localnet", "", "--network none"),
)
IMAGE = rows(
    ("tmp.mode", "1777", "the test image's /tmp"),
    ("proc.self_exe", "/bin/sh", "applets of the test image are hard links"),
)

_MASKED = "acpi|asound|interrupts|kcore|keys|latency_stats|sched_debug|scsi|timer_list|timer_stats"
_SHOWN = (
    "bus/input/devices bus/pci/devices config.gz diskstats dma fs/ext4 iomem ioports irq/default_smp_affinity kallsyms "
    "key-users kpagecount kpageflags mdstat modules pagetypeinfo partitions schedstat slabinfo version_signature "
    "vmallocinfo"
)
_MOUNTED = (
    r"(/|/dev|/dev/mqueue|/dev/pts|/dev/shm|/etc/hostname|/etc/hosts|/etc/resolv\.conf|/proc|/sys/fs/cgroup)\(\w+,rw\)"
    r"|(/probe\.sh|/proc/(bus|fs|irq|sys|sysrq-trigger)|/sys|/sys/fs/cgroup(/[\w,]+)?)\(\w+,ro\)"
    rf"|(/proc/({_MASKED})|/sys/firmware|/sys/devices/virtual/powercap)\(tmpfs,r[ow]\)"
)
HOST = rows(
    ("speculation.*", r"[\w ;:,]*", "the processor"),
    ("lsm.current", "unconfined", "on a host with AppArmor: there is no profile of ours"),
    ("rlimits", r"(\w+:\w+/\w+ )*core_file_size:\w+/\w+ (\w+:\w+/\w+ )+", "the daemon's own limits"),
    ("mnt./etc/*", r"\w+ rw,.*", "the file system of the data root"),
    *[(f"mnt./proc/{name}", r"none |tmpfs r[ow],\S*", "masked if this kernel has it") for name in _MASKED.split("|")],
    *[(f"proc.{name}", "ENOENT|read:empty|dir:0", "masked if this kernel has it") for name in _MASKED.split("|")],
    *[(f"proc.{name}", r"ENOENT|E\w+|read:\w+|dir:\d+", "what this kernel shows") for name in _SHOWN.split()],
    ("mnt./proc/sysrq-trigger", r"none |proc ro,\S*", "read-only if this kernel has it"),
    ("proc.sysrq-trigger", "ENOENT|EACCES|EIO|read:empty", "write-only"),
    ("proc.kcore.open", "OK", "what masks it is a null device"),
    ("proc.*.open", "ENOENT|EROFS|EPERM|EACCES", "no such file in this kernel, or refused"),
    ("mnt./sys/firmware", r"none |tmpfs ro,\S*", "masked if this kernel has it"),
    ("mnt./sys/devices/virtual/powercap", r"none |tmpfs ro,\S*", "masked if this kernel has it"),
    ("mnt.all", rf"(({_MOUNTED}) )+", "masks of what this kernel has"),
    ("mnt.count", r"\d+", "masks of what this kernel has"),
    ("mnt.thermal_throttle_masked", r"\d+", "one for each processor that has it"),
    ("sysctl.*.write", "ENOENT|EROFS", "no such file in this kernel, or read-only"),
    ("sysctl.*", r"[\d ]*", "taken over from the host's network namespace or kernel"),
    ("sys.*.write", "ENOENT|EROFS", "no such file in this kernel, or read-only"),
    ("sys.devices/virtual/powercap", "entries:0", "masked"),
    ("sys.kernel/*", r"ENOENT|entries:\d+", "what this kernel has"),
    ("sys.fs/*", r"ENOENT|entries:\d+", "what this kernel has"),
    ("net.resolv", r"((nameserver|search|domain|options)?:\d+ )+", "lines of the host's file"),
)


class Mode(NamedTuple):
    """A way to run the probe and what it may change, compared with the plain run of the same engine."""

    options: tuple[str, ...]
    changes: tuple[Difference, ...]
    """A key without a wildcard must change."""


_TTY = r"/dev/pts/\d+"
_REFUSED = "EACCES|EPERM"
_UNMASKED = "what is masked or read-only otherwise"

MODES = {
    "terminal": Mode(
        ("-t",),
        rows(
            ("fd.pid1.[012]", _TTY, "a terminal of the container's own devpts"),
            ("env.names", "HOME HOSTNAME PATH TERM", "TERM"),
            ("mnt./dev/console", "devpts rw,nosuid,noexec,relatime", "the terminal"),
            ("mnt.all", r".*/dev/console\(devpts,rw\).*", "the terminal"),
            ("mnt.count", r"\d+", "the terminal"),
            ("dev.list", r".*console.*", "the terminal"),
            ("dev.console", r"character special file 620 \d+:\d+ 88:0", "the terminal"),
            ("dev.pts.list", "0 ptmx ", "the terminal"),
        ),
    ),
    "user": Mode(
        ("-u", "1000"),
        rows(
            ("id", "1000:0", "a number without an entry has group 0, as with Docker"),
            ("cap.CapPrm", "0{16}", "capabilities go with uid 0; the bounding set stays"),
            ("cap.CapEff", "0{16}", "capabilities go with uid 0; the bounding set stays"),
            ("dumpable.self_mem_owner", "1000:0", "own process"),
            ("env.HOME", "/", "no entry in passwd"),
            ("rootfs.writable", "EACCES", "files of root"),
            ("do.chroot", "EPERM", "needs a capability"),
            ("devcg.*", f"mknod:({_REFUSED}) open:-", "needs a capability"),
            ("proc.*", _REFUSED, "files of root"),
            ("sysctl.*.write", _REFUSED, "files of root"),
            ("sys.*.write", _REFUSED, "files of root"),
            ("cgroup.devices_allo?", _REFUSED, "files of root"),
            ("net.raw_socket", "FAIL", "needs a capability"),
        ),
    ),
    "read-only": Mode(
        ("--read-only",),
        rows(
            ("mnt./", r"overlay ro,relatime.*", "asked for"),
            ("mnt./etc/*", r"\w+ ro,.*", "the engine's own files too"),
            ("mnt.all", r"/\(overlay,ro\) .*", "asked for"),
            ("rootfs.writable", "EROFS", "asked for"),
        ),
    ),
    "privileged": Mode(
        ("--privileged",),
        rows(
            ("cap.CapPrm", "[0-9a-f]{16}", "all that the daemon has"),
            ("cap.CapEff", "[0-9a-f]{16}", "all that the daemon has"),
            ("cap.CapBnd", "[0-9a-f]{16}", "all that the daemon has"),
            ("cap.bounding.names", ".*sys_admin.*", "all that the daemon has"),
            ("seccomp.mode", "0", "no filter"),
            ("seccomp.filters", "0", "no filter"),
            ("oom_score_adj.lowe?", "OK", "if the daemon has CAP_SYS_RESOURCE"),
            ("lsm.curren?", ".*", "unconfined"),
            ("unshare.*", "OK", "no filter"),
            ("sethostname", "OK", "its own name"),
            ("mnt.*", ".*", _UNMASKED),
            ("do.*", r"\w+", _UNMASKED),
            ("dev.list", ".*", "all devices of the host"),
            ("devcg.*", r"mknod:OK open:\w+|a \*:\* rwm;|", "all devices"),
            ("proc.*", ".*", _UNMASKED),
            ("sysctl.*.write", r"\w+", _UNMASKED),
            ("sys.*", r".*", _UNMASKED),
            ("dmesg", "OK", "no filter"),
            ("keyring.session", r"\d+", "/proc/keys is not masked"),
            ("cgroup.*", r".*", "cgroups are writable"),
            ("net.ip_link_add", r"\w+", "its own network"),
        ),
    ),
    "host-network": Mode(
        ("--network", "host"),
        rows(
            ("ns.net", "host", "asked for"),
            ("hostname.is_id", "no", "the host's name"),
            ("sysctl.net/*", r"[\d ]*", "the host's own; not writable either"),
            ("net.iface?", ".*", "the host's"),
            ("net.eth0.*", ".*", "the host's"),
            ("net.route?", ".*", "the host's"),
            ("net.inet?", ".*", "the host's"),
            ("net.hosts.*", ".*", "the host's file"),
            ("net.resol?", ".*", "the host's file"),
            ("net.unix_abstrac?", r"\d+", "sockets of the host; none of them is the engine's"),
            ("net.bind_lo?", r"\w+", "port 80 of the host may be taken"),
        ),
    ),
    "init": Mode(
        ("--init",),
        rows(
            ("sig.*", "[0-9a-f]{16}", "of the init program"),
            ("mnt.all", r".*/sbin/docker-init\(\w+,ro\).*", "the program"),
            ("mnt.count", r"\d+", "the program"),
            ("files.engine_markers", r"/\.dockerenv:755:0 /sbin/docker-init:\d+:\d+ ", "the program"),
        ),
    ),
    "no-new-privileges": Mode(("--security-opt", "no-new-privileges"), rows(("nnp", "1", "asked for"))),
    "exec": Mode((), rows(("env.names", "HOME HOSTNAME PATH PROBE_PID", "the probe's own"))),
}
