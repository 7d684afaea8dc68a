"""The rows of SHOW FDS: the sockets of this process. PgBouncer's columns, and `state` and `worker` behind them.

To a new process that takes over (-R) each row comes with its socket, and `state` has what that process must know, as JSON; to
everybody else the table shows which sockets there are, and nothing secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from pgpool_proxy.admin.connections import Place, clients_in_order, servers_in_order
from pgpool_proxy.admin.control import Cell, Row, Source
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.parameters import Parameters
from pgpool_proxy.session.server_session import ServerSession

COLUMNS: Final = """
    fd task:text user:text database:text addr:text port cancel:int8 link client_encoding:text std_strings:text datestyle:text
    timezone:text password:text scram_client_key:bytea scram_server_key:bytea state:text worker
"""
POOLER: Final = "pooler"
CLIENT: Final = "client"
SERVER: Final = "server"
SHARED: Final = "shared"  # our own task: no socket, but what is true of all of them
AT_FD, AT_TASK, AT_DATABASE, AT_LINK, AT_STATE, AT_WORKER = 0, 1, 3, 7, 15, 16
_SHOWN: Final = (b"client_encoding", b"standard_conforming_strings", b"DateStyle", b"TimeZone")


def fds(source: Source) -> Iterator[tuple[Place, Row]]:
    """Listening sockets, then clients and servers in the order of SHOW CLIENTS and SHOW SERVERS; not those with TLS."""
    worker = source.worker
    yield from listening_rows(source.listening(), worker)
    servers = servers_in_order(source)  # before the clients' rows, which take time
    for place, client in clients_in_order(source):
        if isinstance(client, ClientSession) and not client.tls and client.console is None:
            server = client.server
            row = client_row(client, source.descriptor(client), source.descriptor(server) if server is not None else 0)
            yield (1, *place), (*row[:AT_WORKER], worker)
    for place, server in servers:
        if isinstance(server, ServerSession) and not server.tls:
            linked = server.client
            row = server_row(server, source.descriptor(server), source.descriptor(linked) if linked is not None else 0)
            yield (2, *place), (*row[:AT_WORKER], worker)


def listening_rows(sockets: Iterable[tuple[int, str, int]], worker: int | None) -> Iterator[tuple[Place, Row]]:
    """Descriptor, address and port of each socket that this process listens on; `worker` None: it serves nobody itself."""
    for at, (descriptor, address, port) in enumerate(sockets):
        yield (0, at), (*socket_row(descriptor, address, port)[:AT_WORKER], worker)


# --- rows; those that go to a process that takes over name no worker ------------------------------------------------------
def socket_row(descriptor: int, address: str, port: int) -> Row:
    return (descriptor, POOLER, None, None, address, port, 0, 0, *(None,) * 9)


def state_row(state: str) -> Row:
    return (None, SHARED, *(None,) * 13, state, None)


def client_row(client: ClientSession, descriptor: int, link: int, state: str | None = None) -> Row:
    """With `state` it is for the process that takes over, and has the key of CancelRequests, too."""
    address = "unix" if client.is_unix else client.address
    pool = client.pool
    cancel = int.from_bytes(client.cancel_key[:8], "big") if state is not None else None
    database = pool.database.name if pool is not None else client.database_name
    return (
        descriptor, CLIENT, client.user_name, database, address, client.port, cancel, link,
        *_parameters(client), None, None, None, state, None,
    )  # fmt: skip


def server_row(server: ServerSession, descriptor: int, link: int, state: str | None = None) -> Row:
    address = "unix" if server.host.startswith(("/", "@")) else server.address or server.host
    cancel = int.from_bytes(server.cancel_key[:8], "big", signed=True) if state is not None else None
    return (
        descriptor, SERVER, server.pool.user.name, server.pool.database.name, address, server.port, cancel, link,
        *_parameters(server), None, None, None, state, None,
    )  # fmt: skip


def _parameters(member: ClientSession | ServerSession) -> list[Cell]:
    parameters: Parameters = member.parameters
    found: list[Cell] = []
    for name in _SHOWN:
        value = parameters.values[member.context.tracked.index(name)]
        found.append(value.decode("utf-8", "replace") if value is not None else None)
    return found


