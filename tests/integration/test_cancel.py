"""A CancelRequest ends the query it was meant for, and never another one."""

from __future__ import annotations

import os
import threading
import time

import psycopg
import pytest
from fix_clients import Database, Gate, Login, answer, ask, backend_pid, error, run, settle, value
from fix_proxy import MakeProxy, Proxy
from fix_raw import MakeRawClient, RawClient, bind, cancel_request, execute, parse, query, sync
from fix_tcp import MakeMiddleman
from fix_wait import wait_until


@pytest.fixture
def pooled(make_proxy: MakeProxy, database: Database) -> Proxy:
    return make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=2)


@pytest.fixture
def single(make_proxy: MakeProxy, database: Database) -> Proxy:
    return make_proxy(databases={"app": database.entry()}, pool_mode="transaction", default_pool_size=1)


def cancel(make_raw_client: MakeRawClient, proxy: Proxy, client: RawClient) -> None:
    """Send the CancelRequest and wait until the daemon has closed its connection."""
    with make_raw_client(proxy.port) as messenger:
        messenger.send(cancel_request(client.pid, client.secret))
        assert messenger.is_closed()


def runs(database: Database, text: str) -> bool:
    """Whether a backend executes a query with this text now."""
    return any(text in row["query"] and row["state"] == "active" for row in database.servers())


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_cancel_reaches_the_server_of_its_client_and_no_other(
    make_proxy: MakeProxy, database: Database, login: Login, make_raw_client: MakeRawClient, mode: str
) -> None:
    proxy = make_proxy(databases={"app": database.entry()}, pool_mode=mode)
    first, second = login(proxy), login(proxy)
    for client, number in ((first, 1), (second, 2)):
        ask(client, f"select pg_sleep(30), {number}")
        wait_until(lambda number=number: runs(database, f"pg_sleep(30), {number}"))  # type: ignore[misc]
    cancel(make_raw_client, proxy, second)
    assert error(second.read_until(b"Z"))["C"] == "57014"
    assert runs(database, "pg_sleep(30), 1")
    assert first.is_silent(0.05)
    cancel(make_raw_client, proxy, first)
    assert error(first.read_until(b"Z"))["C"] == "57014"
    assert [value(client, "select 1") for client in (first, second)] == ["1", "1"]


