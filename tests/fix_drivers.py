"""What every driver's test does, so that each of them only says how: more clients than servers, and results that are checked.

A client (`owner`, from 0 to CLIENTS - 1) inserts TURNS rows in transactions of their own, each after one that it takes back,
reads them again by a statement that is prepared, and copies COPIED rows in and out. `Ledger.check` then looks past the proxy.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from fix_clients import Database
from fix_postgres import USERS
from fix_proxy import MakeProxy, Proxy
from fix_wait import wait_until

CLIENTS = 12
SERVERS = 3
TURNS = 8  # more than the executions after which drivers prepare a statement (5)
COPIED = 500
FIRST_COPIED = 1000
SUM = sum(range(TURNS)) + sum(range(FIRST_COPIED, FIRST_COPIED + COPIED))
USER = "scram_user"
PASSWORD = USERS[USER][1]


def text_of(owner: int, number: int) -> str:
    return f"Ünï-{owner}'\\\"{number}"


class Ledger:
    """The table that the clients write to, and the proxy that they use: SCRAM for clients and servers, three servers."""

    def __init__(self, proxy: Proxy, database: Database) -> None:
        self.proxy = proxy
        self.database = database
        database.sql("create table item (owner int, number int, text text, primary key (owner, number))")
        database.sql("grant all on item to public")

    def url(self, scheme: str) -> str:
        return f"{scheme}://{USER}:{PASSWORD}@{self.proxy.host}:{self.proxy.port}/app"

    def check(self, clients: int = CLIENTS) -> None:
        """Everything is there that was committed and nothing else, on no more servers than allowed; nobody holds any now."""
        found = self.database.sql("select owner, count(*), sum(number) from item group by owner order by owner")
        assert found == [(owner, TURNS + COPIED, SUM) for owner in range(clients)]
        texts = self.database.sql("select owner, number, text from item")
        assert all(text == text_of(owner, number) for owner, number, text in texts)
        assert 0 < len(self.database.pids(backend_type="client backend")) <= SERVERS
        wait_until(lambda: self.proxy.show("POOLS", database="app")["sv_active"] == 0, what="nobody holds any")
        assert not self.proxy.log_contains("pooler error"), self.proxy.log()


@pytest.fixture
def ledger(make_proxy: MakeProxy, database: Database) -> Ledger:
    proxy = make_proxy(
        databases={"app": database.entry()}, auth_type="scram-sha-256", pool_mode="transaction", default_pool_size=SERVERS,
    )  # fmt: skip
    return Ledger(proxy, database)


def in_threads(life: Callable[[int], None]) -> None:
    """Live the lives of all clients at once; the first exception of any is raised."""
    with ThreadPoolExecutor(CLIENTS) as threads:
        for done in [threads.submit(life, owner) for owner in range(CLIENTS)]:
            done.result()
