"""What takes too long, told in the log: servers that a transaction holds on to, and clients that wait for a server.

Looked at once a second. Each transaction is told of once, each pool's queue once a minute: the log shall not drown in it. Of
several workers none knows what the others' servers do: each says which of its queues are long, and the supervisor asks all
and tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from pgpool_proxy import log
from pgpool_proxy.admin import waits
from pgpool_proxy.admin.merge import Part, Record, usage_of
from pgpool_proxy.pool.limits import ABOUT_TO_OPEN, limit_reached, longest_wait, reason_to_wait
from pgpool_proxy.pool.pool import Pool
from pgpool_proxy.pool.states import SV_ACTIVE
from pgpool_proxy.session.server_session import ServerSession

if TYPE_CHECKING:
    from pgpool_proxy.process.orders import Orders
    from pgpool_proxy.process.worker import Worker

PERIOD_S: Final = 1.0
AGAIN_S: Final = 60.0  # until the same pool's queue is told of again
OVER_S: Final = 3 * PERIOD_S  # without a word: the queue is short again
Key: TypeAlias = tuple[str, str]  # database and user
Holder: TypeAlias = tuple[bool, float, str]
"""Of a server: is it in a transaction, for how many seconds has it been that or idle, and whose it is."""
Queue: TypeAlias = tuple[int, float, str, Holder | None]
"""Of a pool: who waits, how long the first has, what for, and who has held a server for longest."""


class Watch:
    """See the module's docstring."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._due = 0.0
        self._told: dict[int, float] = {}  # server -> the beginning of the transaction that was told of
        self._queues: dict[Key, float] = {}  # when each was told of

    def tick(self, now: float) -> None:
        if now < self._due:
            return
        self._due = now + PERIOD_S
        settings = self._worker.config.settings
        if settings.leak_detection_threshold > 0:
            self._find_leaks(settings.leak_detection_threshold, now)
        if settings.log_long_waits > 0:
            self._find_waits(settings.log_long_waits, now)

    # --- servers that are held --------------------------------------------------------------------------------------------
    def _find_leaks(self, threshold: float, now: float) -> None:
        still: dict[int, float] = {}
        for pool in self._worker.registry.pools.values():
            for server in _held(pool):
                began = float(server.link.xact_start)
                if now - began < threshold:
                    continue
                still[int(server.number)] = began
                if self._told.get(int(server.number)) != began:
                    self._tell_leak(server, began, now)
        self._told = still

    def _tell_leak(self, server: ServerSession, began: float, now: float) -> None:
        link = server.link
        client = link.client
        if client is None:
            return
        text = shown(link.text, int(self._worker.context.text_chars))
        running = link.query_start > 0
        since = now - (link.query_start if running else link.status_time)
        doing = f"running a query for {since:.1f} s" if running else f"idle in transaction for {since:.1f} s"
        last = f", last statement: {text}" if text else ""
        self._worker.host.logger(client).warning(
            f"server S-{server.number} has been held for {now - began:.1f} s, {doing}{last}",
            server=int(server.number), held_s=round(now - began, 1), idle_in_transaction=not running, statement=text,
        )  # fmt: skip

    # --- clients that wait ------------------------------------------------------------------------------------------------
    def _find_waits(self, threshold: float, now: float) -> None:
        pools = {
            (pool.database.name, pool.user.name): pool
            for pool in self._worker.registry.pools.values()
            if longest_wait(pool, now) >= threshold
        }
        if self._worker.membership is not None:
            if pools:
                self._worker.membership.say({"is": "long_waits", "pools": list(pools)})
            return
        told: dict[Key, float] = {}
        for key, pool in pools.items():
            before = self._queues.get(key)
            told[key] = before if before is not None and now - before < AGAIN_S else now
            if told[key] == now:
                tell_queue(key, queue_of(pool, now))
        self._queues = told


