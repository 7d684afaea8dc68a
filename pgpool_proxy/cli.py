"""The command line: PgBouncer's, and the subcommands `demo`, `check`, `passwd` and `ping`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NoReturn

import uvloop

from pgpool_proxy import log
from pgpool_proxy.errors import ConfigError
from pgpool_proxy.process import daemon, outside, signals
from pgpool_proxy.process.about import UVLOOP, build, package_version
from pgpool_proxy.process.cores import usable_cores
from pgpool_proxy.process.worker import Worker
from pgpool_proxy.settings.config import Config, load

if TYPE_CHECKING:
    from pgpool_proxy.process.spawner import Spawner
    from pgpool_proxy.process.supervisor import Supervisor

END_OF_THE_OLD_S: Final = 10.0  # how long its pidfile may outlive a process that was told to end
SWITCH_S: Final = 0.0005  # what a thread that renders metrics may keep the loop waiting (Python's default: 5 ms)
SUBCOMMANDS: Final = ("demo", "check", "passwd", "ping", "top")
EPILOG: Final = """\
subcommands:
  pgpool-proxy demo              an embedded PostgreSQL and the proxy in front of it, to try
  pgpool-proxy check FILE.ini    read a configuration and try every database in it
  pgpool-proxy passwd USER       write, check or import the secrets of an auth_file
  pgpool-proxy ping              does the proxy serve? for health checks
  pgpool-proxy top [FILE.ini]    pools, waits and the busiest clients, in a terminal

Without FILE.ini, DATABASE_URL=postgresql://user:password@host:5432/db is enough; every setting can be given in the
environment as PGPOOL_PROXY_<KEY>. Precedence: command line, environment, file, default.
"""


def version_text() -> str:
    return (
        f"pgpool_proxy {package_version()}\n"
        f"build: {build()}\nPython {platform.python_version()}\nuvloop {UVLOOP}"
    )


class Parser(argparse.ArgumentParser):
    """As argparse's, with PgBouncer's exit code for a command line that is wrong."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    found = Parser(
        prog="pgpool-proxy",
        description="A PostgreSQL pooling proxy.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("-d", "--daemon", action="store_true", help="run in background (as a daemon)")
    found.add_argument("-R", "--reboot", action="store_true", help="do an online restart: take over from the running process")
    found.add_argument("-q", "--quiet", action="store_true", help="run quietly: nothing to stderr")
    found.add_argument("-v", "--verbose", action="count", default=0, help="increase verbosity")
    found.add_argument("-u", "--user", help="assume identity of USER")
    found.add_argument("-V", "--version", action="version", version=version_text())
    found.add_argument("file", nargs="?", metavar="FILE.ini", help="configuration file")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 after an orderly end, 1 when it could not begin."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in SUBCOMMANDS:
        return _subcommand(given[0], given[1:])
    options = parser().parse_args(given)
    overrides: dict[str, str] = {}
    if options.verbose:
        overrides["verbose"] = str(options.verbose)
    if options.user:
        overrides["user"] = options.user
    try:
        config = load(options.file, overrides, os.environ)
        if options.file is None and not config.databases and config.autodb is None:
            raise ConfigError("no configuration file specified, and DATABASE_URL is not set")
        return serve(config, overrides, quiet=options.quiet, background=options.daemon, reboot=options.reboot)
    except ConfigError as error:
        print(f"pgpool-proxy: {error}", file=sys.stderr)
        return 1


def _subcommand(name: str, rest: list[str]) -> int:
    if name == "demo":
        from pgpool_proxy.process import demo

        return demo.main(rest)
    if name == "passwd":
        from pgpool_proxy.process import passwd

        return passwd.main(rest)
    if name == "ping":
        from pgpool_proxy.process import ping

        return ping.main(rest)
    if name == "top":
        from pgpool_proxy.process import top

        return top.main(rest)
    from pgpool_proxy.process import check

    return check.main(rest)


def serve(
    config: Config, overrides: dict[str, str], *, quiet: bool, background: bool, reboot: bool = False
) -> int:
    """Run the daemon until it is told to stop. `reboot`: take the place of the one that runs."""
    settings = config.settings
    if background and not settings.pidfile:
        raise ConfigError("daemon needs pidfile configured", key="pidfile")
    outside.load_libraries(config)
    workers = settings.workers or usable_cores()
    spawner = _fork_spawner(settings.user, silent=background) if workers > 1 else None
    daemon.switch_user(settings.user)
    pidfile = daemon.PidFile(settings.pidfile)
    quiet = quiet or background
    log.configure(settings, quiet=quiet)
    if not reboot:
        pidfile.check()
    if background:
        daemon.detach()
    daemon.raise_file_limit(daemon.files_needed(config))
    sys.setswitchinterval(SWITCH_S)
    try:
        if not reboot:
            pidfile.write()
        if spawner is not None:
            return uvloop.run(_supervise(config, overrides, spawner, workers, pidfile if reboot else None))
        return uvloop.run(_serve(config, overrides, pidfile if reboot else None))
    except ConfigError as error:
        log.get_logger().fatal(str(error))
        if quiet:
            print(f"pgpool-proxy: {error}", file=sys.stderr)
        return 1
    finally:
        pidfile.remove()


async def _serve(config: Config, overrides: dict[str, str], pidfile: daemon.PidFile | None) -> int:
    """With a pidfile that is still to be written: take over from the process that has one."""
    worker = Worker(config, overrides, os.environ)
    signals.install(worker)
    if pidfile is not None:
        await _take_over(worker, pidfile)
    await worker.run(_is_up)
    await asyncio.sleep(0)
    return 0


async def _take_over(follower: Worker | Supervisor, pidfile: daemon.PidFile) -> None:
    """-R. Raises ConfigError."""

    def old_has_ended() -> None:
        follower.tasks.start(pidfile.follow(END_OF_THE_OLD_S), "pidfile")

    if not await follower.take_over(old_has_ended):
        pidfile.check()
        pidfile.write()


def _fork_spawner(user: str | None, *, silent: bool) -> Spawner:
    """Several workers: what they need beyond one process is imported here, as long as it can be read."""
    from pgpool_proxy.process import membership
    from pgpool_proxy.process.spawner import Spawner
    from pgpool_proxy.process.supervisor import Supervisor  # noqa: F401

    return Spawner.fork(membership.work, user, silent=silent)


async def _supervise(
    config: Config, overrides: dict[str, str], spawner: Spawner, workers: int, pidfile: daemon.PidFile | None
) -> int:
    """Several workers; `pidfile` as in `_serve`."""
    from pgpool_proxy.process.supervisor import Supervisor

    supervisor = Supervisor(config, overrides, os.environ, spawner, workers)
    signals.install_for_all(supervisor)
    if pidfile is not None:
        await _take_over(supervisor, pidfile)
    await supervisor.run(_is_up)
    return supervisor.exit_code


def _is_up() -> None:
    log.get_logger().info(
        f"process up: pgpool_proxy {package_version()} ({build()}), uvloop {UVLOOP}, "
        f"Python {platform.python_version()}"
    )
    gc.collect()
    gc.freeze()  # what lives for ever is not looked at again
