"""`tared`: builds every object, passes it to constructors, serves, and leaves. The only place that knows all rooms.

Runs as root, one thread besides the executor's, one event loop. What it starts outlives it: SIGTERM, a crash or kill -9
ends streams and requests and no container. Deliberately absent: any behaviour of its own beyond start and end; what
cannot work is refused here in one sentence, before anything is served.

Signals: TERM, INT end it (a second one at once); HUP reads the log level anew; QUIT and USR1 print the stacks.
"""

from __future__ import annotations

import asyncio
import errno
import faulthandler
import gc
import logging
import os
import signal
import sqlite3
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tare import config, logline
from tare.config import VERSION, Host, Settings
from tare.errors import EngineError, Unavailable, Unsupported
from tare.foothold import Foothold, activated, group_id, notify, private_directory, raise_nofile, watch_children

if TYPE_CHECKING:
    import ssl

    from tare.cgroups.api import Hierarchy
    from tare.db import Database
    from tare.engine.containers import Containers
    from tare.engine.engine import Config
    from tare.engine.limits import HostFacts
    from tare.engine.shims import Shims
    from tare.http.server import Server
    from tare.store.trash import Trash

__all__ = ["House", "main"]

log = logging.getLogger("tare.daemon")
_EXIT_FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 after an orderly end, 1 with one sentence on stderr."""
    try:
        settings = config.load(sys.argv[1:] if argv is None else argv)
        if settings.help:
            sys.stdout.write(config.usage())
        elif settings.version:
            sys.stdout.write(f"tared version {VERSION}\n")
        elif settings.validate:
            sys.stdout.write("configuration OK\n")
        else:
            _run(settings)
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"tared: the Python package {error.name} is missing: install tare-engine with its dependencies\n"
        )
        return _EXIT_FAILED
    except (EngineError, OSError) as error:
        sys.stderr.write(f"tared: {logline.escape(_sentence(error))}\n")
        return _EXIT_FAILED
    return 0


def _run(settings: Settings) -> None:
    if os.geteuid() != 0:
        raise Unavailable("the daemon needs root: start it with sudo, or let systemd do it")
    os.umask(0o077)
    watch_children()
    foothold = Foothold()
    try:
        private_directory(settings.data_root, 0o710)
        foothold.lock(settings.data_root)
        private_directory(settings.exec_root, 0o700)
        foothold.lock(settings.exec_root)
        foothold.write_pid(settings.pidfile)
        output = logline.open_file(settings.log_file) if settings.log_file else sys.stderr
        logline.start(settings.level, output)
        for number in (signal.SIGQUIT, signal.SIGUSR1):
            faulthandler.register(number, file=output, all_threads=True)
        asyncio.run(_serve(settings))
    except (EngineError, OSError) as error:
        if settings.log_file:
            log.critical("%s", _sentence(error))
        raise
    finally:
        foothold.release()


async def _serve(settings: Settings) -> None:
    """From the first object to the last; returns when a signal asked for the end."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _asked_to_end, number, stop, hurry)
    loop.add_signal_handler(signal.SIGHUP, _reload, settings)
    house = House(settings)
    try:
        await house.open()
        await house.listen()
        notify("READY=1")
        # Whatever lives now lives for ever: the collector need not look at it again, and its pages stay clean.
        gc.collect()
        gc.freeze()
        await house.warm()
        await stop.wait()
    finally:
        notify("STOPPING=1")
        await house.close(hurry)
        if stop.is_set():  # else it never began, and the sentence on stderr says why
            log.info("Daemon shutdown complete")


def _asked_to_end(number: int, stop: asyncio.Event, hurry: asyncio.Event) -> None:
    log.info("Processing signal '%s'", signal.strsignal(number))
    if stop.is_set():
        hurry.set()
    stop.set()


def _reload(settings: Settings) -> None:
    """SIGHUP: `debug` and `log-level` of the file, as long as the command line does not give them."""
    try:
        values = config.read_file(settings.config_file, required=False)
        fresh = Settings(
            debug=values.get("debug", settings.debug), log_level=values.get("log-level", settings.log_level)
        )
        config.check(fresh)
    except EngineError as error:
        log.error("reload: %s", error)
        return
    logline.set_level(fresh.level)
    log.info("reloaded the configuration, log level %s", fresh.level)


