"""process/control.py through the console: what each command does to clients, servers and pools."""

from __future__ import annotations

from typing import Any

import pytest
from fix_raw import query

from pgpool_proxy import errors
from pgpool_proxy.pool.states import CL_CLOSED, CL_WAITING, SV_CLOSED, SV_LOGIN, SV_USED


def says(session: Any) -> str:
    """The text of the last error that a client was sent."""
    found = [message.fields()["M"] for message in session.transport.take() if message.type == b"E"]
    return found[-1] if found else ""


def closed_servers(house: Any) -> list[str]:
    return [order[2] for order in house.orders if order[0] == "server closed"]


# --- PAUSE --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sql", ["PAUSE", "PAUSE app"])
def test_pause_closes_idle_servers_and_is_done_when_none_is_in_use(house: Any, sql: str) -> None:
    server = house.idle_server()
    assert house.console().outcome(sql) == "PAUSE"
    assert server.state == SV_CLOSED
    assert closed_servers(house) == ["pause mode"]


@pytest.mark.parametrize("sql", ["PAUSE", "PAUSE app"])
def test_pause_waits_for_servers_in_use_and_closes_them_when_they_are_released(house: Any, sql: str) -> None:
    client = house.busy()
    server = client.link.server
    talk = house.console()
    assert talk.ask(sql) == []
    house.pass_time(60)
    assert talk.heard() == []
    house.answers(client)
    assert server.state == SV_CLOSED
    house.pass_time(0.1)
    assert [message.type for message in talk.heard()] == [b"C", b"Z"]


def test_pause_closes_servers_that_wait_for_a_check_or_log_in(house: Any) -> None:
    used = house.idle_server()
    used.pool.move_server(used, SV_USED)
    house.client("app", "bob").received(query("select 1"), house.clock_now)
    (opening,) = house.registry.pools["app", "bob"].opening.members()
    assert opening.state == SV_LOGIN
    assert house.console().outcome("PAUSE") == "PAUSE"
    assert (used.state, opening.state) == (SV_CLOSED, SV_CLOSED)
    assert house.registry.pools["app", "bob"].last_failure is None


@pytest.mark.parametrize(("pause", "resume"), [("PAUSE", "RESUME"), ("PAUSE app", "RESUME app")])
def test_clients_queue_while_paused_and_are_served_after_resume(house: Any, pause: str, resume: str) -> None:
    talk = house.console()
    talk.ask(pause)
    client = house.client()
    house.asks(client)
    assert client.state == CL_WAITING
    assert not client.pool.opening.count
    assert talk.outcome(resume) == "RESUME"
    (server,) = client.pool.opening.members()
    house.opens(server)
    assert client.link is not None


def test_pause_of_a_database_leaves_the_others_alone(house: Any) -> None:
    assert house.console().outcome("PAUSE app") == "PAUSE"
    assert house.busy("twin", "bob").link is not None


def test_pause_waits_in_session_mode_until_the_client_leaves(house: Any) -> None:
    client = house.busy("twin", "bob")
    talk = house.console()
    talk.ask("PAUSE twin")
    house.answers(client)
    house.pass_time(10)
    assert talk.heard() == []
    client.connection_lost(house.clock_now)
    for server in house.registry.all_servers():  # it is reset first
        server.received(b"C\0\0\0\x10DISCARD ALL\0" + b"Z\0\0\0\x05I", house.clock_now)
    house.pass_time(0.1)
    assert [message.type for message in talk.heard()] == [b"C", b"Z"]


def test_a_second_pause_is_refused_while_everything_is_paused(house: Any) -> None:
    talk = house.console()
    talk.ask("PAUSE")
    assert talk.outcome("PAUSE") == "08P01 already suspended/paused"
    assert talk.outcome("PAUSE app") == "08P01 already suspended/paused"
    assert talk.outcome("SUSPEND") == "08P01 already suspended/paused"
    assert talk.outcome("KILL") == "08P01 already suspended/paused"


def test_two_pauses_of_one_database_are_both_answered(house: Any) -> None:
    client = house.busy()
    one, two = house.console(), house.console()
    one.ask("PAUSE app")
    two.ask("PAUSE app")
    house.answers(client)
    house.pass_time(0.1)
    assert (len(one.heard()), len(two.heard())) == (2, 2)


