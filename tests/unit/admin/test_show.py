"""show.py and rows.py: PgBouncer's columns, in its order, with its types; and what stands in them."""

from __future__ import annotations

import os
import re
from decimal import Decimal
from typing import Any

import pytest

from pgpool_proxy import errors
from pgpool_proxy.admin.commands import COMMANDS, HELP_TEXT
from pgpool_proxy.admin.results import BYTEA, INT4, INT8, NUMERIC, TEXT
from pgpool_proxy.admin.show import TABLES
from pgpool_proxy.pool.states import SV_USED

CONNECTION = """type:t user:t database:t replication:t state:t addr:t port local_addr:t local_port connect_time:t
    request_time:t wait wait_us close_needed ptr:t link:t remote_pid tls:t application_name:t prepared_statements id"""
SOCKET = CONNECTION + " recv_pos pkt_pos pkt_remain send_pos send_remain pkt_avail send_avail"
PGBOUNCER = {
    "CLIENTS": CONNECTION,
    "SERVERS": CONNECTION,
    "SOCKETS": SOCKET,
    "ACTIVE_SOCKETS": SOCKET,
    "POOLS": """database:t user:t cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active
        sv_active_cancel sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us pool_mode:t
        load_balance_hosts:t""",
    "PEER_POOLS": "peer_id cl_active_cancel_req cl_waiting_cancel_req sv_active_cancel sv_login",
    "PEERS": "peer_id host:t port pool_size",
    "DATABASES": """name:t host:t port database:t force_user:t pool_size min_pool_size reserve_pool_size server_lifetime
        pool_mode:t load_balance_hosts:t max_connections current_connections max_client_connections
        current_client_connections paused disabled""",
    "USERS": """name:t pool_size:t reserve_pool_size:t pool_mode:t max_user_connections current_connections
        max_user_client_connections current_client_connections""",
    "STATS": """database:t total_server_assignment_count:N total_xact_count:N total_query_count:N total_received:N
        total_sent:N total_xact_time:N total_query_time:N total_wait_time:N total_client_parse_count:N
        total_server_parse_count:N total_bind_count:N total_client_login_count:N avg_server_assignment_count:N
        avg_xact_count:N avg_query_count:N avg_recv:N avg_sent:N avg_xact_time:N avg_query_time:N avg_wait_time:N
        avg_client_parse_count:N avg_server_parse_count:N avg_bind_count:N avg_client_login_count:N""",
    "STATS_TOTALS": """database:t server_assignment_count:N xact_count:N query_count:N bytes_received:N bytes_sent:N
        xact_time:N query_time:N wait_time:N client_parse_count:N server_parse_count:N bind_count:N
        client_login_count:N""",
    "STATS_AVERAGES": """database:t server_assignment_count:N xact_count:N query_count:N bytes_received:N bytes_sent:N
        xact_time:N query_time:N wait_time:N avg_client_parse_count:N avg_server_parse_count:N avg_bind_count:N
        avg_client_login_count:N""",
    "TOTALS": "name:t value:N",
    "LISTS": "list:t items",
    "CONFIG": "key:t value:t default:t changeable:t",
    "STATE": "key:t value:t",
    "MEM": "name:t size used free memtotal",
    "DNS_HOSTS": "hostname:t ttl:q addrs:t",
    "DNS_ZONES": "zonename:t serial:q count",
    "FDS": """fd task:t user:t database:t addr:t port cancel:q link client_encoding:t std_strings:t datestyle:t timezone:t
        password:t scram_client_key:b scram_server_key:b""",
    "VERSION": "version:t",
}
TYPES = {"": INT4, "t": TEXT, "q": INT8, "N": NUMERIC, "b": BYTEA}
OWN = {"SESSION_STATE", "STATS_HISTOGRAMS", "TOP", "WAITS", "WORKERS"}
CHANGES = {"MEM", "WORKERS"}  # memory and CPU time


@pytest.fixture
def full(house: Any) -> Any:
    """A house with somebody in every state that is easily had."""
    house.idle_server()
    house.busy()
    house.busy("twin", "bob")
    house.registry.paused = True
    house.asks(house.client("app", "bob"))
    house.registry.paused = False
    house.arriving()
    return house


def test_there_are_pgbouncers_tables_and_our_own() -> None:
    assert set(TABLES) == set(PGBOUNCER) | OWN


