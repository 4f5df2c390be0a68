"""The way in: global flags, the table from command to module, the way out.

A command is a function Call -> exit status in a module of this package, imported only when it is called. It reads its
flags by `call.parse(COMMAND)`, talks by `call.client` and fails by raising failure.Failure.
"""

from __future__ import annotations

import os
import sys

from tare import __version__
from tare.cli import terminal
from tare.cli.failure import Failure
from tare.cli.options import Command, Flags, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

    from tare.cli.client import Client

    Entry = tuple[str, str, str]

__all__ = ["COMMANDS", "GROUPS", "Call", "main", "run"]

COMMANDS: dict[str, Entry] = {
    "run": ("run", "run", "Create and run a new container from an image"),
    "exec": ("exec", "exec_", "Execute a command in a running container"),
    "ps": ("ps", "ps", "List containers"),
    "images": ("images", "images", "List images"),
    "version": ("system", "version", "Show the version of client and daemon"),
    "info": ("system", "info", "Show information about the engine and its host"),
    "attach": ("attach", "attach", "Attach local standard input, output, and error streams to a running container"),
    "create": ("run", "create", "Create a new container"),
    "daemon": ("daemon", "daemon", "Run the daemon in the foreground"),
    "events": ("system", "events", "Get real time events from the daemon"),
    "history": ("images", "history", "Show the history of an image"),
    "import": ("archive", "import_", "Import the contents from a tarball to create a filesystem image"),
    "inspect": ("inspect", "inspect", "Return low-level information on objects"),
    "kill": ("process", "kill", "Kill one or more running containers"),
    "load": ("archive", "load", "Load an image from a tar archive or STDIN"),
    "logs": ("logs", "logs", "Fetch the logs of a container"),
    "pause": ("process", "pause", "Pause all processes within one or more containers"),
    "port": ("port", "port", "List port mappings or a specific mapping for the container"),
    "rename": ("process", "rename", "Rename a container"),
    "restart": ("process", "restart", "Restart one or more containers"),
    "rm": ("process", "remove", "Remove one or more containers"),
    "rmi": ("images", "rmi", "Remove one or more images"),
    "save": ("archive", "save", "Save one or more images to a tar archive (streamed to STDOUT by default)"),
    "start": ("process", "start", "Start one or more stopped containers"),
    "stop": ("process", "stop", "Stop one or more running containers"),
    "tag": ("images", "tag", "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE"),
    "unpause": ("process", "unpause", "Unpause all processes within one or more containers"),
    "wait": ("process", "wait", "Block until one or more containers stop, then print their exit codes"),
}
FREQUENT = ("run", "exec", "ps", "images", "version", "info")
OF_CONTAINERS = (
    "attach create exec kill logs pause port rename restart rm run start stop unpause wait"
).split()  # fmt: skip
GROUPS: dict[str, tuple[str, dict[str, Entry]]] = {
    "container": (
        "Manage containers",
        {name: COMMANDS[name] for name in OF_CONTAINERS}
        | {
            "inspect": ("inspect", "container", "Display detailed information on one or more containers"),
            "ls": COMMANDS["ps"],
            "prune": ("prune", "containers", "Remove all stopped containers"),
        },
    ),
    "image": (
        "Manage images",
        {name: COMMANDS[name] for name in ("history", "import", "load", "save", "tag")}
        | {
            "inspect": ("inspect", "image", "Display detailed information on one or more images"),
            "ls": COMMANDS["images"],
            "prune": ("prune", "images", "Remove unused images"),
            "rm": COMMANDS["rmi"],
        },
    ),
    "system": (
        "Manage the engine",
        {
            "df": ("system", "df", "Show disk usage"),
            "events": COMMANDS["events"],
            "info": COMMANDS["info"],
        },
    ),
}
ALIASES = {"list": "ls", "ps": "ls", "remove": "rm", "rmi": "rm"}
GLOBAL = Command(
    "[OPTIONS] COMMAND [ARG...]",
    (
        ("config", "", "string", "", "Directory of the client's settings"),
        ("context", "c", "string", "", 'Name of the context to use (only "default")'),
        ("debug", "D", "bool", "", "Enable debug mode"),
        ("host", "H", "list", "", "Daemon socket to connect to"),
        ("log-level", "l", "string", '"info"', 'Set the logging level ("debug", "info", "warn", "error", "fatal")'),
        ("no-autostart", "", "bool", "", "Do not start the daemon when it is not running"),
        ("tls", "", "bool", "", "Use TLS; implied by --tlsverify"),
        ("tlscacert", "", "string", "", "Trust certificates signed by this CA only"),
        ("tlscert", "", "string", "", "Path of the TLS certificate"),
        ("tlskey", "", "string", "", "Path of the TLS key"),
        ("tlsverify", "", "bool", "", "Use TLS and verify the daemon"),
        ("version", "v", "bool", "", "Print the version and quit"),
    ),
    interspersed=False,
)