@pytest.mark.parametrize("sql", ["PAUSE", "PAUSE app"])
def test_a_cancel_undoes_a_pause_that_waits(house: Any, sql: str) -> None:
    house.busy()
    waiting = house.client("app", "bob")
    talk = house.console()
    talk.ask(sql)
    house.asks(waiting)
    talk.cancel()
    failure, _ = talk.heard()
    assert failure.fields()["C"] == "57014"
    assert not house.registry.paused
    assert not house.registry.databases["app"].paused
    assert waiting.pool.opening.count == 1


def test_a_client_that_leaves_does_not_undo_its_pause(house: Any) -> None:
    house.busy()
    talk = house.console()
    talk.ask("PAUSE")
    talk.leaves()
    house.pass_time(1)
    assert house.registry.paused


@pytest.mark.parametrize("sql", ["PAUSE TIMEOUT 30", "PAUSE app TIMEOUT 30"])
def test_a_pause_with_a_timeout_gives_up_cleanly(house: Any, sql: str) -> None:
    client = house.busy()
    waiting = house.client("app", "bob")
    talk = house.console()
    talk.ask(sql)
    house.asks(waiting)
    house.pass_time(29.9)
    assert talk.heard() == []
    house.pass_time(0.2)
    failure, ready = talk.heard()
    assert (failure.fields()["C"], failure.fields()["M"], ready.body) == ("57014", "PAUSE timed out", b"I")
    assert client.link is not None
    assert waiting.pool.opening.count == 1
    assert house.control.mode == "active"


def test_a_timeout_holds_though_its_client_has_left(house: Any) -> None:
    house.busy()
    talk = house.console()
    talk.ask("PAUSE TIMEOUT 5")
    talk.leaves()
    house.pass_time(6)
    assert not house.registry.paused


def test_a_pause_that_is_done_in_time_stays(house: Any) -> None:
    assert house.console().outcome("PAUSE TIMEOUT 5") == "PAUSE"
    house.pass_time(60)
    assert house.registry.paused


def test_a_timeout_does_not_undo_an_earlier_pause(house: Any) -> None:
    house.busy()
    first, second = house.console(), house.console()
    first.ask("PAUSE app")
    second.ask("PAUSE app TIMEOUT 1")
    house.pass_time(2)
    assert second.heard()[0].fields()["M"] == "PAUSE timed out"
    assert house.registry.databases["app"].paused


# --- RESUME -------------------------------------------------------------------------------------------------------------
def test_resume_without_a_pause_is_refused(house: Any) -> None:
    talk = house.console()
    assert talk.outcome("RESUME") == "08P01 pooler is not paused/suspended"
    assert talk.outcome("RESUME app") == "08P01 database app is not paused"
    assert talk.outcome("RESUME nobody") == "08P01 no such database: nobody"


@pytest.mark.parametrize(("pause", "resume"), [("PAUSE", "RESUME"), ("PAUSE app", "RESUME app")])
def test_resume_ends_every_pause_that_waits(house: Any, pause: str, resume: str) -> None:
    house.busy()
    waiting, other = house.console(), house.console()
    waiting.ask(pause)
    assert other.outcome(resume) == "RESUME"
    failure, ready = waiting.heard()
    assert (failure.fields()["C"], failure.fields()["M"]) == ("57014", "PAUSE was ended by RESUME")
    assert ready.body == b"I"
    house.pass_time(1)
    assert waiting.heard() == []
    assert other.outcome(resume).startswith("08P01")


def test_resume_of_everything_leaves_a_paused_database_paused(house: Any) -> None:
    talk = house.console()
    talk.ask("PAUSE app")
    assert talk.outcome("RESUME") == "08P01 pooler is not paused/suspended"
    assert house.registry.databases["app"].paused


def test_resume_is_refused_while_shutting_down(house: Any) -> None:
    talk = house.console()
    talk.ask("PAUSE")
    house.closing = errors.SHUTTING_DOWN
    assert talk.outcome("RESUME") == "08P01 pooler is shutting down"


def test_a_cancel_while_shutting_down_does_not_resume(house: Any) -> None:
    house.busy()
    talk = house.console()
    talk.ask("PAUSE")
    house.closing = errors.SHUTTING_DOWN
    talk.cancel()
    assert house.registry.paused


