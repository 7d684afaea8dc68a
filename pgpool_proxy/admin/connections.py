"""The rows of SHOW CLIENTS, SERVERS, SOCKETS and ACTIVE_SOCKETS; see rows.py, which has the other tables.

They are generated while they are sent, so a client or server may have gone when its turn comes; it is printed as it was.
Each comes with its `Place`, by which rows of several workers are put in the order that one process would give them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias, TypeVar, cast

from pgpool_proxy.admin.control import Row, Source
from pgpool_proxy.pool.handles import PoolClient, PoolServer
from pgpool_proxy.pool.pool import REPLICATION_NAMES, Pool
from pgpool_proxy.pool.states import (
    CL_ACTIVE,
    CL_ACTIVE_CANCEL,
    CL_LOGIN,
    CL_WAITING,
    CL_WAITING_CANCEL,
    CL_WAITING_LOGIN,
    SV_ACTIVE,
    SV_ACTIVE_CANCEL,
    SV_BEING_CANCELED,
    SV_IDLE,
    SV_LOGIN,
    SV_TESTED,
    SV_USED,
)
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.server_session import ServerSession
from pgpool_proxy.session.session_state import pinned

Place: TypeAlias = tuple[Any, ...]
"""Where a row stands in its table: numbers and strings that compare with those of every other row of it."""
Member = TypeVar("Member", bound=PoolClient | PoolServer)

TIME_FORMAT: Final = "%Y-%m-%d %H:%M:%S %Z"
CLIENT_STATES: Final = {
    CL_ACTIVE: "active",
    CL_WAITING: "waiting",
    CL_WAITING_LOGIN: "waiting",
    CL_ACTIVE_CANCEL: "active_cancel_req",
    CL_WAITING_CANCEL: "waiting_cancel_req",
    CL_LOGIN: "login",
}
"""The names of SHOW CLIENTS, in the order in which it prints the clients of a pool."""
SERVER_STATES: Final = {
    SV_ACTIVE: "active",
    SV_IDLE: "idle",
    SV_USED: "used",
    SV_TESTED: "tested",
    SV_LOGIN: "new",
    SV_ACTIVE_CANCEL: "active_cancel",
    SV_BEING_CANCELED: "being_canceled",
}
CLIENT_SOCKET_STATES: Final = {
    CL_ACTIVE: "cl_active",
    CL_WAITING: "cl_waiting",
    CL_WAITING_LOGIN: "cl_waiting",
    CL_LOGIN: "cl_login",
}
SERVER_SOCKET_STATES: Final = {
    SV_ACTIVE: "sv_active",
    SV_IDLE: "sv_idle",
    SV_USED: "sv_used",
    SV_TESTED: "sv_tested",
    SV_LOGIN: "sv_login",
}


def pools_in_order(source: Source) -> list[Pool]:
    """All pools by database and user."""
    return [pool for _, pool in sorted(source.registry.pools.items())]


def _all_pools(source: Source) -> list[tuple[Place, Pool]]:
    """Those of databases, then those of peers, whose clients and servers only carry CancelRequests."""
    pools: list[tuple[Place, Pool]] = [((0, *key), pool) for key, pool in sorted(source.registry.pools.items())]
    return pools + [((1, number), pool) for number, pool in sorted(source.registry.peer_pools.items())]


def main_pools(source: Source) -> list[Pool]:
    """The same without those of replication clients, which stand in the figures of the pools that they count in."""
    return [pool for pool in pools_in_order(source) if pool.main is None]


def count_of(members: str, pool: Pool, state: int) -> int:
    """How many `clients` or `servers` of a pool are in a state, those of its replication clients among them."""
    return sum(int(getattr(each, members)[state].count) for each in (pool, *pool.dedicated))


def pinned_servers(pool: Pool) -> int:
    """How many servers of a pool are kept with their clients by what these have left behind."""
    links = [server.link for server in pool.active.members() if isinstance(server, ServerSession)]
    return sum(1 for link in links if link.client is not None and pinned(link))


def seconds_and_micros(seconds: float) -> tuple[int, int]:
    micros = int(seconds * 1_000_000)
    return micros // 1_000_000, micros % 1_000_000


# --- tables ---------------------------------------------------------------------------------------------------------------
def clients(source: Source) -> Iterator[tuple[Place, Row]]:
    """Those that are in a pool, so all whose login is done or waits for a server."""
    for place, client in clients_in_order(source, CLIENT_STATES):
        link = client.link if isinstance(client, ClientSession) else None
        yield place, (*_client_row(source, client, CLIENT_STATES), pinned(link) if link is not None else "", source.worker)


def servers(source: Source) -> Iterator[tuple[Place, Row]]:
    for place, server in servers_in_order(source, SERVER_STATES):
        link = server.link if isinstance(server, ServerSession) and server.link.client is not None else None
        yield place, (*_server_row(source, server, SERVER_STATES), pinned(link) if link is not None else "", source.worker)


def sockets(source: Source) -> Iterator[tuple[Place, Row]]:
    """Clients and servers, those that log in among them, with what lies in their buffers."""
    for place, client in clients_in_order(source, CLIENT_SOCKET_STATES):
        if client.state in CLIENT_SOCKET_STATES:
            yield (0, *place), _client_row(source, client, CLIENT_SOCKET_STATES) + _buffers(source, client)
    for place, server in servers_in_order(source, SERVER_SOCKET_STATES):
        if server.state in SERVER_SOCKET_STATES:
            yield (1, *place), _server_row(source, server, SERVER_SOCKET_STATES) + _buffers(source, server)
    for member in sorted(source.registry.login_clients.members(), key=_number):
        client = cast(PoolClient, member)
        if client.state == CL_LOGIN:
            row = _client_row(source, client, CLIENT_SOCKET_STATES) + _buffers(source, client)
            yield (2, int(client.number)), row


def active_sockets(source: Source) -> Iterator[tuple[Place, Row]]:
    """Those of SHOW SOCKETS with something in their buffers: `pkt_avail` or `send_avail` is not 0."""
    return ((place, row) for place, row in sockets(source) if row[-3] or row[-2])


def clients_in_order(source: Source, states: Mapping[int, str] = CLIENT_STATES) -> Iterator[tuple[Place, PoolClient]]:
    """The clients that are in a pool and in one of these states: by pool, state and number."""
    groups: list[tuple[Place, list[PoolClient]]] = []
    for place, pool in _all_pools(source):
        for rank, state in enumerate(states):
            members = [cast(PoolClient, member) for member in pool.clients[state].members()]
            groups.append(((*place, rank), sorted(members, key=_number)))
    return _each(groups)


def servers_in_order(source: Source, states: Mapping[int, str] = SERVER_STATES) -> Iterator[tuple[Place, PoolServer]]:
    """The same of servers."""
    groups: list[tuple[Place, list[PoolServer]]] = []
    for place, pool in _all_pools(source):
        for rank, state in enumerate(states):
            members = [cast(PoolServer, member) for member in pool.servers[state].members()]
            groups.append(((*place, rank), sorted(members, key=_number)))
    return _each(groups)


def _each(groups: list[tuple[Place, list[Member]]]) -> Iterator[tuple[Place, Member]]:
    for pool, members in groups:
        for member in members:
            yield (*pool, int(member.number)), member


def _number(member: object) -> int:
    return int(cast("PoolClient | PoolServer", member).number)


def _client_row(source: Source, client: PoolClient, states: dict[int, str]) -> Row:
    pool = client.pool
    server = client.server
    session = client if isinstance(client, ClientSession) else None
    state = states.get(int(client.state), "closed")
    if state == "active" and server is None:
        state = "idle"
    address, port, pid = "", 0, 0
    name, tls, application_name, prepared = "", "", "", 0
    if session is not None:
        name = session.user_name
        address, port, pid = peer(session.address, session.port)
        tls = session.tls
        application_name = name_of_application(source, session)
        statements = session.statements
        prepared = len(statements) if statements is not None else 0
    waited = max(source.now() - client.wait_start, 0.0) if client.wait_start > 0 else 0.0
    return (
        "C",
        name or "(nouser)",
        pool.database.name if pool is not None else "(nodb)",
        _replication(pool),
        state,
        address,
        port,
        *source.local_name(client),
        source.wall(client.connect_time).strftime(TIME_FORMAT),
        source.wall(client.request_time).strftime(TIME_FORMAT),
        *seconds_and_micros(waited),
        0,
        f"C-{client.number}",
        f"S-{server.number}" if server is not None else "",
        pid,
        tls,
        application_name,
        prepared,
        int(client.number),
    )


def _server_row(source: Source, server: PoolServer, states: dict[int, str]) -> Row:
    client = server.client
    session = server if isinstance(server, ServerSession) else None
    address, port, tls, application_name, prepared = "", 0, "", "", 0
    if session is not None:
        address, port = session.address or session.host, session.port
        tls = session.tls
        application_name = name_of_application(source, session)
        prepared = len(session.statements)
    return (
        "S",
        server.pool.user.name,
        server.pool.database.name,
        _replication(server.pool),
        states.get(int(server.state), "closed"),
        address,
        port,
        *source.local_name(server),
        source.wall(server.connect_time).strftime(TIME_FORMAT),
        source.wall(server.request_time).strftime(TIME_FORMAT),
        0,
        0,
        int(server.close_needed),
        f"S-{server.number}",
        f"C-{client.number}" if client is not None else "",
        int.from_bytes(server.cancel_key[:4], "big", signed=True),
        tls,
        application_name,
        prepared,
        int(server.number),
    )


def peer(address: str, port: int) -> tuple[str, int, int]:
    """Address, port and process id of a client; only those of unix sockets tell the last."""
    if address.startswith("unix(") and address.endswith(")") and address[5:-1].isdigit():
        return "unix", port, int(address[5:-1])
    return address, port, 0


def _replication(pool: Pool | None) -> str:
    return REPLICATION_NAMES[int(pool.replication)] if pool is not None else "none"


def name_of_application(source: Source, session: ClientSession | ServerSession) -> str:
    at = source.context.tracked.index(b"application_name")
    value = session.parameters.values[at] if at >= 0 else None
    return value.decode("utf-8", "replace") if value else ""


def _buffers(source: Source, member: PoolClient | PoolServer) -> tuple[int, ...]:
    """recv_pos, pkt_pos, pkt_remain, send_pos, send_remain, pkt_avail, send_avail, and the worker. There is no buffer with
    positions here: what was received and waits for a server is pkt_avail, what was sent and not yet taken is send_avail."""
    received = len(member.pending) if isinstance(member, ClientSession) else 0
    unsent = source.unsent(member)
    return 0, 0, 0, 0, unsent, received, unsent, source.worker
