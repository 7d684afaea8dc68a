"""Look-ups by auth_query: who is asked for, shared by logins that want the same, kept for auth_query_cache_ttl.

Knows the settings and the pools; one look-up on the wire is session/auth_query.py. Whatever is odd refuses the login.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeAlias

from pgpool_proxy import errors, log
from pgpool_proxy.auth.exchange import Secret
from pgpool_proxy.auth.secret import SCRAM
from pgpool_proxy.auth.usual import UsualSecrets
from pgpool_proxy.errors import Report
from pgpool_proxy.pool.registry import Database
from pgpool_proxy.session.auth_query import AuthQuery
from pgpool_proxy.settings import resolve
from pgpool_proxy.settings.entries import DatabaseEntry

if TYPE_CHECKING:
    from pgpool_proxy.process.worker import Worker

MAX_KEPT: Final = 10_000  # answers, and secrets for logging in to servers: some 200 bytes each
Question: TypeAlias = tuple[str, str, str, str]  # database, user that asks, query, user asked for
NOWHERE: Final[Question] = ("", "", "", "")  # asked like any other, and nobody is found
NO_ENTRY: Final = DatabaseEntry("")
Done: TypeAlias = Callable[[Secret | None, Report | None, float], None]


class Lookups:
    """All look-ups of this process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._answers: dict[Question, tuple[float, Secret]] = {}  # until when
        self._under_way: dict[Question, list[Done]] = {}
        self._secrets: dict[tuple[str, str], Secret] = {}  # (database, user): to log in to servers
        self.usual = UsualSecrets()  # of those
        self._usual_s = 0.0  # how long the last look-up took

    def __repr__(self) -> str:
        return f"<Lookups answers={len(self._answers)} under_way={len(self._under_way)}>"

    def forget(self) -> None:
        """RELOAD and RECONNECT: every answer is to be asked for anew."""
        self._answers.clear()

    def forget_user(self, user: str) -> None:
        """A password did not match: it may have been changed."""
        for question in [question for question in self._answers if question[3] == user]:
            del self._answers[question]

    def usual_kind(self, method: str) -> str:
        """What an unknown user's secret seems to be; SCRAM, as servers make them, until somebody is found."""
        return SCRAM if self.usual.is_empty else self.usual.kind(method)

    def secrets_to_hand_over(self) -> list[list[str]]:
        return [[database, user, secret.value.decode("latin-1")] for (database, user), secret in self._secrets.items()]

    def take_secrets_over(self, found: list[list[str]]) -> None:
        for database, user, value in found:
            self._put((database, user), Secret.of(value.encode("latin-1")))

    def secret(self, database: str, user: str) -> Secret | None:
        """What the last look-up for a login to `database` has found: for the servers of that user."""
        return self._secrets.get((database, user))

    def question(self, database: str, user: str) -> Question | Report | None:
        """What is to be asked for a login; None where no auth_user is set; a report where it cannot be asked. A database
        that is not known is asked about as if it were: in auth_dbname, or (`NOWHERE`) nowhere, which takes as long."""
        config = self._worker.config
        asker = resolve.auth_user(config, config.databases.get(database) or config.autodb or NO_ENTRY)
        if asker is None:
            return None
        entry = config.database(database) or DatabaseEntry(database)  # made anew from `*`, which costs as much as a login
        name = resolve.auth_dbname(config, entry)
        where = self._worker.registry.database(name)
        if name == database and where is None:
            return NOWHERE
        if name == database and where is not None and where.is_admin:
            return None  # the console has no servers: set auth_dbname
        if where is None or where.is_admin:
            log.get_logger().error(f'authentication database "{name}" is not configured')
            return errors.BOUNCER_CONFIG
        if where.disabled:
            return errors.DATABASE_DISABLED.saying(f'authentication database "{name}" is disabled')
        return name, asker, resolve.auth_query(config, entry), user

    def kept(self, question: Question, database: Database | None, now: float) -> Secret | None:
        """The answer for a login to `database`, where auth_query_cache_ttl has kept one."""
        until, found = self._answers.get(question, (0.0, None))
        if found is None or now >= until:
            return None
        self._keep_for_servers(database, question[3], found)
        return found

    def ask(self, question: Question, database: Database | None, done: Done) -> None:
        """`done(secret, None)`: found; `done(None, None)`: there is no such user; `done(None, report)`: no answer."""
        now = monotonic()
        if question == NOWHERE:
            asyncio.get_running_loop().call_later(self._usual_s, lambda: done(None, None, monotonic()))
            return

        def remember_and_tell(secret: Secret | None, report: Report | None, at: float) -> None:
            self._keep_for_servers(database, question[3], secret)
            done(secret, report, at)

        waiting = self._under_way.get(question)
        if waiting is not None:
            waiting.append(remember_and_tell)
            return
        self._under_way[question] = [remember_and_tell]
        worker = self._worker
        where = worker.registry.database(question[0])
        if where is None:
            raise errors.IllegalTransition(f"auth_query: {question[0]} has gone")
        loop = asyncio.get_running_loop()

        def ended(query: AuthQuery) -> None:
            self._usual_s = monotonic() - now
            loop.call_soon(self._ended, question, query)

        pool = worker.registry.pool_of(where, question[1])
        AuthQuery(worker.context, pool, question[2], question[3], ended, now).begin(now)

    def _ended(self, question: Question, query: AuthQuery) -> None:
        """Not from within the link that brought the answer: the server is given back here."""
        now = monotonic()
        waiting = self._under_way.pop(question, [])
        query.leave(now)
        secret: Secret | None = None
        report: Report | None = None
        if query.problem:
            log.get_logger().error(f"auth_query for user {question[3]} in database {question[0]} failed: {query.problem}")
            report = errors.BOUNCER_CONFIG
        elif query.found and query.secret is not None:
            secret = Secret.of(query.secret)
            ttl = self._worker.config.settings.auth_query_cache_ttl
            if ttl > 0:
                if len(self._answers) >= MAX_KEPT:
                    self._answers.clear()
                self._answers[question] = now + ttl, secret
        for done in waiting:
            done(secret, report, now)

    def _keep_for_servers(self, database: Database | None, user: str, secret: Secret | None) -> None:
        if database is None:  # nobody knows it, so it has no servers
            return
        self._put((database.name, user), secret)

    def _put(self, whose: tuple[str, str], secret: Secret | None) -> None:
        former = self._secrets.pop(whose, None)
        if former is not None:
            self.usual.count(former, -1)
        if secret is None:
            return
        if len(self._secrets) >= MAX_KEPT:
            self._secrets.clear()
            self.usual = UsualSecrets()
        self._secrets[whose] = secret
        self.usual.count(secret)