def test_signals_pause_and_resume(house: Any) -> None:
    server = house.idle_server()
    house.control.pause_by_signal()
    assert (house.control.mode, server.state) == ("paused", SV_CLOSED)
    house.control.resume_by_signal()
    assert house.control.mode == "active"


# --- SUSPEND ------------------------------------------------------------------------------------------------------------
def test_suspend_stops_reading_and_resume_starts_it_again(house: Any) -> None:
    client = house.busy()
    server = client.link.server
    talk = house.console()
    assert talk.outcome("SUSPEND") == "SUSPEND"
    assert (client.transport.reading, server.transport.reading, talk.wire.reading) == (False, False, True)
    late = house.client("app", "bob")
    house.pass_time(0.1)
    assert not late.transport.reading
    assert talk.outcome("RESUME") == "RESUME"
    assert (client.transport.reading, server.transport.reading, late.transport.reading) == (True, True, True)


def test_suspend_is_done_when_all_buffers_are_flushed(house: Any) -> None:
    client = house.client()
    client.transport.unsent = 10
    talk = house.console()
    assert talk.ask("SUSPEND") == []
    house.pass_time(1)
    assert talk.heard() == []
    client.transport.unsent = 0
    house.pass_time(0.1)
    assert talk.heard()[0].body == b"SUSPEND\0"


def test_suspend_stops_servers_that_are_being_opened_and_opens_no_more(house: Any) -> None:
    house.client()
    client = house.client("app", "bob")
    client.received(b"Q\0\0\0\x0dselect 1\0", house.clock_now)
    (opening,) = client.pool.opening.members()
    talk = house.console()
    assert talk.outcome("SUSPEND") == "SUSPEND"
    wire = type(talk.wire)()
    opening.login = None  # it has nothing to say here
    opening.connected(wire, house.clock_now)
    assert not wire.reading
    assert not wire.closed
    late = house.client("twin", "carol")
    late.pool.request(late, house.clock_now)
    assert not late.pool.opening.count
    assert talk.outcome("RESUME") == "RESUME"
    assert wire.reading
    house.pass_time(0.1)
    late.pool.grow(house.clock_now)
    assert late.pool.opening.count == 1


def test_suspend_drops_who_does_not_flush_in_time(house: Any) -> None:
    slow = house.client()
    slow.transport.unsent = 10
    talk = house.console()
    talk.ask("SUSPEND")
    house.pass_time(10.1)
    assert says(slow) == "suspend_timeout"
    assert talk.heard()[0].body == b"SUSPEND\0"


def test_suspend_ends_with_the_console_that_ordered_it(house: Any) -> None:
    client = house.client()
    talk, other = house.console(), house.console()
    talk.ask("SUSPEND")
    other.leaves()
    assert house.control.mode == "suspended"
    talk.leaves()
    assert house.control.mode == "active"
    assert client.transport.reading


def test_suspend_is_refused_with_paused_databases(house: Any) -> None:
    talk = house.console()
    talk.ask("PAUSE app")
    assert talk.outcome("SUSPEND") == "08P01 cannot suspend with paused databases"


def test_resume_does_not_read_from_a_server_whose_client_is_full(house: Any) -> None:
    client = house.busy()
    server = client.link.server
    talk = house.console()
    talk.ask("SUSPEND")
    client.writing_paused(house.clock_now)
    talk.ask("RESUME")
    assert not server.transport.reading


# --- DISABLE and ENABLE -------------------------------------------------------------------------------------------------
def test_disable_and_enable(house: Any) -> None:
    talk = house.console()
    assert talk.outcome("DISABLE app") == "DISABLE"
    assert house.registry.databases["app"].disabled
    assert talk.outcome("ENABLE app") == "ENABLE"
    assert not house.registry.databases["app"].disabled


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("PAUSE", "pause"), ("DISABLE", "disable"), ("ENABLE", "enable"), ("RECONNECT", "reconnect"),
        ("KILL", "kill"), ("WAIT_CLOSE", "wait in"),
    ],
)  # fmt: skip
def test_the_console_itself_and_unknown_databases_are_refused(house: Any, sql: str, what: str) -> None:
    talk = house.console()
    assert talk.outcome(f"{sql} pgbouncer") == f"08P01 cannot {what} admin db: pgbouncer"
    assert talk.outcome(f"{sql} nobody") == "08P01 no such database: nobody"


