"""Cgroup directories as files: open, write, close; make, walk, remove. Runs in the shim and the daemon, as root.

Nothing is read back after a write, no path is normalised, nothing is cached: a write is ~3 us and a start has about
30 of them. What to write is decided in `convert`; this module knows no limit.
"""

from __future__ import annotations

import errno
import os
import time

from .convert import Write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .api import Cgroup

DELETE_TIMEOUT_S = 2.0
FREEZE_TIMEOUT_S = 10.0
CAP_SYS_RESOURCE = 24


def read(path: str) -> str:
    """The whole file (cgroup.procs may exceed one page)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = part = os.read(fd, 8192)
        while part:
            part = os.read(fd, 65536)
            data += part
    except OSError as error:
        raise OSError(error.errno, "read", path) from None
    finally:
        os.close(fd)
    return data.decode()


def write(path: str, *values: str) -> None:
    """One write(2) per value, as a cgroup file takes one statement at a time."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for value in values:
            os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"write {value!r}: {os.strerror(error.errno or 0)}", path) from None
    finally:
        os.close(fd)


def put(directory: str, alternatives: Iterable[tuple[str, str]]) -> bool:
    """Write the first of the files that exists; False if there is none."""
    for file, value in alternatives:
        try:
            write(f"{directory}/{file}", value)
        except FileNotFoundError:
            continue
        return True
    if not os.path.isdir(directory):
        raise FileNotFoundError(errno.ENOENT, "no such cgroup", directory)
    return False


def apply(directory: Callable[[str], str | None], plan: Iterable[Write]) -> list[str]:
    """Perform a plan; `directory` gives the leaf of a controller ("" = any), None if it is not there. Warnings.

    A write refused with EINVAL is tried again after all others: the kernel checks memory against memsw, period against
    quota and burst one by one, and which of them must go first depends on the direction of the change.
    """
    warnings: list[str] = []
    later: list[tuple[str, tuple[tuple[str, str], ...]]] = []
    for controller, alternatives, sentence in plan:
        leaf = directory(controller)
        written = False
        try:
            written = leaf is not None and put(leaf, alternatives)
        except OSError as error:
            if error.errno == errno.EINVAL and leaf is not None:
                later.append((leaf, alternatives))
                continue
            if error.errno != errno.EPERM or capable(CAP_SYS_RESOURCE):
                raise
            sentence = f"{alternatives[0][0]} cannot be set without CAP_SYS_RESOURCE. Limitation discarded."
        if not written and sentence and sentence not in warnings:
            warnings.append(sentence)
    for leaf, alternatives in later:
        put(leaf, alternatives)
    return warnings


def capable(capability: int, status: str = "/proc/self/status") -> bool:
    """Whether this process has the capability in force."""
    for line in read(status).splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def whole_disk(major: int, minor: int, sys: str = "/sys") -> str:
    """The disk a partition is on, "major:minor": the kernel throttles disks only (ENODEV for a partition)."""
    directory = os.path.realpath(f"{sys}/dev/block/{major}:{minor}")
    try:
        if os.path.exists(f"{directory}/partition"):
            return read(f"{os.path.dirname(directory)}/dev").strip()
    except FileNotFoundError:
        pass
    return f"{major}:{minor}"


def components(path: str) -> list[str]:
    """The checked parts of "/tare/<id>"; ValueError for a relative path, "..", NUL or an empty component."""
    if not path.startswith("/") or "\0" in path:
        raise ValueError(f"cgroup path {path!r} must be absolute and without NUL")
    parts = path[1:].split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"cgroup path {path!r} has an empty or relative component")
    return parts


def make(mount: str, path: str, made: list[str]) -> bool:
    """mkdir the leaf, its parents too where they are missing; appends what this call made. False = it existed."""
    directory = mount + path
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        return False
    except FileNotFoundError:
        if path.count("/") < 2:
            raise
        make(mount, path[: path.rindex("/")], made)
        return make(mount, path, made)
    os.chmod(directory, 0o755)  # whatever the umask: programs of every user read their limits here
    made.append(directory)
    return True