class House:
    """All objects of one daemon, in the order of their making. `open`, `listen`, `close` once each."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._database: Database | None = None
        self._shims: Shims | None = None
        self._containers: Containers | None = None
        self._server: Server | None = None
        self._trash: Trash | None = None
        self._hierarchy: Hierarchy | None = None
        self._cleaning: asyncio.Task[int] | None = None

    async def open(self) -> None:
        """Builds everything and brings rows and facts together. EngineError or OSError with one sentence."""
        from tare.api import errors, routes
        from tare.db import Database
        from tare.engine.containers import Containers
        from tare.engine.engine import Engine
        from tare.engine.events import Events
        from tare.engine.execs import Execs
        from tare.engine.shims import Shims
        from tare.http.server import Server
        from tare.store import gc as garbage
        from tare.store.content import Content
        from tare.store.images import Images
        from tare.store.paths import Layout
        from tare.store.snapshots import Snapshots

        hierarchy, host = _host()
        self._hierarchy = hierarchy
        raise_nofile()
        layout = Layout(self.settings.data_root)
        layout.create()
        try:
            database = self._database = Database(str(layout.database))
        except (sqlite3.Error, RuntimeError) as error:
            raise Unavailable(f"open {layout.database}: {error}") from None
        content = Content(layout)
        snapshots = Snapshots(database, layout)
        self._trash = snapshots.trash
        images = Images(database, content, snapshots, layout)
        events = Events()
        shims = self._shims = Shims()
        settings = _engine_config(self.settings)
        containers = self._containers = Containers(
            database, images, snapshots, shims, events, layout, settings, host=host
        )
        await containers.adopt()
        garbage.sweep(database, content, snapshots, layout, starting=True)
        self._cleaning = asyncio.create_task(snapshots.trash.drain())
        engine = Engine(
            containers=containers,
            execs=Execs(containers, shims, events, str(layout.seccomp)),
            images=images,
            events=events,
            host=host,
            hierarchy=hierarchy,
            config=settings,
            version=VERSION,
            id=_installation(database),
        )
        self._server = Server(routes.build(engine), error=errors.response)
        log.info("Daemon has completed initialization: version %s, data root %s", VERSION, layout.root)

    async def listen(self) -> None:
        """Serves every address. Conflict, Denied, Invalid, Unavailable or OSError with one sentence."""
        assert self._server is not None
        context = _tls(self.settings) if self.settings.tlsverify else None
        for host in self.settings.hosts:
            for address in await self._listen_on(self._server, host, context):
                log.info("API listen on %s", address)

    async def _listen_on(self, server: Server, host: Host, context: ssl.SSLContext | None) -> list[str]:
        if host.scheme == "unix":
            private = os.path.dirname(host.path)
            if not os.path.exists(private):
                private_directory(private, 0o755)
            await server.start_unix(host.path, 0o660, group_id(self.settings.group))
            return [host.path]
        if host.scheme == "tcp":
            assert context is not None, "config.check() lets no TCP pass without --tlsverify"
            return [f"{name}:{port}" for name, port in await server.start_tcp(host.path, host.port, context)]
        fds = activated(os.environ, os.getpid(), host.path)
        for fd in fds:
            await server.from_fd(fd, context)
        return [f"fd {fd}" for fd in fds]

    async def warm(self) -> None:
        """Starts the zygote, so that the first container does not wait for it. Without one, each start tries again."""
        assert self._shims is not None
        try:
            await self._shims.zygote.start()
        except (EngineError, OSError) as error:
            log.error("start the zygote: %s", _sentence(error))

    async def close(self, hurry: asyncio.Event) -> None:
        """Ends requests, lets go of the containers, closes the ledger; what is missing was never made."""
        if self._server is not None:
            closing = asyncio.create_task(self._server.close(grace=self.settings.shutdown_timeout))
            hurried = asyncio.create_task(hurry.wait())
            await asyncio.wait({closing, hurried}, return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
            if not closing.done():
                await self._server.close(grace=0)
        if self._cleaning is not None:
            self._cleaning.cancel()
            await asyncio.gather(self._cleaning, return_exceptions=True)
        if self._containers is not None:
            await self._containers.close()
        if self._shims is not None:
            self._shims.close()
        if self._database is not None:
            self._database.close()
        if self._hierarchy is not None:
            self._hierarchy.tidy(self.settings.cgroup_parent)


def _host() -> tuple[Hierarchy, HostFacts]:
    """The cgroups and bounds of this host; a kernel or library without which no container starts is refused here."""
    from tare.cgroups.api import detect
    from tare.engine import limits
    from tare.linux import libc, seccomp

    hierarchy = detect()
    seccomp.version()
    try:
        os.close(libc.fsopen("overlay"))
    except OSError as error:
        if error.errno == errno.EPERM:
            raise Unavailable("the daemon lacks the capability CAP_SYS_ADMIN: start it as root of the host") from None
        raise OSError(error.errno or 0, "this kernel offers no overlay file system, which images need") from None
    return hierarchy, limits.facts(hierarchy)


def _engine_config(settings: Settings) -> Config:
    """The engine's share of the settings. Unsupported for an option that nothing reads yet: it must not be ignored."""
    from tare.engine.engine import Config
    from tare.engine.model import Ulimit

    if settings.bip or settings.bridge not in ("", "none"):
        raise Unsupported("--bip and --bridge need bridge networks, which this version lacks; --bridge none works")
    options = {"max-size": "10m", "max-file": "3"} if not settings.log_opt else settings.log_opt
    return Config(
        data_root=Path(settings.data_root),
        exec_root=Path(settings.exec_root),
        init_path=settings.init_path,
        cgroup_parent=settings.cgroup_parent,
        ulimits=tuple(Ulimit(name=n, soft=s, hard=h) for n, (s, h) in settings.default_ulimit.items()),
        log_driver=settings.log_driver,
        log_options=options,
        labels=tuple(settings.label),
        debug=settings.debug,
    )


def _installation(database: Database) -> str:
    """This installation's id, made at the first start."""
    with database.transaction():
        database.execute(
            "INSERT INTO meta (key, value) VALUES ('id', ?) ON CONFLICT (key) DO NOTHING", (str(uuid.uuid4()),)
        )
    return str(database.execute("SELECT value FROM meta WHERE key = 'id'")[0][0])


def _tls(settings: Settings) -> ssl.SSLContext:
    """TLS 1.2 or later with client certificates signed by --tlscacert. OSError naming the file that is wrong."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(settings.tlscert, settings.tlskey)
        context.load_verify_locations(settings.tlscacert)
    except ssl.SSLError as error:
        raise Unavailable(f"load the TLS certificates: {error.reason or error}") from None
    return context


def _sentence(error: Exception) -> str:
    """OSError(errno, "act", path) -> "act path: cause"; every other error says its own text."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    cause = os.strerror(error.errno).lower()
    words = " ".join(str(w) for w in (error.strerror, error.filename) if w and str(w).lower() != cause)
    # asyncio's words for a port in use already end in the cause.
    return words if words.endswith(cause) else f"{words}: {cause}" if words else cause


if __name__ == "__main__":
    sys.exit(main())
