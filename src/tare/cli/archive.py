"""`tare load`, `save`, `import`: archives between files or standard streams and the daemon, never held in memory."""

from __future__ import annotations

import os

from tare.cli import terminal
from tare.cli.client import escaped, query
from tare.cli.failure import Failure
from tare.cli.options import Command
from tare.cli.progress import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from tare.cli.client import Reply
    from tare.cli.main import Call

__all__ = ["import_", "load", "save"]

READ_SIZE = 256 << 10
TAR = "Content-Type: application/x-tar\r\n"
LOAD = Command(
    "[OPTIONS]",
    (
        ("input", "i", "string", "", "Read from tar archive file, instead of STDIN"),
        ("quiet", "q", "bool", "", "Suppress the load output"),
    ),
    most=0,
    aliases="tare image load, tare load",
)
SAVE = Command(
    "[OPTIONS] IMAGE [IMAGE...]",
    (("output", "o", "string", "", "Write to a file, instead of STDOUT"),),
    least=1,
    aliases="tare image save, tare save",
)
IMPORT = Command(
    "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
    (
        ("change", "c", "list", "", "Apply Dockerfile instruction to the created image"),
        ("message", "m", "string", "", "Set commit message for imported image"),
        ("platform", "", "string", "", "Set platform if server is multi-platform capable"),
    ),
    least=1,
    aliases="tare image import, tare import",
)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"open {path}: {(error.strerror or '').lower()}") from None


def _pieces(fd: int) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(fd, READ_SIZE)
        except OSError as error:
            raise Failure(f"read the archive: {error.strerror}") from None
        if not data:
            return
        yield data


def _upload(call: Call, path: str, fd: int) -> Reply:
    return call.client.request("POST", path, headers=TAR, upload=_pieces(fd))


def load(call: Call) -> int:
    flags = call.parse(LOAD)
    source = flags.text("input")
    if not source and terminal.is_terminal(0):
        raise Failure("requested load from stdin, but stdin is empty")
    fd = _open(source) if source else 0
    try:
        quiet = flags.on("quiet") or not terminal.is_terminal(1)
        reply = _upload(call, "/images/load" + query(quiet=1 if quiet else 0), fd)
        _told(reply)
    finally:
        if source:
            os.close(fd)
    return 0


def _told(reply: Reply) -> None:
    """Progress if the daemon sends it, else its plain words."""
    if reply.headers.get("content-type", "").startswith("application/json"):
        show(reply.messages())
    else:
        terminal.out(terminal.printable(reply.read().decode("utf-8", "replace")))


def import_(call: Call) -> int:
    flags = call.parse(IMPORT)
    source = flags.words[0]
    remote = source.startswith(("http://", "https://"))
    path = "/images/create" + query(
        fromSrc=source if remote else "-",
        message=flags.text("message") or None,
        platform=flags.text("platform").lower() or None,
        repo=flags.words[1] if len(flags.words) > 1 else None,
    )
    path += "".join("&changes=" + escaped(change) for change in flags.many("change"))
    if remote:
        _told(call.client.request("POST", path))
        return 0
    fd = 0 if source == "-" else _open(source)
    try:
        _told(_upload(call, path, fd))
    finally:
        if fd:
            os.close(fd)
    return 0


def save(call: Call) -> int:
    flags = call.parse(SAVE)
    target = flags.text("output")
    if not target and terminal.is_terminal(1):
        raise Failure("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    if target:
        _check_target(target)
    path = "/images/get?" + "&".join("names=" + escaped(name) for name in flags.words)
    reply = call.client.request("GET", path)
    if not target:
        _write(1, reply)
        return 0
    _save(target, reply)
    return 0


def _check_target(target: str) -> None:
    folder = os.path.dirname(target)
    if folder and not os.path.isdir(folder):
        cause = "not a directory" if os.path.exists(folder) else "no such file or directory"
        raise Failure(f"failed to save image: invalid output path: stat {folder}: {cause}")
    if os.path.isdir(target):
        raise Failure("failed to save image: cannot write to a directory")


def _save(target: str, reply: Reply) -> None:
    """A file is there whole or not at all; a device or FIFO is written as it is."""
    target = os.path.realpath(target)
    special = os.path.exists(target) and not os.path.isfile(target)
    folder, name = os.path.split(target)
    place = target if special else os.path.join(folder, f".tmp-{name}-{os.getpid()}")
    flags = os.O_WRONLY if special else os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        fd = os.open(place, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Failure(f"failed to save image: open {target}: {(error.strerror or '').lower()}") from None
    done = False
    try:
        _write(fd, reply)
        if not special:
            os.fsync(fd)
            os.rename(place, target)
        done = True
    except OSError as error:
        raise Failure(f"failed to save image: write {target}: {(error.strerror or '').lower()}") from None
    finally:
        os.close(fd)
        if not done and not special:
            os.unlink(place)


def _write(fd: int, reply: Reply) -> None:
    for chunk in reply.chunks():
        data = memoryview(chunk)
        while data:
            data = data[os.write(fd, data) :]
