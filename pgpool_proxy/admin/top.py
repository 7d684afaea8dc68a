"""SHOW TOP: the clients that have used the servers most."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import nsmallest
from itertools import islice
from typing import Final

from pgpool_proxy.admin.connections import CLIENT_STATES, Place, name_of_application, peer
from pgpool_proxy.admin.control import Row, Source
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.usage import Used, used_lately

MAX_ROWS: Final = 100
COLUMNS: Final = """
    id database:text user:text addr:text port application_name:text state:text server_time:numeric query_count:numeric
    xact_count:numeric bytes_received:numeric bytes_sent:numeric worker
"""


def top(source: Source) -> Iterator[tuple[Place, Row]]:
    """Those with the most server time first; as many as one asks for, not all who came."""
    now = source.now()
    for place, used, client in nsmallest(MAX_ROWS, _used(source, now), key=lambda found: found[0]):
        yield place, _row(source, client, used)


def first_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """Of the rows of several workers, which are in order."""
    return islice(rows, MAX_ROWS)


def _used(source: Source, now: float) -> Iterator[tuple[tuple[int, int, int], Used, ClientSession]]:
    for pool in source.registry.pools.values():
        for state in CLIENT_STATES:
            for client in pool.clients[state].members():
                if isinstance(client, ClientSession) and client.console is None:
                    used = used_lately(client, now)
                    if any(used):
                        yield (-used[0], -used[1], int(client.number)), used, client


def _row(source: Source, client: ClientSession, used: Used) -> Row:
    pool = client.pool
    state = CLIENT_STATES.get(int(client.state), "closed")
    address, port, _ = peer(client.address, client.port)
    return (
        int(client.number),
        pool.database.name if pool is not None else "(nodb)",
        client.user_name,
        address,
        port,
        name_of_application(source, client),
        "idle" if state == "active" and client.server is None else state,
        *used,
        source.worker,
    )
