"""One look-up by auth_query: a client without a socket, which asks the pool for a server like any other.

Theory of operation
-------------------
`AuthQuery` is the transport of a `ClientSession` of its own: what the session writes to its client is the answer. The session
joins the pool of auth_user (waiting for its first server if need be), sends Parse, Bind, Describe, Execute and Sync with the
name as a text parameter, and leaves. Its parameters are the ones that servers have at login, whatever another client of the
pool has set and whatever the client that logs in has asked for (CVE-2025-12819).

Only one row of two columns whose first is the name asked for is an answer. No row and a NULL secret mean that there is no
such user. All else is a problem, never another identity (CVE-2015-6817). Knows no cache and no waiting logins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.errors import Report
from pgpool_proxy.pool.pool import Pool
from pgpool_proxy.session.client_login import POOL, ClientLogin
from pgpool_proxy.session.client_session import ClientSession
from pgpool_proxy.session.context import Context
from pgpool_proxy.wire import backend, frontend
from pgpool_proxy.wire.codes import (
    BIND,
    COPY_BOTH_RESPONSE,
    COPY_IN_RESPONSE,
    COPY_OUT_RESPONSE,
    DATA_ROW,
    DESCRIBE,
    ERROR_RESPONSE,
    EXECUTE,
    PARSE,
    READY_FOR_QUERY,
    ROW_DESCRIPTION,
    SYNC,
)
from pgpool_proxy.wire.framing import MessageReader, int32_at

MAX_ANSWER: Final = 1_048_576  # one row of two columns; a secret has at most 65,530 bytes
COLUMNS: Final = 2
MAX_ROWS: Final = b"\0\0\0\2"  # one more than is allowed is enough to know
TEXT_TYPE: Final = b"\0\1\0\0\0\x19"  # one parameter, of type text (OID 25)
NULL: Final = 0xFFFFFFFF
ADDRESS: Final = "auth_query"  # where SHOW CLIENTS says that it comes from
DONE: Final = Report("auth_query is done", "00000", "LOG")


class LookupLogin(ClientLogin):
    """What stands in the place of a login: when the pool says welcome, the query goes out."""

    def __init__(self, session: ClientSession, lookup: AuthQuery) -> None:
        super().__init__(session)
        self.stage = POOL
        self.lookup: AuthQuery | None = lookup

    def finish(self, now: float) -> None:
        if self.lookup is not None:
            self.lookup.send(now)

    def ended(self) -> None:
        lookup = self.lookup
        self.lookup = None
        if lookup is not None:
            lookup.over()


class AuthQuery:
    """One look-up. `done` is called once, from within whatever ended it: `problem`, `found` and `secret` then stand."""

    def __init__(
        self, context: Context, pool: Pool, query: str, user: str, done: Callable[[AuthQuery], None], now: float
    ) -> None:
        self.pool: Pool = pool
        self.user: bytes = user.encode("utf-8", "surrogateescape")
        self.secret: bytes | None = None
        self.found: bool = False  # the user exists and has a secret
        self.problem: str = ""  # for the log
        self.is_done: bool = False
        self._query: bytes = query.encode("utf-8", "surrogateescape")
        self._done: Callable[[AuthQuery], None] = done
        self._reader: MessageReader = MessageReader(MAX_ANSWER)
        self._rows: i64 = 0
        self._described: bool = False
        self._has_joined: bool = False
        self.session: ClientSession = ClientSession(context, self, ADDRESS, 0, True, now)
        self.session.user_name = pool.user.name
        self.session.database_name = pool.database.name
        self.session.login = LookupLogin(self.session, self)

    def begin(self, now: float) -> None:
        """Join the pool; it is no client of anybody, so no limit on clients counts it."""
        session = self.session
        failure = self.pool.last_failure
        if failure is not None and self.pool.usable_servers == 0 and now < self.pool.retry_at:
            self.fail(f"server login has been failing: {failure.message}")
            return
        self._has_joined = True
        if self.pool.join(session, now):
            self.send(now)

    def send(self, now: float) -> None:
        """The pool's servers are known: ask."""
        session = self.session
        parameters = self.pool.server_parameters
        if parameters is None:
            return
        session.login = None
        session.parameters = session.context.welcome_of(self.pool, parameters).base
        value = len(self.user).to_bytes(4, "big") + self.user
        session.received(
            b"".join(
                [
                    frontend.message(PARSE, b"\0" + self._query + b"\0" + TEXT_TYPE),
                    frontend.message(BIND, b"\0\0" + b"\0\0" + b"\0\1" + value + b"\0\0"),
                    frontend.message(DESCRIBE, b"P\0"),
                    frontend.message(EXECUTE, b"\0" + MAX_ROWS),
                    frontend.message(SYNC, b""),
                ]
            ),
            now,
        )

    # --- the answer -----------------------------------------------------------------------------------------------------
    def write(self, data: bytes) -> None:
        """Told by the session: bytes for its client."""
        if self.is_done:
            return
        reader = self._reader
        try:
            reader.feed(data)
            while reader.next():
                self._message(reader.kind, reader.body)
                if self.is_done:
                    return
        except errors.ProtocolViolation as violation:
            self.fail(f"the answer is broken: {violation.report.message}")

    def _message(self, kind: i64, body: bytes) -> None:
        if kind == ERROR_RESPONSE:
            self.fail(backend.error_report(body).message)
        elif kind == ROW_DESCRIPTION:
            self._described = True
            if len(body) < 2 or body[0] << 8 | body[1] != COLUMNS:
                self.fail("it must return two columns")
        elif kind == DATA_ROW:
            self._rows += 1
            if self._rows > 1:
                self.fail("it returned more than one row")
            else:
                self._row(body)
        elif kind == COPY_IN_RESPONSE or kind == COPY_OUT_RESPONSE or kind == COPY_BOTH_RESPONSE:
            self.fail("it is a COPY")
        elif kind == READY_FOR_QUERY:
            if not self._described:
                self.fail("it returned no columns")
            else:
                self.found = self.secret is not None
                self.over()

    def _row(self, body: bytes) -> None:
        """name and secret; both may be NULL."""
        values: list[bytes | None] = []
        at: i64 = 2
        for _ in range(COLUMNS):
            if at + 4 > len(body):
                break
            size = int32_at(body, at)
            at += 4
            if size == NULL:
                values.append(None)
            elif at + size <= len(body):
                values.append(body[at : at + size])
                at += size
        if len(values) != COLUMNS or not self._described:
            self.fail("it returned a broken row")
            return
        if values[0] != self.user:
            self.fail("it returned another user's name")
            return
        self.secret = values[1]

    def fail(self, problem: str) -> None:
        """There is no answer, and why."""
        if not self.is_done:
            self.problem = problem
            self.over()

    def over(self) -> None:
        """The answer is complete, or none will come. Once."""
        if self.is_done:
            return
        self.is_done = True
        if self.problem:
            self.secret = None
            self.found = False
        elif not self._described:
            self.problem = "it was not answered"
        self._done(self)

    def leave(self, now: float) -> None:
        """The server is free. Not to be called from within `done`: the link may still be at work."""
        if self.problem and self.session.link is not None:
            self.session.link.server.close_needed = True
        if self._has_joined:
            self.session.leave(DONE, now)

    # --- the rest of a transport ----------------------------------------------------------------------------------------
    def close(self) -> None:
        self.over()

    def abort(self) -> None:
        self.over()

    def pause_reading(self) -> None:
        return None

    def resume_reading(self) -> None:
        return None
