"""How clients and servers move from one process to the next (process/moving.py): nothing that they are is left behind."""

from __future__ import annotations

import json

import pytest
from fix_sessions import Client, Server, World, bind, execute, kinds, parse

from pgpool_proxy.pool.states import CL_ACTIVE, SV_ACTIVE
from pgpool_proxy.process import moving
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.link import Link
from pgpool_proxy.session.session_state import SessionState
from pgpool_proxy.wire import frontend

BEGIN = frontend.query(b"begin")
SYNC = b"S\0\0\0\x04"

#: attributes that the next process makes itself, or that a quiet one has at their beginning. A new attribute of these classes
#: belongs here or into moving.py.
CLIENT_ANEW = {
    "after", "before", "home",  # places in containers
    "context", "transport", "link", "login", "login_user", "pool", "server", "state", "console", "tls",  # of the process itself
    "blocked", "write_full",  # nothing is on its way
    "wait_start", "wait_notified",  # it asks anew, with what is pending
    "voice",  # in the log
    "is_counted", "is_over",  # among all clients
    "use",  # of this process's servers
}  # fmt: skip
CLIENT_CARRIED = {
    "address", "port", "is_unix", "peer_uid", "number", "connect_time", "request_time", "cancel_key", "user_name",
    "database_name", "parameters", "at_connect", "statements", "unnamed", "pending", "unneeded", "discarding", "states_seen",
}  # fmt: skip
SERVER_ANEW = {
    "after", "before", "home", "context", "transport", "link", "login", "pool", "state", "tls", "client", "generation",
    "blocked", "write_full", "cancel", "cancels", "cancelled_at", "is_unclean",  # nothing is on its way
    "failed_login", "is_away", "last_words", "tested_since", "_failure", "_resets", "_connecting_again",  # of logins and tests
    "unheard",  # is told in the log again
}  # fmt: skip
SERVER_CARRIED = {
    "address", "host", "port", "local_address", "local_port", "number", "connect_time", "request_time", "cancel_key",
    "close_needed", "parameters", "at_login", "statements", "unnamed", "connect_query",
}  # fmt: skip
LINK_ANEW = {
    "server", "client", "phase", "lease", "session_state", "outstanding", "from_client_framer", "from_server_framer",
    "mark", "parts", "query_start", "text", "cancel_time", "rolled_back", "before_reset",
    "held_back",  # of what is under way
    "counted_at", "received", "sent",  # of this process's clients
}  # fmt: skip
STATE_ANEW = {"asked", "hints", "unnamed", "unnamed_hints"}  # of what is under way


def in_transaction() -> tuple[World, Client, Server]:
    """A quiet client that holds a server, with a prepared statement."""
    world = World()
    client = world.client(application_name="mover")
    client.send(parse(b"one", b"select 1") + bind(b"one") + execute() + SYNC)
    world.settle()
    client.send(BEGIN)
    world.settle()
    client.take()
    return world, client, world.open_servers[0]


@pytest.mark.skipif(not hasattr(SessionState(), "__dict__"), reason="native classes do not tell their attributes")
def test_every_attribute_is_carried_or_made_anew() -> None:
    _, client, server = in_transaction()
    assert set(vars(client.session)) == CLIENT_ANEW | CLIENT_CARRIED
    assert set(vars(server.session)) == SERVER_ANEW | SERVER_CARRIED
    assert set(vars(server.session.link)) == LINK_ANEW | set(moving.LINK_STATE)
    assert set(vars(server.session.link.session_state)) == STATE_ANEW | set(moving.SEEN_STATE)


def test_what_moves_is_what_was() -> None:
    _, client, server = in_transaction()
    server_state = json.loads(json.dumps(moving.server_state(server.session, "app")))
    client_state = json.loads(json.dumps(moving.client_state(client.session)))

    world = World()
    pool = world.pool()
    moved_server = moving.restore_server(world.context, server_state, pool, world.now)
    arrival = Client(world)
    moved = ClientSession(world.context, arrival.transport, "10.1.1.1", 5, False, world.now)
    moving.restore_client(moved, client_state, pool, world.now)
    moving.restore_link(moved_server, moved, server_state["link"])

    assert (moved.state, moved_server.state) == (CL_ACTIVE, SV_ACTIVE)
    assert moving.client_state(moved) == {**client_state, "address": "10.1.1.1", "port": 5, "is_unix": False}
    assert moving.server_state(moved_server, "app") == server_state
    assert moved.link is moved_server.link
    assert world.context.cancel_keys.find(moved.cancel_key) is moved
    assert moved.statements is not None
    (name, statement), = moved.statements.everything()
    assert name == b"one"
    assert moved_server.statements.has(statement)


def test_who_has_something_under_way_does_not_move() -> None:
    world, client, server = in_transaction()
    session = client.session
    assert moving.is_quiet(session)
    client.send(frontend.query(b"select 1"))
    assert not moving.is_quiet(session)
    assert moving.will_be_quiet(session)  # a Query ends by itself
    world.settle()
    assert moving.is_quiet(session)
    client.send(parse(b"", b"select 1"))
    assert not moving.is_quiet(session)
    assert not moving.will_be_quiet(session)  # a Parse waits for what follows
    client.send(SYNC)
    assert moving.will_be_quiet(session)
    world.settle()
    client.send(frontend.query(b"select 1")[:3])
    assert not moving.will_be_quiet(session)  # half a message
    assert kinds(client.take())
    assert isinstance(server.session.link, Link)


def test_who_has_no_server_moves_even_while_it_waits() -> None:
    world = World()
    idle = world.client()
    assert moving.is_quiet(idle.session)
    world.pool().database.paused = True
    idle.send(BEGIN)
    assert moving.is_quiet(idle.session)
    assert moving.client_state(idle.session)["pending"] == BEGIN.decode("latin-1")


def test_tls_and_consoles_stay() -> None:
    world = World()
    client = world.client()
    assert moving.may_move(client.session)
    client.session.tls = "TLSv1.3"
    assert not moving.may_move(client.session)