class FleetWatch:
    """The queues of several workers, at their supervisor."""

    def __init__(self, orders: Orders, question: str) -> None:
        self._orders = orders
        self._question = question
        self._told: dict[Key, float] = {}
        self._seen: dict[Key, float] = {}

    def received(self, pools: Sequence[Sequence[str]], now: float) -> None:
        """A worker's queues that are long; it says so once a second."""
        for key in [key for key, seen in self._seen.items() if now - seen > OVER_S]:
            del self._seen[key], self._told[key]
        due: list[Key] = []
        for database, user in pools:
            key = database, user
            self._seen[key] = now
            if key not in self._told or now - self._told[key] >= AGAIN_S:
                self._told[key] = now
                due.append(key)
        if due:
            self._orders.ask(self._question, partial(_tell_queues, due))


def queues(worker: Worker) -> Iterator[Record]:
    """A worker's answer: what its pools use of their limits, without a place, and each of them that has servers or a queue."""
    now = worker.clock()
    for usage in waits.usage(worker.control):
        yield (), usage
    for pool in list(worker.registry.pools.values()):
        if pool.taken or pool.waiting.count or pool.waiting_login.count:
            yield (pool.database.name, pool.user.name), queue_of(pool, now)


def _tell_queues(wanted: Sequence[Key], parts: Sequence[Part]) -> None:
    usage = usage_of(parts)
    found: dict[Key, list[Any]] = {}
    for _, records in parts:
        for place, queue in records:
            if place:
                found.setdefault((place[0], place[1]), []).append(queue)
    for key in wanted:
        several = found.get(key, [])
        count = sum(queue[0] for queue in several)
        if not count:
            continue  # it has come to its end
        first = max(several, key=lambda queue: queue[1])
        reason = first[2]
        if reason == ABOUT_TO_OPEN and key in usage:  # as far as one worker can tell
            reason = limit_reached(*usage[key]) or reason
        holders = [tuple(queue[3]) for queue in several if queue[3] is not None]
        tell_queue(key, (count, first[1], reason, max(holders, default=None)))


def tell_queue(key: Key, queue: Queue) -> None:
    count, waited, reason, holder = queue
    log.get_logger().warning(
        f"pool {key[0]}/{key[1]}: {count} waiting for a server, the first for {waited:.1f} s: {reason}{_shown_holder(holder)}",
        database=key[0], user=key[1], waiting=count, longest_wait_s=round(waited, 1),
    )  # fmt: skip


def queue_of(pool: Pool, now: float) -> Queue:
    count = int(pool.waiting.count + pool.waiting_login.count)
    return count, float(longest_wait(pool, now)), reason_to_wait(pool, now), _busiest(pool, now)


def _busiest(pool: Pool, now: float) -> Holder | None:
    """Who has held a server of the pool for longest: in a transaction, or else, as a session may, idle."""
    servers = [cast(ServerSession, member) for member in pool.servers[SV_ACTIVE].members()]
    return max((holder for server in servers if (holder := _holder(server, now)) is not None), default=None)


def _holder(server: ServerSession, now: float) -> Holder | None:
    link = server.link
    client = link.client
    if client is None:
        return None
    began = float(link.xact_start) or float(link.status_time) or now
    return link.xact_start > 0, now - began, f"C-{client.number} at {client.address}:{client.port}"


def _shown_holder(holder: Holder | None) -> str:
    if holder is None:
        return ""
    is_in_transaction, seconds, who = holder
    return f" ({'longest' if is_in_transaction else 'none in a transaction, longest idle'}: {who}, for {seconds:.1f} s)"


def _held(pool: Pool) -> list[ServerSession]:
    """The servers that are in a transaction of a client."""
    servers = [cast(ServerSession, member) for member in pool.servers[SV_ACTIVE].members()]
    return [server for server in servers if server.link.client is not None and server.link.xact_start > 0]


def shown(text: bytes, most: int) -> str:
    """A statement's text for the log: at most so many characters; the log escapes what could harm it."""
    return text.decode("utf-8", "replace")[:most]
