"""What the console's tables are made from in this process: the `Source` of admin/control.py."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pgpool_proxy.admin.control import ACTIVE, PAUSED, SUSPENDED, Done, WorkerFigures
from pgpool_proxy.errors import Report
from pgpool_proxy.pool.handles import PoolClient, PoolServer
from pgpool_proxy.pool.pool import Pool
from pgpool_proxy.pool.registry import Registry
from pgpool_proxy.process.about import package_version
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.context import Context
from pgpool_proxy.session.server_session import ServerSession
from pgpool_proxy.settings.config import Config

if TYPE_CHECKING:
    from pgpool_proxy.net.listener import Listener
    from pgpool_proxy.process.handover import HandOver
    from pgpool_proxy.process.host import WorkerHost


class WorkerLike(Protocol):
    """What is needed of process/worker.py."""

    @property
    def registry(self) -> Registry: ...

    @property
    def context(self) -> Context: ...

    @property
    def config(self) -> Config: ...

    @property
    def closing(self) -> Report | None: ...

    @property
    def users(self) -> Iterable[str]: ...

    @property
    def stats(self) -> Statistics: ...

    @property
    def host(self) -> WorkerHost: ...

    @property
    def listener(self) -> Listener: ...

    @property
    def dns(self) -> Names: ...

    def clock(self) -> float: ...

    def wall(self, at: float) -> datetime: ...

    def call_later(self, seconds: float, call: Callable[[], None]) -> object: ...

    def reload(self) -> None: ...

    def shutdown(self, mode: str) -> None: ...

    @property
    def is_shutting_down(self) -> bool: ...

    def may_go_over_to(self, mode: str) -> bool: ...

    def begin_shutdown(self, mode: str) -> None: ...

    def stop_accepting(self) -> None: ...

    def go_on_accepting(self) -> None: ...

    def hand_over(self, session: ClientSession, done: Done) -> HandOver: ...

    def apply(self, config: Config) -> None: ...


class Names(Protocol):
    """What is needed of net/dns.py."""

    @property
    def queries(self) -> int: ...

    def hosts(self) -> Iterable[tuple[str, int, str]]: ...

    def zones(self) -> Iterable[tuple[str, int, int]]: ...


class Statistics(Protocol):
    def keep(self, pool: Pool) -> None: ...

    def forget(self, database: str) -> None: ...

    def totals(self) -> dict[str, tuple[int, ...]]: ...

    def base(self, database: str, now: float) -> tuple[tuple[int, ...], float]: ...


class WorkerSource:
    """See the module's docstring."""

    def __init__(self, worker: WorkerLike) -> None:
        self._worker = worker
        self.worker = 1  # our number among the workers
        self.is_suspended = False

    @property
    def mode(self) -> str:
        if self.is_suspended:
            return SUSPENDED
        return PAUSED if self.registry.paused else ACTIVE

    @property
    def registry(self) -> Registry:
        return self._worker.registry

    @property
    def context(self) -> Context:
        return self._worker.context

    @property
    def config(self) -> Config:
        return self._worker.config

    @property
    def version(self) -> str:
        return f"pgpool_proxy {package_version()}"

    def now(self) -> float:
        return self._worker.clock()

    def wall(self, at: float) -> datetime:
        return self._worker.wall(at)

    def call_later(self, seconds: float, call: Callable[[], None]) -> object:
        return self._worker.call_later(seconds, call)

    def known_users(self) -> Iterable[str]:
        return self._worker.users

    def totals(self) -> dict[str, tuple[int, ...]]:
        return self._worker.stats.totals()

    def base(self, database: str) -> tuple[tuple[int, ...], float]:
        return self._worker.stats.base(database, self.now())

    def local_name(self, member: PoolClient | PoolServer) -> tuple[str, int]:
        if isinstance(member, ServerSession):
            return member.local_address, member.local_port
        name = _extra(member, "sockname")
        if isinstance(name, tuple) and len(name) >= 2:
            return str(name[0]), int(name[1])
        return ("unix", member.port) if isinstance(member, ClientSession) and member.is_unix else ("", 0)

    def unsent(self, member: PoolClient | PoolServer) -> int:
        return unsent(member)

    def listening(self) -> Iterable[tuple[int, str, int]]:
        for one in self._worker.listener.sockets:
            address, port = one.address
            yield one.sock.fileno(), address, port

    def descriptor(self, member: PoolClient | PoolServer) -> int:
        return descriptor(member)

    def dns_hosts(self) -> Iterable[tuple[str, int, str]]:
        return self._worker.dns.hosts()

    def dns_zones(self) -> Iterable[tuple[str, int, int]]:
        return self._worker.dns.zones()

    def dns_queries(self) -> int:
        return self._worker.dns.queries

    def workers(self) -> Iterable[WorkerFigures]:
        servers = sum(int(members.count) for pool in self.registry.pools.values() for members in pool.servers)
        return [
            WorkerFigures(
                self.worker,
                pid=os.getpid(),
                state="active",
                clients=int(self.registry.client_count),
                servers=servers,
                leases=servers,
                cpu_seconds=self.cpu_seconds(),
                memory=self.resident_bytes(),
                restarts=0,
            )
        ]

    def cpu_seconds(self) -> float:
        """What the process has used, in all of its threads."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    def resident_bytes(self) -> int:
        try:
            return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError, ValueError):
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _extra(member: PoolClient | PoolServer, name: str) -> object:
    """What asyncio's transport of a connection knows; None where there is none."""
    transport: Any = getattr(member, "transport", None)
    ask = getattr(transport, "get_extra_info", None)
    return ask(name) if ask is not None else None


def descriptor(member: PoolClient | PoolServer) -> int:
    """The file descriptor of a connection; -1 when there is none (yet)."""
    sock: Any = _extra(member, "socket")
    return int(sock.fileno()) if sock is not None else -1


def unsent(member: PoolClient | PoolServer) -> int:
    """Bytes that were written to a connection and that the kernel has not taken yet."""
    transport: Any = getattr(member, "transport", None)
    size = getattr(transport, "get_write_buffer_size", None)
    return int(size()) if size is not None and not member.is_closed else 0
