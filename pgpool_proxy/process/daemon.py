"""The process as an operating system sees it: user, pidfile, detaching, file descriptors."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import resource
import sys
from pathlib import Path
from time import monotonic

from pgpool_proxy import log
from pgpool_proxy.errors import ConfigError
from pgpool_proxy.settings.config import Config


def switch_user(name: str | None) -> None:
    """Become `name` when started as root. Raises ConfigError when root would stay root."""
    if os.geteuid() != 0:
        if name and pwd.getpwuid(os.geteuid()).pw_name != name:
            raise ConfigError("only root can switch to another user", key="user")
        return
    if not name:
        raise ConfigError("pgpool-proxy should not run as root: set user= or -u", key="user")
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f'there is no user "{name}"', key="user") from None
    if account.pw_uid == 0:
        raise ConfigError("the user to switch to is root, too", key="user")
    "localhost".encode("idna")  # loads the codec that look-ups of host names need: the account may not read our libraries
    os.setgroups([group.gr_gid for group in grp.getgrall() if name in group.gr_mem])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def detach() -> None:
    """Go into the background: two forks and a session of its own."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)


class PidFile:
    """The pidfile: refused while its process lives, replaced when it is stale, removed at the end."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._is_ours = False

    def check(self) -> None:
        """Raises ConfigError when another process of ours lives."""
        if self._path is None:
            return
        try:
            pid = int(self._path.read_text().strip() or "0")
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {self._path}: {error}", key="pidfile") from error
        if pid > 0 and _lives(pid):
            raise ConfigError(f"pidfile {self._path} exists, and process {pid} lives", key="pidfile")
        log.get_logger().info("stale pidfile, removing")
        self._path.unlink(missing_ok=True)

    def write(self) -> None:
        if self._path is None:
            return
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"cannot write {self._path}: {error.strerror}", key="pidfile") from error
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{os.getpid()}\n")
        self._is_ours = True

    async def follow(self, patience_s: float) -> None:
        """The process that we have taken over from ends, and takes its pidfile with it: write ours then."""
        path = self._path
        deadline = monotonic() + patience_s
        while path is not None and path.exists() and monotonic() < deadline:  # noqa: ASYNC110 - done elsewhere
            await asyncio.sleep(0.02)
        if path is not None:
            path.unlink(missing_ok=True)
        self.write()

    def remove(self) -> None:
        if self._path is not None and self._is_ours:
            self._path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def files_needed(config: Config) -> int:
    """File descriptors that the clients and servers of one process may need."""
    settings = config.settings
    servers = settings.default_pool_size * max(1, len(config.databases)) + settings.reserve_pool_size
    return settings.max_client_conn + servers + 64


def raise_file_limit(wanted: int, *, quiet: bool = False) -> None:
    """As many file descriptors as the clients and servers need, as far as the hard limit goes; says so when it does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted and (hard == resource.RLIM_INFINITY or soft < hard):
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if quiet:
        return
    log.get_logger().info(
        f"kernel file descriptor limit: {soft} (hard: {hard}); max_client_conn and pools need: {wanted}"
    )
    if soft < wanted:
        log.get_logger().warning(f"the limit of {soft} file descriptors is too low: {wanted} may be needed")


def close_stdin() -> None:
    if sys.stdin is not None:
        try:
            sys.stdin.close()
        except OSError:
            pass
