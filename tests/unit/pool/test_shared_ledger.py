"""Several workers, one pool: `SharedLedger` in each, `LeaseBook` between them (fix_workers)."""

from __future__ import annotations

from fix_sessions import kinds
from fix_workers import Workers

from pgpool_proxy.wire import frontend

QUERY = frontend.query(b"select 1")
BEGIN = frontend.query(b"begin")
COMMIT = frontend.query(b"commit")
ANSWER = "TDCZ"


def test_a_pool_of_one_serves_two_workers_with_one_login() -> None:
    workers = Workers(2, pool_size=1)
    clients = [world.client() for world in _with_parameters(workers)]
    for _ in range(3):
        for client in clients:
            client.send(QUERY)
            workers.in_turns(0.02)
            assert kinds(client.take()) == ANSWER
            assert workers.standing() == 1
    assert workers.logins == 1
    workers.check()


def test_a_worker_that_dies_gives_nothing_back_before_its_connections_have_ended() -> None:
    workers = Workers(2, pool_size=1)
    one, two = _with_parameters(workers)
    holder = one.client()
    holder.send(BEGIN)
    workers.in_turns(0.02)
    waiting = two.client()
    waiting.send(QUERY)
    workers.in_turns(0.05)
    workers.kill(workers.workers[0])
    workers.deliver()
    assert workers.book.limbo("app", "alice") == 1
    assert waiting.take() == b""
    workers.in_turns(0.02)
    assert kinds(waiting.take()) == ANSWER
    workers.check()


def _with_parameters(workers: Workers) -> list:
    """Worlds whose logins need no server."""
    for worker in workers.workers:
        worker.world.pool()
        worker.ledger.learn("app", "alice", {b"server_version": b"18.0"}, workers.now)
    return workers.worlds