class Call:
    """One command to carry out: `path` is how it was named ("tare container run"), `name` its last word."""

    def __init__(self, path: str, summary: str, argv: Sequence[str], settings: Flags) -> None:
        self.path = path
        self.name = path.rpartition(" ")[2]
        self.summary = summary
        self.argv = argv
        self.settings = settings
        self._client: Client | None = None

    def parse(self, command: Command) -> Flags:
        """The command's flags and words. Raises Failure; --help is printed here and ends the command with status 0."""
        flags, notes = parse(command, self.path, self.argv)
        for note in notes:
            terminal.err(note + "\n")
        if flags.on("help"):
            from tare.cli.helptext import command_help

            terminal.out(command_help(command, self.path, self.summary, terminal.columns(0)))
            raise Failure("", 0)
        return flags

    @property
    def client(self) -> Client:
        """The client for the daemon chosen by flags and environment; nothing is connected before the first request."""
        if self._client is None:
            self._client = self._connect()
        return self._client

    def _connect(self) -> Client:
        from tare.cli.client import Client
        from tare.cli.endpoint import choose

        settings = self.settings
        hosts = settings.many("host")
        if len(hosts) > 1:
            raise Failure("Failed to initialize: unable to resolve docker endpoint: specify only one -H")
        if settings.text("context") not in ("", "default"):
            raise Failure(f'Failed to initialize: context "{settings.text("context")}": context not found')
        words = {name: settings.text(name) for name in ("tlscacert", "tlscert", "tlskey")}
        words |= {name: "1" if settings.on(name) else "" for name in ("tls", "tlsverify")}
        endpoint = choose(hosts[0] if hosts else "", words, os.environ)
        starter = None
        if not endpoint.chosen:
            from tare.cli.autostart import Starter, wanted

            if wanted(endpoint, refused=settings.on("no-autostart")):
                starter = Starter(endpoint, sys.argv[0])
        return Client(endpoint, version=os.environ.get("DOCKER_API_VERSION", ""), start=starter)


def _summaries(entries: Mapping[str, Entry]) -> dict[str, str]:
    return {name: entry[2] for name, entry in entries.items()}


def _root_help() -> str:
    from tare.cli.helptext import root_help

    frequent = {name: COMMANDS[name][2] for name in FREQUENT}
    rest = {name: entry[2] for name, entry in COMMANDS.items() if name not in FREQUENT}
    groups = {name: group[0] for name, group in GROUPS.items()}
    return root_help(frequent, groups, rest, GLOBAL.rows, terminal.columns(0))


def _call(entry: Entry, path: str, argv: Sequence[str], settings: Flags) -> int:
    module, function, summary = entry
    name = f"tare.cli.{module}"
    __import__(name)
    command = getattr(sys.modules[name], function)
    return int(command(Call(path, summary, argv, settings)))


def _group(name: str, argv: Sequence[str], settings: Flags) -> int:
    summary, entries = GROUPS[name]
    path = f"tare {name}"
    if argv and not argv[0].startswith("-"):
        word = ALIASES.get(argv[0], argv[0])
        if word in entries:
            return _call(entries[word], f"{path} {argv[0]}", argv[1:], settings)
        raise Failure(
            f"tare: unknown command: {path} {argv[0]}\n\nUsage:  {path}\n\nRun '{path} --help' for more information"
        )
    from tare.cli.helptext import group_help

    flags, _notes = parse(Command("COMMAND", interspersed=False), path, argv)
    (terminal.out if flags.on("help") else terminal.err)(group_help(path, summary, _summaries(entries)))
    return 0


def _dispatch(argv: Sequence[str]) -> int:
    settings = Flags({}, [])
    if argv and argv[0].startswith("-"):
        settings, notes = parse(GLOBAL, "tare", argv)
        for note in notes:
            terminal.err(note + "\n")
        argv = settings.words
        if settings.on("version"):
            terminal.out(f"tare version {__version__}\n")
            return 0
    if settings.on("help") and not argv:
        terminal.out(_root_help())
        return 0
    if not argv:
        terminal.err(_root_help())
        return 0
    if argv[0] == "help":
        return _help(argv[1:], settings)
    if argv[0] in COMMANDS:
        return _call(COMMANDS[argv[0]], f"tare {argv[0]}", argv[1:], settings)
    if argv[0] in GROUPS:
        return _group(argv[0], argv[1:], settings)
    raise Failure(f"tare: unknown command: tare {argv[0]}\n\nRun 'tare --help' for more information")


def _help(words: Sequence[str], settings: Flags) -> int:
    """`tare help run` is `tare run --help`."""
    if not words:
        terminal.out(_root_help())
        return 0
    known = words[0] in COMMANDS and len(words) == 1
    if words[0] in GROUPS:
        known = len(words) == 1 or (len(words) == 2 and ALIASES.get(words[1], words[1]) in GROUPS[words[0]][1])
    if not known:
        raise Failure(f"unknown help topic: {' '.join(words)}")
    return _dispatch([*words, "--help"])


def main(argv: Sequence[str]) -> int:
    """Carry out one command line (without the program's name). Returns the exit status; writes to stdout and stderr."""
    try:
        return _dispatch(argv)
    except Failure as failure:
        if str(failure):
            terminal.err(terminal.printable(str(failure)) + "\n")
        return failure.status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What a program with SIGPIPE's default action would have shown its parent.
        return 141
    finally:
        terminal.restore_all()


def _standard_descriptors() -> None:
    """Put /dev/null where 0, 1 or 2 is closed: else our first socket would take the place of stdin or stdout."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", os.O_RDWR)


def run() -> NoReturn:
    """The process's whole life. Leaves by _exit: the interpreter's own tidying costs 2 ms."""
    status = 1
    try:
        _standard_descriptors()
        status = main(sys.argv[1:])
    except Exception:
        sys.excepthook(*sys.exc_info())
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            pass
    os._exit(status)