@pytest.mark.parametrize("name", sorted(PGBOUNCER))
def test_columns_and_their_types_are_pgbouncers(name: str) -> None:
    wanted = [(word.partition(":")[0], TYPES[word.partition(":")[2]]) for word in PGBOUNCER[name].split()]
    assert [(column.name, column.type) for column in TABLES[name].columns][: len(wanted)] == wanted


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_row_fits_its_columns(full: Any, name: str) -> None:
    full.console()
    table = TABLES[name]
    for row in table.rows(full.control):
        assert len(row) == len(table.columns)
        for cell, column in zip(row, table.columns, strict=True):
            kinds = str if column.type is TEXT else (int, Decimal) if column.type is NUMERIC else int
            assert cell is None or isinstance(cell, kinds), (column, cell)


@pytest.mark.parametrize("name", sorted(set(TABLES) - CHANGES))
def test_rows_come_in_the_same_order_each_time(full: Any, name: str) -> None:
    assert list(TABLES[name].rows(full.control)) == list(TABLES[name].rows(full.control))


@pytest.mark.parametrize("name", sorted(PGBOUNCER))
def test_cve_2023_22332_no_cell_holds_a_secret(full: Any, name: str) -> None:
    shown = repr(list(TABLES[name].rows(full.control)))
    assert "hidden" not in shown
    assert "secret-of" not in shown


@pytest.mark.parametrize("name", [*PGBOUNCER, "HELP", *COMMANDS])
def test_help_names_every_table_and_command(name: str) -> None:
    assert re.search(rf"\b{name}\b", HELP_TEXT)


def test_a_linked_client_and_its_server_name_each_other(house: Any) -> None:
    client = house.busy()
    talk = house.console()
    (row,) = [row for row in talk.rows("SHOW CLIENTS") if row["database"] == "app"]
    (server,) = talk.rows("SHOW SERVERS")
    assert (row["type"], row["state"], row["link"]) == ("C", "active", server["ptr"])
    assert (server["type"], server["state"], server["link"]) == ("S", "active", row["ptr"])
    assert row["id"] == str(client.number)
    assert row["connect_time"] == "2026-01-02 03:04:05 UTC"
    assert (row["addr"], row["port"], row["local_addr"], row["local_port"]) == ("192.0.2.1", "4000", "10.9.8.7", "6432")
    assert server["remote_pid"] == str(0x1001)
    assert server["local_port"] == str(50000 + int(server["id"] or 0))


def test_a_client_without_a_server_is_idle_though_its_pool_counts_it_as_active(house: Any) -> None:
    house.client()
    talk = house.console()
    assert [row["state"] for row in talk.rows("SHOW CLIENTS") if row["database"] == "app"] == ["idle"]
    assert [row["cl_active"] for row in talk.rows("SHOW POOLS") if row["database"] == "app"] == ["1"]


def test_a_waiting_client_shows_for_how_long(house: Any) -> None:
    house.registry.databases["app"].paused = True
    house.asks(house.client())
    house.pass_time(12.5)
    talk = house.console()
    (row,) = [row for row in talk.rows("SHOW CLIENTS") if row["database"] == "app"]
    assert (row["state"], row["wait"], row["wait_us"]) == ("waiting", "12", "500000")
    (pool,) = [row for row in talk.rows("SHOW POOLS") if row["database"] == "app"]
    assert (pool["cl_waiting"], pool["maxwait"], pool["maxwait_us"]) == ("1", "12", "500000")


def test_a_unix_client_shows_its_process(house: Any) -> None:
    house.client(address="unix(4711)")
    (row,) = [row for row in house.console().rows("SHOW CLIENTS") if row["database"] == "app"]
    assert (row["addr"], row["remote_pid"]) == ("unix", "4711")


def test_servers_are_listed_by_state_in_pgbouncers_order(house: Any) -> None:
    server = house.idle_server()
    server.pool.move_server(server, SV_USED)
    house.busy(user="bob")
    assert [(row["user"], row["state"]) for row in house.console().rows("SHOW SERVERS")] == [
        ("alice", "used"), ("bob", "active"),
    ]  # fmt: skip


def test_close_needed_is_shown(house: Any) -> None:
    house.busy()
    talk = house.console()
    assert talk.outcome("RECONNECT") == "RECONNECT"
    assert [row["close_needed"] for row in talk.rows("SHOW SERVERS")] == ["1"]


def test_sockets_have_logins_and_names_of_their_own_for_states(house: Any) -> None:
    house.arriving()
    house.busy()
    rows = [(row["type"], row["state"], row["user"]) for row in house.console().rows("SHOW SOCKETS")]
    assert rows == [
        ("C", "cl_active", "alice"), ("C", "cl_active", "admin"), ("S", "sv_active", "alice"), ("C", "cl_login", "(nouser)"),
    ]  # fmt: skip