# --- RECONNECT and WAIT_CLOSE -------------------------------------------------------------------------------------------
def test_reconnect_closes_idle_servers_at_once_and_busy_ones_when_they_are_released(house: Any) -> None:
    idle = house.idle_server("app", "bob")
    client = house.busy()
    busy = client.link.server
    talk = house.console()
    assert talk.outcome("RECONNECT") == "RECONNECT"
    assert idle.state == SV_CLOSED
    assert busy.close_needed
    assert client.pool.server_parameters is None
    house.answers(client)
    assert busy.state == SV_CLOSED
    assert closed_servers(house) == ["close_needed", "close_needed"]


def test_reconnect_of_one_database_leaves_the_others_alone(house: Any) -> None:
    house.idle_server()
    client = house.busy("twin", "bob")
    assert house.console().outcome("RECONNECT app") == "RECONNECT"
    assert not client.link.server.close_needed


def test_a_server_that_logs_in_during_reconnect_is_obsolete_too(house: Any) -> None:
    client = house.client()
    client.received(query("select 1"), house.clock_now)
    (server,) = client.pool.opening.members()
    house.console().ask("RECONNECT")
    assert server.close_needed


def test_wait_close_waits_until_obsolete_servers_are_closed(house: Any) -> None:
    client = house.busy()
    talk = house.console()
    assert talk.outcome("WAIT_CLOSE") == "WAIT_CLOSE"
    talk.ask("RECONNECT")
    assert talk.ask("WAIT_CLOSE app") == []
    house.pass_time(1)
    assert talk.heard() == []
    house.answers(client)
    house.pass_time(0.1)
    assert talk.heard()[0].body == b"WAIT_CLOSE\0"


def test_wait_close_is_not_ended_by_resume(house: Any) -> None:
    house.busy()
    waiting, other = house.console(), house.console()
    other.ask("RECONNECT")
    waiting.ask("WAIT_CLOSE")
    other.ask("PAUSE")
    other.cancel()
    assert waiting.heard() == []


def test_wait_close_with_a_timeout_gives_up(house: Any) -> None:
    house.busy()
    talk = house.console()
    talk.ask("RECONNECT")
    talk.ask("WAIT_CLOSE TIMEOUT 3")
    house.pass_time(4)
    assert talk.heard()[0].fields()["M"] == "WAIT_CLOSE timed out"


# --- KILL ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sql", ["KILL", "KILL app"])
def test_kill_drops_clients_servers_and_pools_at_once(house: Any, sql: str) -> None:
    idle_server = house.idle_server()
    linked, idle = house.busy("app", "bob"), house.client("app", "carol")
    opening = house.client("app", "dave")
    opening.received(query("select 1"), house.clock_now)
    opening.transport.take()
    linked.transport.take()
    house.orders.clear()
    talk = house.console()
    assert talk.outcome(sql) == "KILL"
    assert {says(client) for client in (linked, idle, opening)} == {"database removed"}
    assert all(client.state == CL_CLOSED for client in (linked, idle, opening))
    assert idle_server.state == SV_CLOSED
    assert set(closed_servers(house)) == {"database removed"}
    assert list(house.registry.pools) == [("pgbouncer", "pgbouncer")]
    assert house.registry.databases["app"].paused
    assert (house.registry.databases["app"].server_count, house.registry.databases["app"].client_count) == (0, 0)
    assert not [order for order in house.orders if order[0] == "cancel"]
    assert talk.outcome("SHOW STATE") == "SHOW"


def test_after_kill_each_database_has_to_be_resumed(house: Any) -> None:
    house.client()
    house.client("twin")
    talk = house.console()
    talk.ask("KILL")
    assert talk.outcome("RESUME") == "08P01 pooler is not paused/suspended"
    assert talk.outcome("RESUME app") == "RESUME"
    assert talk.outcome("RESUME twin") == "RESUME"
    assert house.busy("app", "bob").link is not None
    assert ("twin", "forced") in house.registry.pools


def test_kill_of_one_database_leaves_the_others_alone(house: Any) -> None:
    client = house.busy("twin", "bob")
    house.console().ask("KILL app")
    assert client.link is not None


