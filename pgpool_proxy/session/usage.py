"""What each client has used of the servers, for SHOW TOP: counted at the end of each query, compared over whole periods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from mypy_extensions import i64

if TYPE_CHECKING:
    from pgpool_proxy.session.client_session import ClientSession
    from pgpool_proxy.session.link import Link

Used: TypeAlias = tuple[int, int, int, int, int]
"""Server time in µs, queries, transactions, bytes from the client, bytes to it."""
NOTHING: Final[Used] = (0, 0, 0, 0, 0)


class ClientUse:
    """The totals of one client; it has none before its first query has ended. Server time is the time of its transactions."""

    def __init__(self) -> None:
        self.server_time: i64 = 0
        self.query_count: i64 = 0
        self.xact_count: i64 = 0
        self.bytes_received: i64 = 0
        self.bytes_sent: i64 = 0
        self.previous: Used = NOTHING  # when the last whole stats_period began
        self.current: Used = NOTHING  # when it ended

    def totals(self) -> Used:
        return (
            int(self.server_time), int(self.query_count), int(self.xact_count), int(self.bytes_received), int(self.bytes_sent),
        )  # fmt: skip


def count_query(link: Link, client: ClientSession) -> None:
    """HOT: a query has ended."""
    use = use_of(client)
    use.query_count += 1
    use.bytes_received += link.received
    use.bytes_sent += link.sent
    link.received = 0
    link.sent = 0


def count_transaction(link: Link, client: ClientSession, now: float) -> None:
    """HOT: a transaction has ended."""
    use = use_of(client)
    use.xact_count += 1
    use.server_time += _running(link, now)


def use_of(client: ClientSession) -> ClientUse:
    use = client.use
    if use is None:
        use = client.use = ClientUse()
    return use


def _running(link: Link, now: float) -> i64:
    """How much of the transaction under way is not counted yet, µs."""
    since = max(link.xact_start, link.counted_at)
    return i64((now - since) * 1_000_000)


def used_lately(client: ClientSession, now: float) -> Used:
    """Since the beginning of the last whole stats_period: what averages are made from in SHOW STATS, too."""
    use, link = client.use, client.link
    server_time, queries, xacts, received, sent = use.totals() if use is not None else NOTHING
    if link is not None:
        received += int(link.received)
        sent += int(link.sent)
        if link.xact_start > 0.0:
            server_time += int(_running(link, now))
            xacts += 1
    if use is None:
        return server_time, queries, xacts, received, sent
    base = use.previous
    return server_time - base[0], queries - base[1], xacts - base[2], received - base[3], sent - base[4]


def end_period(client: ClientSession, now: float) -> None:
    """A stats_period is over. What a transaction under way has taken so far belongs to it."""
    use, link = client.use, client.link
    if link is not None and link.xact_start > 0.0:
        use = use_of(client)
        use.server_time += _running(link, now)
        link.counted_at = now
    if use is not None:
        use.previous = use.current
        use.current = use.totals()