def test_active_sockets_are_those_with_something_in_their_buffers(house: Any) -> None:
    house.client()
    full = house.client(user="bob")
    full.transport.unsent = 77
    (row,) = house.console().rows("SHOW ACTIVE_SOCKETS")
    assert (row["user"], row["send_avail"]) == ("bob", "77")


def test_pools_are_sorted_and_contain_the_console_itself(house: Any) -> None:
    for database, user in (("twin", "x"), ("app", "zoe"), ("app", "adam")):
        house.client(database, user)
    shown = house.console().rows("SHOW POOLS")
    assert [(row["database"], row["user"], row["pool_mode"], row["load_balance_hosts"]) for row in shown] == [
        ("app", "adam", "transaction", None),
        ("app", "zoe", "transaction", None),
        ("pgbouncer", "pgbouncer", "statement", None),
        ("twin", "forced", "session", "round-robin"),
    ]


def test_databases_show_what_the_configuration_and_the_operator_say(house: Any) -> None:
    talk = house.console()
    assert talk.outcome("DISABLE twin") == "DISABLE"
    assert talk.outcome("PAUSE app") == "PAUSE"
    app, console, twin = talk.rows("SHOW DATABASES")
    assert (app["name"], app["host"], app["port"], app["database"]) == ("app", "10.0.0.1", "5433", "app_on_server")
    assert (app["paused"], app["disabled"], app["pool_mode"], app["pool_size"]) == ("1", "0", "transaction", "20")
    assert (twin["host"], twin["force_user"], twin["load_balance_hosts"]) == ("h1,h2", "forced", "round-robin")
    assert (twin["paused"], twin["disabled"], twin["pool_mode"], twin["server_lifetime"]) == ("0", "1", None, "3600")
    assert (console["name"], console["host"], console["port"], console["pool_mode"]) == ("pgbouncer", None, "6432", "statement")
    assert console["current_client_connections"] == "1"


def test_users_are_those_of_all_sources(house: Any) -> None:
    house.client(user="carol")
    rows = {row["name"]: row for row in house.console().rows("SHOW USERS")}
    assert {"alice", "bob", "carol"} <= set(rows)
    assert list(rows) == sorted(rows, key=str)
    assert (rows["alice"]["pool_size"], rows["alice"]["pool_mode"]) == ("        7", "session")
    assert rows["alice"]["max_user_connections"] == "9"
    assert (rows["bob"]["pool_size"], rows["bob"]["pool_mode"]) == ("", None)
    assert rows["carol"]["current_client_connections"] == "1"


def test_peers_have_the_default_pool_size_unless_they_have_their_own(house: Any) -> None:
    assert [tuple(row.values()) for row in house.console().rows("SHOW PEERS")] == [
        ("2", "/sockets", "6433", "5"), ("3", "10.0.0.3", "6432", "20"),
    ]  # fmt: skip


def test_the_consoles_own_statements_are_counted(house: Any) -> None:
    talk = house.console()
    for _ in range(3):
        talk.rows("SHOW STATE")
    (row,) = [row for row in talk.rows("SHOW STATS_TOTALS") if row["database"] == "pgbouncer"]
    assert (row["query_count"], row["xact_count"], row["client_login_count"]) == ("3", "3", "1")
    assert int(row["bytes_received"] or 0) == 4 * 16 + 7
    assert int(row["bytes_sent"] or 0) > 100


def test_totals_are_those_of_all_databases(house: Any) -> None:
    house.idle_server()
    house.idle_server("app", "bob")
    rows = {row["name"]: row["value"] for row in house.console().rows("SHOW TOTALS")}
    assert len(rows) == 24
    assert rows["total_client_bytes"] is not None
    assert {"avg_ps_bind_count", "total_ps_client_parse_count", "avg_server_bytes"} <= set(rows)