def test_a_cancelled_transaction_goes_on_as_a_failed_one(
    pooled: Proxy, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    client = login(pooled)
    run(client, "begin")
    ask(client, "select pg_sleep(30)")
    wait_until(lambda: runs(database, "pg_sleep"))
    cancel(make_raw_client, pooled, client)
    messages = client.read_until(b"Z")
    assert error(messages)["C"] == "57014"
    assert messages[-1].body == b"E"
    run(client, "rollback")
    assert value(client, "select 1") == "1"


def test_drivers_cancel(pooled: Proxy, database: Database) -> None:
    connection = pooled.connect()

    def cancel_when_it_runs() -> None:
        wait_until(lambda: runs(database, "pg_sleep"))
        connection.cancel_safe(timeout=10)

    thread = threading.Thread(target=cancel_when_it_runs)
    thread.start()
    with pytest.raises(psycopg.errors.QueryCanceled):
        connection.execute("select pg_sleep(30)")
    thread.join()
    assert connection.execute("select 1").fetchone() == (1,)


def test_a_waiting_client_is_cancelled_at_once_with_57014(
    single: Proxy, login: Login, make_raw_client: MakeRawClient
) -> None:
    holder, waiting, patient = login(single), login(single), login(single)
    run(holder, "begin")
    ask(waiting, "select 'never'")
    settle(single)
    ask(patient, "select 'served'")
    settle(single)
    started = time.monotonic()
    cancel(make_raw_client, single, waiting)
    messages = waiting.read_until(b"Z")
    assert time.monotonic() - started < 10  # not query_wait_timeout
    fields = error(messages)
    assert (fields["S"], fields["C"], messages[-1].body) == ("ERROR", "57014", b"I")
    ask(waiting, "select 'after all'")
    run(holder, "commit")
    assert answer(patient) == "served"
    assert answer(waiting) == "after all"


def test_a_waiting_pipeline_is_cancelled_up_to_its_sync(
    single: Proxy, login: Login, make_raw_client: MakeRawClient
) -> None:
    holder, waiting = login(single), login(single)
    run(holder, "begin")
    waiting.send(parse("select 'never'"), bind(), execute())
    settle(single)
    cancel(make_raw_client, single, waiting)
    assert error([waiting.read_message()])["C"] == "57014"
    waiting.send(parse("select 'never'"), bind(), execute(), sync(), query("select 'next'"))
    assert waiting.read_message().type == b"Z"
    run(holder, "commit")
    assert answer(waiting) == "next"


def test_only_the_first_of_several_waiting_queries_is_cancelled(
    single: Proxy, login: Login, make_raw_client: MakeRawClient
) -> None:
    holder, waiting = login(single), login(single)
    run(holder, "begin")
    waiting.send(query("select 'never'"), query("select 'second'"))
    settle(single)
    cancel(make_raw_client, single, waiting)
    assert error(waiting.read_until(b"Z"))["C"] == "57014"
    run(holder, "commit")
    assert answer(waiting) == "second"


def test_wrong_keys_cancel_nothing_and_are_closed_alike(
    single: Proxy, database: Database, gate: Gate, login: Login, make_raw_client: MakeRawClient
) -> None:
    client = login(single)
    ask(client, gate.sql())
    gate.wait()
    secret = int.from_bytes(client.secret, "big")
    keys = [(client.pid, (secret ^ bit).to_bytes(4, "big")) for bit in (1, 1 << 31)]
    keys += [(client.pid ^ 1, client.secret), (0, b"\0\0\0\0"), (-1, b"\xff" * 4)]
    keys += [(client.pid, client.secret + b"\0" * 28), (client.pid, b""), (client.pid, b"x" * 256), (client.pid, b"x" * 300)]
    keys += [(int.from_bytes(os.urandom(4), "big", signed=True), os.urandom(4)) for _ in range(50)]
    for pid, key in keys:
        messenger = make_raw_client(single.port)
        messenger.send(cancel_request(pid, key))
        messenger.read_to_end()
    gate.open()
    assert not any(found.type == b"E" for found in client.read_until(b"Z"))
    assert len(database.pids()) == 1


def test_a_key_is_worth_nothing_after_its_client_has_left(
    single: Proxy, gate: Gate, login: Login, make_raw_client: MakeRawClient
) -> None:
    former, client = login(single), login(single)
    value(former, "select 1")
    former.close()
    settle(single)
    ask(client, gate.sql())
    gate.wait()
    cancel(make_raw_client, single, former)
    gate.open()
    assert not any(found.type == b"E" for found in client.read_until(b"Z"))


def test_cancelling_an_idle_client_does_nothing(
    single: Proxy, gate: Gate, login: Login, make_raw_client: MakeRawClient
) -> None:
    idle, busy = login(single), login(single)
    value(idle, "select 1")
    ask(busy, gate.sql())
    gate.wait()
    cancel(make_raw_client, single, idle)
    gate.open()
    assert not any(found.type == b"E" for found in busy.read_until(b"Z"))
    assert value(idle, "select 2") == "2"


def test_cancelling_a_client_that_is_idle_in_a_transaction_leaves_the_transaction_alone(
    single: Proxy, login: Login, make_raw_client: MakeRawClient
) -> None:
    client = login(single)
    run(client, "begin")
    cancel(make_raw_client, single, client)
    assert value(client, "select 1") == "1"
    run(client, "commit")


def test_the_same_cancel_twice_and_ten_times_at_once(
    pooled: Proxy, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    client = login(pooled)
    for times in (2, 10):
        ask(client, "select pg_sleep(30)")
        wait_until(lambda: runs(database, "pg_sleep"))
        messengers = [make_raw_client(pooled.port) for _ in range(times)]
        for messenger in messengers:
            messenger.send(cancel_request(client.pid, client.secret))
        assert error(client.read_until(b"Z"))["C"] == "57014"
        assert all(messenger.is_closed() for messenger in messengers)
        assert value(client, "select 1") == "1"


def test_a_cancel_never_meets_a_later_query_of_another_client(
    single: Proxy, login: Login, make_raw_client: MakeRawClient
) -> None:
    """One client is cancelled again and again at the very end of its queries; the others use the same server.

    Its queries take as long as a cancel takes to arrive, on this machine now: longer after a miss, shorter after a hit.
    """
    victim = login(single)
    bystanders = [login(single) for _ in range(3)]
    hits = 0
    length = 0.002
    for round_number in range(150):
        ask(victim, f"select pg_sleep({length})")
        for client in bystanders:
            ask(client, "select pg_sleep(0.001), 'spared'")
        messenger = make_raw_client(single.port)
        messenger.send(cancel_request(victim.pid, victim.secret))
        for client in bystanders:
            found = client.read_until(b"Z")
            assert not any(one.type == b"E" for one in found), (round_number, found)
        is_hit = any(one.type == b"E" for one in victim.read_until(b"Z"))
        hits += is_hit
        length *= 0.8 if is_hit else 1.25
        assert messenger.is_closed()
        messenger.close()
    assert 0 < hits < 150


def test_pgbouncer_717_a_server_is_not_handed_out_before_the_cancel_for_it_has_ended(
    make_proxy: MakeProxy,
    database: Database,
    gate: Gate,
    login: Login,
    make_middleman: MakeMiddleman,
    make_raw_client: MakeRawClient,
) -> None:
    """The cancel is late on its way: its query has ended long before it arrives."""
    middleman = make_middleman(database.server.port)
    proxy = make_proxy(
        databases={"app": f"host=127.0.0.1 port={middleman.port} dbname={database.name}"},
        pool_mode="transaction",
        default_pool_size=1,
    )
    victim, bystander = login(proxy), login(proxy)
    server = backend_pid(victim)
    ask(victim, gate.sql())
    gate.wait()
    before = middleman.accepted
    middleman.up.pause()
    messenger = make_raw_client(proxy.port)
    messenger.send(cancel_request(victim.pid, victim.secret))
    wait_until(lambda: middleman.accepted > before)
    gate.open()
    assert not any(one.type == b"E" for one in victim.read_until(b"Z"))
    ask(bystander, "select pg_sleep(0.2), pg_backend_pid()")
    settle(proxy)
    assert bystander.is_silent(0.1)
    middleman.up.resume()
    messages = bystander.read_until(b"Z")
    assert not any(one.type == b"E" for one in messages)
    assert [one.values()[1] for one in messages if one.type == b"D"] == [str(server).encode()]
    assert messenger.is_closed()


def test_a_cancel_that_cannot_be_delivered_costs_nobody_anything(
    make_proxy: MakeProxy,
    database: Database,
    gate: Gate,
    login: Login,
    make_middleman: MakeMiddleman,
    make_raw_client: MakeRawClient,
) -> None:
    middleman = make_middleman(database.server.port)
    proxy = make_proxy(
        databases={"app": f"host=127.0.0.1 port={middleman.port} dbname={database.name}"},
        pool_mode="transaction",
        default_pool_size=1,
    )
    client = login(proxy)
    ask(client, gate.sql())
    gate.wait()
    middleman.refuse()
    cancel(make_raw_client, proxy, client)
    gate.open()
    assert not any(one.type == b"E" for one in client.read_until(b"Z"))
    assert value(client, "select 1") == "1"


def test_a_cancel_in_the_middle_of_copy_ends_the_copy(
    pooled: Proxy, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    client = login(pooled)
    run(client, "create table t (x text)")
    ask(client, "copy t from stdin")
    assert client.read_message().type == b"G"
    client.send_message(b"d", b"one\n")
    cancel(make_raw_client, pooled, client)
    client.send_message(b"d", b"two\n")
    client.send_message(b"c")
    messages = client.read_until(b"Z")
    assert error(messages)["C"] == "57014"
    assert value(client, "select count(*) from t") == "0"


def test_a_client_that_asks_for_a_cancel_in_pieces_or_never_finishes_it(
    single: Proxy, database: Database, login: Login, make_raw_client: MakeRawClient
) -> None:
    client = login(single)
    ask(client, "select pg_sleep(30)")
    wait_until(lambda: runs(database, "pg_sleep"))
    packet = cancel_request(client.pid, client.secret)
    half = make_raw_client(single.port)
    half.send(packet[:9])
    half.close()
    messenger = make_raw_client(single.port)
    messenger.send_chopped(packet)
    assert error(client.read_until(b"Z"))["C"] == "57014"
    assert messenger.is_closed()