def unmake(made: list[str]) -> None:
    """Undo of `make`, newest first; what others use by now stays."""
    for directory in reversed(made):
        try:
            os.rmdir(directory)
        except OSError:
            continue


def below(directory: str) -> list[str]:
    """Names of the sub-cgroups."""
    # A directory's link count is 2 + its sub-directories: most leaves are done without listing 60 files.
    if os.stat(directory).st_nlink == 2:
        return []
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def pids(directory: str) -> list[int]:
    """Processes of the leaf and all cgroups below; empty if it is gone."""
    try:
        # Processes of a pid namespace that we do not see are listed as 0, and kill(0) would hit our own group.
        found = [pid for pid in map(int, read(f"{directory}/cgroup.procs").split()) if pid > 0]
    except FileNotFoundError:
        return []
    except OSError as error:
        if error.errno == errno.ENODEV:
            return []
        # A threaded cgroup: its processes are listed by the domain above.
        if error.errno != errno.EOPNOTSUPP:
            raise
        found = []
    try:
        for name in below(directory):
            found += pids(f"{directory}/{name}")
    except FileNotFoundError:
        pass
    return found


def attach(directory: str, pid: int) -> None:
    """Move one process; retried while the kernel still calls the task new (EINVAL, cpu controller before 5.19)."""
    for attempt in range(5):
        try:
            return write(f"{directory}/cgroup.procs", str(pid))
        except OSError as error:
            if error.errno != errno.EINVAL or attempt == 4:
                raise
        time.sleep(0.001 * 2**attempt)
    return None


def signal_frozen(cgroup: Cgroup, signal: int) -> None:
    """Signal every process while none can fork; without a freezer, SIGKILL is repeated until nobody new turns up."""
    was = held = cgroup.frozen()
    try:
        if not was:
            cgroup.freeze(True)
            held = True
    except OSError:
        # A process in an uninterruptible sleep, or no freezer: signal what can be seen.
        pass
    try:
        done: set[int] = set()
        for _ in range(1 if held else 20):
            fresh = set(cgroup.pids()) - done
            for pid in fresh:
                try:
                    os.kill(pid, signal)
                except ProcessLookupError:
                    continue
            done |= fresh
            if not fresh or signal != 9:
                break
    finally:
        if held and (signal == 9 or not was):
            cgroup.freeze(False)


def wait(reached: Callable[[], bool], timeout_s: float) -> bool:
    """Ask until `reached` or the time is over, with growing pauses from 0.1 to 10 ms. The last answer."""
    deadline = time.monotonic() + timeout_s
    pause = 0.0001
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.01)
    return True


def remove(directories: Iterable[str]) -> None:
    """rmdir all, sub-cgroups first; absent is fine. OSError EBUSY after 2 s if processes stay in one of them."""
    busy = [directory for directory in directories if not _gone(directory)]

    def done() -> bool:
        busy[:] = [directory for directory in busy if not _gone(directory)]
        return not busy

    # A process that was reaped a moment ago may still be on its way out of the cgroup.
    if busy and not wait(done, DELETE_TIMEOUT_S):
        raise OSError(errno.EBUSY, "remove cgroup: processes are left in it", busy[0])


def _gone(directory: str) -> bool:
    """Try to remove the tree; False while the kernel says EBUSY."""
    for attempt in (0, 1):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        else:
            return True
        if attempt == 0:
            try:
                names = below(directory)
            except FileNotFoundError:
                return True
            left = [name for name in names if not _gone(f"{directory}/{name}")]
            if left or not names:
                return False
    return False


def tidy(points: list[str], path: str) -> None:
    """rmdir `path` below each point; the kernel refuses it for a cgroup with children or processes."""
    components(path)
    for point in points:
        try:
            os.rmdir(point + path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY):
                raise
