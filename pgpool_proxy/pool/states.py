"""The states of clients and servers and the moves between them, as data. docs/states.md is drawn from these tables.

The names are those of PgBouncer's SHOW POOLS (cl_*, sv_*). HOT code uses the `Final` ints; the enums are for the edges (SHOW,
logs, tests).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from mypy_extensions import i64

from pgpool_proxy.errors import IllegalTransition


class ClientState(IntEnum):
    LOGIN = 0  # startup and authentication; not in a pool yet
    WAITING_LOGIN = 1  # authenticated; waits for the pool's first server to learn its parameters
    ACTIVE = 2  # logged in: idle, or linked to a server
    WAITING = 3  # has sent something and waits for a server
    WAITING_CANCEL = 4  # a CancelRequest whose connection to the server is not made yet
    ACTIVE_CANCEL = 5  # a CancelRequest that was passed on; waits for the server to close
    CLOSED = 6


class ServerState(IntEnum):
    LOGIN = 0  # connecting, authenticating
    IDLE = 1  # may be given to a client at once
    ACTIVE = 2  # linked to a client
    USED = 3  # idle for longer than server_check_delay: to be checked before the next use
    TESTED = 4  # runs server_reset_query or server_check_query
    ACTIVE_CANCEL = 5  # a connection that carries a CancelRequest
    BEING_CANCELED = 6  # released, but a CancelRequest for it is still under way
    CLOSED = 7


CL_LOGIN: Final = 0
CL_WAITING_LOGIN: Final = 1
CL_ACTIVE: Final = 2
CL_WAITING: Final = 3
CL_WAITING_CANCEL: Final = 4
CL_ACTIVE_CANCEL: Final = 5
CL_CLOSED: Final = 6

SV_LOGIN: Final = 0
SV_IDLE: Final = 1
SV_ACTIVE: Final = 2
SV_USED: Final = 3
SV_TESTED: Final = 4
SV_ACTIVE_CANCEL: Final = 5
SV_BEING_CANCELED: Final = 6
SV_CLOSED: Final = 7

CLIENT_STATES: Final = len(ClientState)
SERVER_STATES: Final = len(ServerState)

CLIENT_MOVES: Final[dict[ClientState, frozenset[ClientState]]] = {
    ClientState.LOGIN: frozenset(
        {ClientState.WAITING_LOGIN, ClientState.ACTIVE, ClientState.WAITING_CANCEL, ClientState.CLOSED}
    ),
    ClientState.WAITING_LOGIN: frozenset({ClientState.ACTIVE, ClientState.CLOSED}),
    ClientState.ACTIVE: frozenset({ClientState.WAITING, ClientState.CLOSED}),
    ClientState.WAITING: frozenset({ClientState.ACTIVE, ClientState.CLOSED}),
    ClientState.WAITING_CANCEL: frozenset({ClientState.ACTIVE_CANCEL, ClientState.CLOSED}),
    ClientState.ACTIVE_CANCEL: frozenset({ClientState.CLOSED}),
    ClientState.CLOSED: frozenset(),
}

SERVER_MOVES: Final[dict[ServerState, frozenset[ServerState]]] = {
    ServerState.LOGIN: frozenset({ServerState.IDLE, ServerState.ACTIVE, ServerState.ACTIVE_CANCEL, ServerState.CLOSED}),
    ServerState.IDLE: frozenset({ServerState.ACTIVE, ServerState.USED, ServerState.CLOSED}),
    ServerState.ACTIVE: frozenset({ServerState.IDLE, ServerState.TESTED, ServerState.BEING_CANCELED, ServerState.CLOSED}),
    ServerState.USED: frozenset({ServerState.TESTED, ServerState.CLOSED}),
    ServerState.TESTED: frozenset({ServerState.IDLE, ServerState.ACTIVE, ServerState.BEING_CANCELED, ServerState.CLOSED}),
    ServerState.ACTIVE_CANCEL: frozenset({ServerState.CLOSED}),
    ServerState.BEING_CANCELED: frozenset({ServerState.IDLE, ServerState.ACTIVE, ServerState.TESTED, ServerState.CLOSED}),
    ServerState.CLOSED: frozenset(),
}


def _as_bytes(moves: dict[int, list[int]], states: int) -> bytes:
    """A table of moves as bytes: entry `old * states + new` is 1 where the move is legal."""
    table = bytearray(states * states)
    for old, news in moves.items():
        for new in news:
            table[old * states + new] = 1
    return bytes(table)


_LEGAL_FOR_CLIENTS: Final[bytes] = _as_bytes(
    {int(old): [int(new) for new in news] for old, news in CLIENT_MOVES.items()}, CLIENT_STATES
)
_LEGAL_FOR_SERVERS: Final[bytes] = _as_bytes(
    {int(old): [int(new) for new in news] for old, news in SERVER_MOVES.items()}, SERVER_STATES
)


def check_client_move(old: i64, new: i64) -> None:
    """Raise `IllegalTransition` when a client may not go from `old` to `new`."""
    if not _LEGAL_FOR_CLIENTS[old * CLIENT_STATES + new]:
        raise IllegalTransition(f"client: {ClientState(int(old)).name} -> {ClientState(int(new)).name}")


def check_server_move(old: i64, new: i64) -> None:
    """Raise `IllegalTransition` when a server may not go from `old` to `new`."""
    if not _LEGAL_FOR_SERVERS[old * SERVER_STATES + new]:
        raise IllegalTransition(f"server: {ServerState(int(old)).name} -> {ServerState(int(new)).name}")