def test_kill_lets_a_pause_that_waits_be_done(house: Any) -> None:
    house.busy()
    waiting, other = house.console(), house.console()
    waiting.ask("PAUSE app")
    other.ask("KILL app")
    house.pass_time(0.1)
    assert waiting.heard()[0].body == b"PAUSE\0"


def test_kill_client_disconnects_one(house: Any) -> None:
    one, other = house.client(), house.client()
    talk = house.console()
    assert talk.outcome(f"KILL_CLIENT {one.number}") == "KILL_CLIENT"
    assert says(one) == "admin forced disconnect"
    assert other.state != CL_CLOSED
    assert talk.outcome(f"KILL_CLIENT {one.number}") == "08P01 client not found"


def test_kill_client_does_not_take_a_servers_number(house: Any) -> None:
    server = house.idle_server()
    assert house.console().outcome(f"KILL_CLIENT {server.number}") == "08P01 client not found"


def test_a_console_may_kill_itself(house: Any) -> None:
    talk = house.console()
    messages = talk.ask(f"KILL_CLIENT {talk.session.number}")
    assert [message.fields()["M"] for message in messages] == ["admin forced disconnect"]
    assert talk.wire.closed


# --- databases that go and change ---------------------------------------------------------------------------------------
def test_a_removed_database_takes_its_clients_and_servers_along(house: Any) -> None:
    client = house.busy()
    database = house.registry.databases["app"]
    client.transport.take()
    house.control.remove_database(database, house.clock_now)
    assert says(client) == "database removed"
    assert "app" not in house.registry.databases
    assert database.is_removed
    assert not house.registry.all_servers()


def test_servers_of_a_changed_database_are_replaced(house: Any) -> None:
    server = house.idle_server()
    house.control.reconnect_database(house.registry.databases["app"], errors.DATABASE_CHANGED, house.clock_now)
    assert server.state == SV_CLOSED
    assert closed_servers(house) == ["database configuration changed"]


# --- the process --------------------------------------------------------------------------------------------------------
def test_reload_tells_what_is_wrong(house: Any) -> None:
    talk = house.console()
    assert talk.outcome("RELOAD") == "RELOAD"
    house.reload_fails = errors.ConfigError("expected a number", file="p.ini", line=3, key="listen_port")
    failure, _ = talk.ask("RELOAD")
    assert failure.fields()["C"] == "F0000"
    assert failure.fields()["M"] == "RELOAD failed, see logs for additional details"
    assert failure.fields()["D"] == "p.ini:3: listen_port: expected a number"


def test_shutdown_is_answered_before_it_begins_unless_it_is_at_once(house: Any) -> None:
    talk = house.console()
    assert talk.ask("SHUTDOWN") == []
    assert house.orders[-1] == ("shutdown", "now")
    assert house.console().outcome("SHUTDOWN WAIT_FOR_CLIENTS") == "SHUTDOWN"
    assert house.orders[-1] == ("shutdown", "wait_for_clients")


def test_a_second_shutdown_goes_over_to_what_waits_for_less_and_is_refused_otherwise(house: Any) -> None:
    house.closing = errors.SHUTTING_DOWN
    assert house.console().outcome("SHUTDOWN WAIT_FOR_CLIENTS") == "08P01 pooler is shutting down"
    assert house.orders == []
    assert house.console().outcome("SHUTDOWN WAIT_FOR_SERVERS") == "SHUTDOWN"
    assert house.orders == [("begin shutdown", "wait_for_servers")]


def test_set_changes_a_setting(house: Any) -> None:
    talk = house.console()
    assert talk.outcome("SET query_timeout = 12.5") == "SET query_timeout=12.5"
    assert house.config.settings.query_timeout == 12.5


@pytest.mark.parametrize("sql", ["SET no_such_key = 1", "SET pool_mode = sideways", "SET default_pool_size = x"])
def test_set_of_something_wrong_says_what(house: Any, sql: str) -> None:
    failure, _ = house.console().ask(sql)
    assert failure.fields()["M"] == "SET failed"
    assert sql.split()[1] in failure.fields()["D"]


def test_set_of_what_needs_a_restart_is_accepted_without_effect(house: Any) -> None:
    assert house.console().outcome("SET listen_port = 1") == "SET listen_port=1"
    assert house.config.settings.listen_port == 6432
