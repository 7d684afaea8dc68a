"""The HTTP side, whose source may ask other processes first: its answers come later, or never."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator

import pytest

from pgpool_proxy.metrics.http import HttpServer
from pgpool_proxy.metrics.snapshot import HISTORY, HistoryRow, Readiness, Snapshot

SNAPSHOT = Snapshot("0.1.0", "plain Python", 1e9, [], [], 7, 100, 0, frozenset({"alice"}), loop_lag=((0,) * 21, 0))
ROW: HistoryRow = tuple(float(at) for at in range(len(HISTORY)))


class Source:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Callable[[Callable[[], Snapshot]], None]] = []
        self.asked_for_history: list[Callable[[list[HistoryRow]], None]] = []

    def snapshot(self, done: Callable[[Callable[[], Snapshot]], None]) -> None:
        self.asked.append(done)

    def history(self, done: Callable[[list[HistoryRow]], None]) -> None:
        self.asked_for_history.append(done)

    def readiness(self, done: Callable[[Readiness], None]) -> None:
        done(Readiness(()))

    def token(self) -> str:
        return ""


class Answer:
    """What a client of the HTTP side is told."""

    def __init__(self) -> None:
        self.came = asyncio.Event()
        self.status = 0
        self.body = b""

    def __call__(self, status: int, content_type: str, body: bytes) -> None:
        self.status, self.body = status, body
        self.came.set()


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def server(source: Source) -> Iterator[HttpServer]:
    found = HttpServer(source)
    yield found
    found.close()


async def test_a_snapshot_that_comes_later_is_made_in_a_thread(server: HttpServer, source: Source) -> None:
    answer = Answer()
    made_in: list[threading.Thread] = []

    def make() -> Snapshot:
        made_in.append(threading.current_thread())
        return SNAPSHOT

    server.answer("/metrics", b"", answer)
    assert not answer.came.is_set()
    source.asked[0](make)
    await asyncio.wait_for(answer.came.wait(), 10)
    assert (answer.status, b"\npgpool_proxy_used_clients 7.0\n" in answer.body) == (200, True)
    assert made_in[0] is not threading.main_thread()


async def test_the_data_of_the_status_page_waits_for_both(server: HttpServer, source: Source) -> None:
    answer = Answer()
    server.answer("/status.json", b"", answer)
    assert source.asked == []
    source.asked_for_history[0]([ROW])
    source.asked[0](lambda: SNAPSHOT)
    await asyncio.wait_for(answer.came.wait(), 10)
    found = json.loads(answer.body)
    assert (found["clients"], found["history"]) == (7, {"columns": list(HISTORY), "rows": [list(ROW)]})


async def test_a_snapshot_that_cannot_be_made_is_an_error(server: HttpServer, source: Source) -> None:
    answer = Answer()
    server.answer("/metrics", b"", answer)
    source.asked[0](lambda: json.loads("no snapshot"))
    await asyncio.wait_for(answer.came.wait(), 10)
    assert (answer.status, answer.body) == (500, b"internal error: JSONDecodeError\n")


async def test_a_snapshot_that_comes_when_all_is_over_is_not_made(server: HttpServer, source: Source) -> None:
    answer = Answer()
    server.answer("/metrics", b"", answer)
    server.close()
    source.asked[0](lambda: pytest.fail("nobody wants it any more"))
    await asyncio.sleep(0)
    assert not answer.came.is_set()