def test_an_average_time_of_all_databases_is_not_the_sum_of_theirs(house: Any) -> None:
    for database, (xacts, time) in {"app": (9, 900), "twin": (1, 1100)}.items():
        counted = house.busy(database).link.server.pool.stats
        counted.xact_count = counted.query_count = counted.server_assignment_count = xacts
        counted.xact_time = counted.query_time = counted.wait_time = time
    talk = house.console()
    each = {row["database"]: row["avg_xact_time"] for row in talk.rows("SHOW STATS")}
    assert (each["app"], each["twin"]) == ("100", "1100")
    every = {row["name"]: row["value"] for row in talk.rows("SHOW TOTALS")}
    assert (every["avg_wait_time"], every["avg_server_assignment_count"]) == ("200", "5")  # 2000 µs, ten times, in 2 s
    assert every["avg_xact_time"] == str(2000 // int(every["total_xact_count"] or 0))


def test_state_follows_pause(house: Any) -> None:
    talk = house.console()

    def state() -> dict[str | None, str | None]:
        return {row["key"]: row["value"] for row in talk.rows("SHOW STATE")}

    assert state() == {"active": "yes", "paused": "no", "suspended": "no"}
    assert talk.outcome("PAUSE") == "PAUSE"
    assert state() == {"active": "no", "paused": "yes", "suspended": "no"}
    assert talk.outcome("RESUME") == "RESUME"
    assert talk.outcome("SUSPEND") == "SUSPEND"
    assert state() == {"active": "no", "paused": "no", "suspended": "yes"}


def test_lists_count_everything(house: Any) -> None:
    house.busy()
    house.arriving()
    rows = {row["list"]: row["items"] for row in house.console().rows("SHOW LISTS")}
    assert (rows["databases"], rows["pools"], rows["peers"]) == ("3", "2", "2")
    assert (rows["used_clients"], rows["login_clients"], rows["used_servers"]) == ("3", "1", "1")


def test_config_hides_what_is_secret(house: Any) -> None:
    talk = house.console()
    assert talk.outcome("SET auth_ldap_options = 'ldapbindpasswd=xyzzy'").startswith("SET")
    rows = {row["key"]: row for row in talk.rows("SHOW CONFIG")}
    assert rows["auth_ldap_options"]["value"] == "***"
    assert rows["default_pool_size"] == {"key": "default_pool_size", "value": "20", "default": "20", "changeable": "yes"}


def test_the_version_names_the_program(house: Any) -> None:
    (row,) = house.console().rows("SHOW VERSION")
    assert (row["version"] or "").startswith("pgpool_proxy ")


def test_a_client_that_leaves_while_rows_are_made_does_no_harm(house: Any) -> None:
    clients = [house.client(user=f"u{number}") for number in range(3)]
    rows = TABLES["CLIENTS"].rows(house.control)
    walk = iter(rows)
    assert next(walk)[1] == "u0"
    for client in clients:
        client.fail(errors.ADMIN_DISCONNECT, house.clock_now)
    assert [row[1] for row in walk] == ["u1", "u2"]


def test_a_process_alone_is_one_worker(house: Any) -> None:
    house.idle_server()
    house.arriving()
    (row,) = house.console().rows("SHOW WORKERS")
    counts = {name: row[name] for name in ("worker", "state", "clients", "servers", "leases", "restarts")}
    assert counts == {"worker": "1", "state": "active", "clients": "3", "servers": "1", "leases": "1", "restarts": "0"}
    assert row["pid"] == str(os.getpid())
    assert int(row["memory"] or 0) > 1_000_000
    assert re.fullmatch(r"\d+\.\d\d", row["cpu_seconds"] or "")


# --- our own -----------------------------------------------------------------------------------------------------------------
def test_waits_say_since_when_and_why(house: Any) -> None:
    house.registry.paused = True
    house.asks(house.client())
    house.asks(house.client())
    rows = house.console().rows("SHOW WAITS")
    assert [row["queue"] for row in rows] == ["2", "2"]
    assert int(rows[0]["id"]) < int(rows[1]["id"])
    assert {row["reason"] for row in rows} == {"paused"}


def test_histograms_of_a_pool_in_microseconds(house: Any) -> None:
    client = house.busy()
    client.pool.stats.queries.add(150)
    client.pool.stats.queries.add(150)
    rows = {row["what"]: row for row in house.console().rows("SHOW STATS_HISTOGRAMS") if row["user"] == "alice"}
    names = ("count", "mean_us", "p50_us", "p95_us", "p99_us")
    assert [rows["query"][name] for name in names] == ["2", "150", "150", "195", "199"]
    assert [rows["transaction"][name] for name in names] == ["0"] * 5


def test_a_replication_client_stands_in_the_line_of_its_pool(house: Any) -> None:
    house.client()
    app = house.registry.databases["app"]
    house.registry.dedicated_pool(app, "alice", 1, [])
    rows = house.console().rows("SHOW SESSION_STATE")
    assert [(row["database"], row["user"]) for row in rows] == [("app", "alice")]
