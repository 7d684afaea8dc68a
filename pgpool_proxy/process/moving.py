"""What a client and a server are, as text: how they move from one process to the next (see handover.py and takeover.py).

A client can move when nothing that it asked for is under way: it has no server, or the server that it holds (by a transaction,
or in session mode) stands between two messages and owes no answer. All times are of the monotonic clock, which is one for all
processes of a machine. Connections with TLS cannot move: their keys are OpenSSL's.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from pgpool_proxy.pool.pool import Pool
from pgpool_proxy.pool.states import CL_ACTIVE, CL_WAITING, SV_ACTIVE
from pgpool_proxy.process.source import unsent
from pgpool_proxy.session.auth_query import AuthQuery
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.context import Context
from pgpool_proxy.session.link import LINKED
from pgpool_proxy.session.parameters import Parameters, TrackedParameters
from pgpool_proxy.session.prepared_statements import ClientStatements
from pgpool_proxy.session.server_session import ServerSession
from pgpool_proxy.settings import resolve
from pgpool_proxy.settings.config import Config
from pgpool_proxy.settings.entries import DatabaseEntry
from pgpool_proxy.wire.codes import FUNCTION_CALL, QUERY, SYNC

State: TypeAlias = dict[str, Any]  # of JSON: bytes are strings of latin-1
ENDING: Final = (QUERY, SYNC, FUNCTION_CALL)  # requests that are answered without anything that follows
LINK_STATE: Final = (
    "status", "xact_start", "status_time", "saw_ddl", "saw_reset", "copy_in", "rewrites", "is_session", "keeps", "watch",
    "ready",
)  # fmt: skip
SEEN_STATE: Final = (
    "mode", "held", "doubt", "before", "ever", "remained", "gained", "counted", "failed", "custom",
)  # fmt: skip
"""What session_state has seen: of `Link.session_state`."""


# --- who can move -----------------------------------------------------------------------------------------------------
def may_move(client: ClientSession) -> bool:
    """False: it can never be taken over by another process."""
    if client.pool is not None and client.pool.main is not None:
        return False  # a replication client
    return not client.tls and not isinstance(client.transport, AuthQuery) and client.console is None


def is_quiet(client: ClientSession) -> bool:
    """True when the client can move now, together with the server that it holds."""
    if unsent(client) or client.write_full or client.login is not None:
        return False
    link = client.link
    if link is None:
        return client.state in (CL_ACTIVE, CL_WAITING)
    server = link.server
    return (
        link.phase == LINKED
        and server.state == SV_ACTIVE
        and not server.tls
        and link.outstanding.is_empty
        and not link.outstanding.skipping
        and link.from_client_framer.at_boundary
        and link.from_server_framer.at_boundary
        and not link.copy_in
        and not link.parts
        and not client.pending
        and link.cancel_time == 0.0
        and server.cancels == 0
        and server.cancel is None
        and not unsent(server)
    )


def will_be_quiet(client: ClientSession) -> bool:
    """True when it is enough to stop reading from the client: what it has asked for comes to an end by itself."""
    link = client.link
    if link is None:
        return True
    if link.phase != LINKED or link.copy_in or not link.from_client_framer.at_boundary:
        return False
    if link.outstanding.is_empty:
        return not link.server.tls
    return link.outstanding.last_kind() in ENDING


# --- clients ----------------------------------------------------------------------------------------------------------
def client_state(client: ClientSession) -> State:
    """Everything that the next process has to know about a quiet client."""
    pool = client.pool
    statements = client.statements
    return {
        "pool_user": pool.user.name if pool is not None else "",
        "login_user": client.login_user.name if client.login_user is not None else client.user_name,
        "user": client.user_name,
        "database": client.database_name,
        "address": client.address,
        "port": client.port,
        "is_unix": client.is_unix,
        "uid": int(client.peer_uid),
        "number": int(client.number),
        "connect_time": client.connect_time,
        "request_time": client.request_time,
        "key": client.cancel_key.hex(),
        "parameters": parameters_state(client.context.tracked, client.parameters),
        "at_connect": parameters_state(client.context.tracked, client.at_connect),
        "statements": [
            [_text(name), _text(one.rest), int(one.number)]
            for name, one in (statements.everything() if statements is not None else [])
        ],
        "unnamed": _text(client.unnamed),
        "pending": _text(client.pending),
        "unneeded": int(client.unneeded),
        "discarding": client.discarding,
        "states_seen": int(client.states_seen),
    }


def restore_client(client: ClientSession, state: State, pool: Pool, now: float) -> None:
    """`client`, whose connection was just taken over, becomes what it was; it is idle in `pool`."""
    context = client.context
    client.user_name = state["user"]
    client.database_name = state["database"]
    client.peer_uid = state["uid"]
    client.number = state["number"]
    client.connect_time = state["connect_time"]
    client.request_time = state["request_time"]
    client.login = None
    client.parameters = parameters_from(context.tracked, state["parameters"])
    client.at_connect = parameters_from(context.tracked, state["at_connect"])
    client.unnamed = _bytes_or_none(state["unnamed"])
    client.unneeded = state["unneeded"]
    client.discarding = state["discarding"]
    client.states_seen = state["states_seen"]
    context.cancel_keys.keep(client, bytes.fromhex(state["key"]))
    context.registry.adopt(client, pool, context.registry.user(state["login_user"]), now)
    if state["statements"]:
        statements = ClientStatements(context.statements)
        for name, rest, number in state["statements"]:
            statements.put(_bytes(name), context.statements.taken_over(_bytes(rest), number))
        client.statements = statements


# --- servers ----------------------------------------------------------------------------------------------------------
def server_state(server: ServerSession, dbname: str) -> State:
    """Everything that the next process has to know about a server that is idle, or whose client is quiet."""
    link = server.link
    return {
        "pool_user": server.pool.user.name,
        "dbname": dbname,
        "host": server.host,
        "port": server.port,
        "address": server.address,
        "local": [server.local_address, server.local_port],
        "number": int(server.number),
        "connect_time": server.connect_time,
        "request_time": server.request_time,
        "key": server.cancel_key.hex(),
        "close_needed": server.close_needed,
        "parameters": parameters_state(server.context.tracked, server.parameters),
        "at_login": parameters_state(server.context.tracked, server.at_login),
        "statements": [[_text(one.statement.rest), int(one.number)] for one in server.statements.everything()],
        "unnamed": _text(server.unnamed),
        "connect_query": _text(server.connect_query),
        "link": {name: _plain(getattr(link, name)) for name in LINK_STATE} if link.client is not None else None,
        "seen": {name: _plain(getattr(link.session_state, name)) for name in SEEN_STATE},
    }


def restore_server(context: Context, state: State, pool: Pool, now: float) -> ServerSession:
    """A server of `pool` (in state login still) whose connection is about to be taken over."""
    server = ServerSession(context, pool, state["host"], state["port"], now)
    server.login = None
    server.number = state["number"]
    server.address = state["address"]
    server.local_address, server.local_port = state["local"]
    server.connect_time = state["connect_time"]
    server.request_time = state["request_time"]
    server.cancel_key = bytes.fromhex(state["key"])
    server.close_needed = state["close_needed"]
    server.parameters = parameters_from(context.tracked, state["parameters"])
    server.at_login = parameters_from(context.tracked, state["at_login"])
    server.unnamed = _bytes_or_none(state["unnamed"])
    server.connect_query = _bytes(state["connect_query"])
    for name, value in state["seen"].items():
        setattr(server.link.session_state, name, value)
    for rest, number in state["statements"]:
        statement = context.statements.taken_over(_bytes(rest), number)
        server.statements.add(statement)
        context.statements.let_go(statement)  # the server holds it now
    pool.add_server(server)
    return server


def restore_link(server: ServerSession, client: ClientSession, state: State) -> None:
    """The two were linked, and are again."""
    pool = server.pool
    link = server.link
    pool.move_server(server, SV_ACTIVE)
    server.client = client
    client.server = server
    link.client = client
    client.link = link
    link.phase = LINKED
    link.lease += 1
    link.from_client_framer.max_length = client.context.max_packet_size
    for name, value in state.items():
        setattr(link, name, value)


def is_still_configured(state: State, entry: DatabaseEntry, config: Config) -> bool:
    """False: the entry leads elsewhere now."""
    return state["dbname"] == (entry.dbname or entry.name) and (
        state["host"] in resolve.hosts(config, entry) and state["port"] == entry.port
    )


# --- parts ------------------------------------------------------------------------------------------------------------
def parameters_state(tracked: TrackedParameters, parameters: Parameters) -> State:
    values = {_text(name): _text(value) for name, value in zip(tracked.names, parameters.values, strict=True)}
    return {"values": values, "extras": [[_text(name), _text(value)] for name, value in parameters.extras]}


def parameters_from(tracked: TrackedParameters, state: State) -> Parameters:
    values = {_bytes(name): _bytes(value) for name, value in state["values"].items() if value is not None}
    extras = tuple((_bytes(name), _bytes(value)) for name, value in state["extras"])
    return tracked.with_extras(tracked.overlaid(tracked.nothing, values), extras)


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode("latin-1")


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")


def _bytes_or_none(text: str | None) -> bytes | None:
    return None if text is None else text.encode("latin-1")


def _plain(value: Any) -> bool | int | float:
    """A native number as Python's own."""
    return value if isinstance(value, bool | float) else int(value)
