"""Snapshots of all pools' counters, per database: the averages of SHOW STATS and the log line of each stats_period; and of each
client's, for SHOW TOP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import monotonic

from pgpool_proxy.pool import stats
from pgpool_proxy.pool.pool import Pool
from pgpool_proxy.pool.registry import Registry
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.usage import end_period


class Statistics:
    """Totals now, and at the ends of the last two periods."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._former: dict[str, tuple[int, ...]] = {}  # of pools that were dropped, and of the process that we have followed
        self.previous: dict[str, tuple[int, ...]] = {}
        self.current: dict[str, tuple[int, ...]] = {}
        self.seconds: float = 0.0
        self._taken_at = self._previous_at = monotonic()

    def totals(self) -> dict[str, tuple[int, ...]]:
        """Totals per database."""
        found: dict[str, list[tuple[int, ...]]] = {name: [former] for name, former in self._former.items()}
        for pool in self._registry.pools.values():
            if pool.main is not None:
                continue  # counts in that
            found.setdefault(pool.database.name, []).append(pool.stats.totals())
        return {name: stats.merge(several) for name, several in found.items()}

    def keep(self, pool: Pool) -> None:
        """The pool is dropped: what it has counted stays with its database."""
        self.add({pool.database.name: pool.stats.totals()})

    def add(self, totals: Mapping[str, tuple[int, ...]]) -> None:
        """Counted elsewhere, to go on from here."""
        for name, values in totals.items():
            self._former[name] = stats.merge([self._former.get(name, stats.ZERO), values])

    def go_on_from(self, totals: Mapping[str, tuple[int, ...]]) -> None:
        """The same of a process whose place this one takes: what it has counted is in no period of ours."""
        self.add(totals)
        for ended in (self.previous, self.current):
            for name, values in totals.items():
                ended[name] = stats.merge([ended.get(name, stats.ZERO), values])

    def forget(self, database: str) -> None:
        """The database is no more."""
        self._former.pop(database, None)

    def snapshot(self, now: float) -> None:
        self.previous = self.current
        self.current = self.totals()
        self.seconds = now - self._taken_at
        self._previous_at = self._taken_at
        self._taken_at = now
        for pool in self._registry.pools.values():
            for clients in pool.clients:
                for client in clients.members():
                    if isinstance(client, ClientSession):
                        end_period(client, now)

    def base(self, database: str, now: float) -> tuple[tuple[int, ...], float]:
        """What the averages of SHOW STATS count from, and how long ago that was: the beginning of the last whole period, as in
        PgBouncer, so they span one to two periods and are never older than that."""
        return self.previous.get(database, stats.ZERO), now - self._previous_at

    def line(self) -> str:
        """PgBouncer's log line."""
        return line([self.whole_period()])

    def whole_period(self) -> stats.Period:
        """The last period, all databases added up."""
        return stats.merge(self.previous.values()), stats.merge(self.current.values()), self.seconds


def line(periods: Iterable[stats.Period]) -> str:
    """The log line of one process or of several, each with its last whole period."""
    values = dict(zip(stats.FIELDS, stats.averages(periods), strict=True))
    return (
        f"stats: {values['xact_count']} xacts/s, {values['query_count']} queries/s, "
        f"{values['client_parse_count']} client parses/s, {values['server_parse_count']} server parses/s, "
        f"{values['bind_count']} binds/s, {values['client_login_count']} client logins/s, "
        f"in {values['bytes_received']} B/s, out {values['bytes_sent']} B/s, xact {values['xact_time']} us, "
        f"query {values['query_time']} us, wait {values['wait_time']} us"
    )
