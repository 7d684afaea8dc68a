"""A client and a server joined: relays both ways, decides when the server is free again. pool_mode lives here. HOT.

Theory of operation
-------------------
Each server has one `Link`, which is open while `client` is set. `take` joins; when the client's tracked parameters differ from
the server's, they are set first and the client's bytes wait. `from_client` notes each request in `outstanding`
and passes the chunk on as it is, except for messages about prepared statements, which `requests.note` turns over. `from_server`
settles each answer against the queue: forwards, swallows, or adds what is faked.

phase        the link is ...
FREE         open for the next client
PREPARING    setting the client's parameters; its bytes wait
LINKED       relaying
STALLED      the client's next message depends on answers that are still to come; its bytes wait
RECOVERING   left by its client in the middle of something; being brought back to a clean state (recovery.py)
ENDING       clean, but the server has only a part of the client's last message (of CopyData behind a COPY that failed, mostly)
PROBING      pinned, and asking the server whether it still has to be (session_state.py); the client's bytes wait

The server is free when ReadyForQuery said 'I', nothing is outstanding, no COPY IN is under way and the server's stream stands
between two messages (`ready`): then, in transaction and statement mode, the link ends at the end of the chunk. In session mode
it ends with the client; for a pinned client (session_state = pin), when the server has nothing of it any more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.errors import Report
from pgpool_proxy.pool.pool import IGNORE, SESSION, STATEMENT
from pgpool_proxy.session import answers, recovery, requests, session_state, statement_text, usage
from pgpool_proxy.session.outstanding import (
    ACTION_MASK,
    FAKE,
    FORWARD,
    KIND_MASK,
    NOTED,
    NOTHING,
    SKIP,
    UNNAMED_PARSED,
    Outstanding,
    Pending,
)
from pgpool_proxy.session.parameters import Parameters
from pgpool_proxy.session.session_state import PROBING, SessionState
from pgpool_proxy.wire import frontend
from pgpool_proxy.wire.backend import CLOSE_COMPLETE_MESSAGE, PARSE_COMPLETE_MESSAGE
from pgpool_proxy.wire.codes import (
    COPY_DATA,
    COPY_DONE,
    COPY_FAIL,
    DATA_ROW,
    EXECUTE,
    FLUSH,
    FUNCTION_CALL,
    HEADER_SIZE,
    NOTICE_RESPONSE,
    NOTIFICATION_RESPONSE,
    PARAMETER_STATUS,
    PARSE,
    QUERY,
    READY_FOR_QUERY,
    ROW_DESCRIPTION,
    STATUS_FAILED,
    STATUS_IDLE,
    STATUS_IN_TRANSACTION,
    SYNC,
    TERMINATE,
)
from pgpool_proxy.wire.framing import NO_BULK, Framer

if TYPE_CHECKING:
    from pgpool_proxy.session.client_session import ClientSession
    from pgpool_proxy.session.server_session import ServerSession

FREE: Final = 0
PREPARING: Final = 1
LINKED: Final = 2
RECOVERING: Final = 3
STALLED: Final = 4
ENDING: Final = 5

OWN_QUERY: Final = QUERY | SKIP
JOIN_LIMIT: Final = 65536  # parts of a chunk are joined into one write up to this size


class Link:
    """See the module's theory of operation."""

    def __init__(self, server: ServerSession) -> None:
        self.server: ServerSession = server
        self.client: ClientSession | None = None
        self.outstanding: Outstanding = Outstanding()
        self.from_client_framer: Framer = Framer(COPY_DATA)
        self.from_server_framer: Framer = Framer(DATA_ROW)
        self.phase: i64 = FREE
        self.lease: i64 = 0  # counts the clients that have had the server: a late cancel must not meet the next one
        self.ready: bool = True
        self.copy_in: bool = False
        self.rewrites: bool = False  # prepared statements of the protocol are shared (not in session mode)
        self.is_session: bool = False  # session mode: the server stays with its client
        self.keeps: bool = False  # the server stays with its client: in session mode, or for as long as the client is pinned
        self.watch: bool = False  # what the client leaves behind is watched: session_state is not ignore
        self.session_state: SessionState = SessionState()
        self.status: i64 = STATUS_IDLE
        self.query_start: float = 0.0
        self.xact_start: float = 0.0
        self.counted_at: float = 0.0  # see usage.py; so far the transaction under way is counted
        self.received: i64 = 0  # bytes of the query under way
        self.sent: i64 = 0
        self.status_time: float = 0.0  # when the last ReadyForQuery came
        self.cancel_time: float = 0.0  # when the query was cancelled by us: for a timeout, or because its client left
        self.rolled_back: bool = False  # a ROLLBACK was sent for a client that has left
        self.saw_ddl: bool = False  # the transaction has changed tables: plans may be stale after it
        self.saw_reset: bool = False  # RESET was run: what it reports is answered with the client's own values
        self.held_back: bytes = b""  # a query of our own that waits until no cancel can meet it
        self.before_reset: Parameters | None = None  # the parameters before it; None: all of them were reset (DISCARD ALL)
        self.text: bytes = b""  # of the statement under way, where the log may want it (Context.text_chars)
        self.mark: i64 = 0  # the chunk under way is passed on up to here
        self.parts: list[bytes] = []  # what goes out instead of the bytes before `mark`

    # --- joining and parting ------------------------------------------------------------------------------------------
    def take(self, client: ClientSession, now: float) -> None:
        """The pool has given our server to `client`."""
        server = self.server
        limits = server.pool.limits
        self.client = client
        self.lease += 1
        self.phase = LINKED
        client.link = self
        self.is_session = self.keeps = limits.pool_mode == SESSION
        self.rewrites = limits.pool_mode != SESSION and limits.max_prepared_statements > 0
        self.watch = limits.session_state != IGNORE and session_state.begin(self, limits)
        self.from_client_framer.max_length = server.context.max_packet_size
        if client.write_full:
            server.block(now)
        if server.write_full:
            client.block_for_server()
        if client.parameters is not server.parameters:
            sql = server.context.tracked.difference(client.parameters, server.parameters)
            if sql:
                self.prepare(sql)
                return
        client.go_on(self, now)

    def prepare(self, sql: bytes) -> None:
        """Give the server the client's parameters before anything else; the client's bytes wait for that."""
        self.phase = PREPARING
        self.run(sql)

    def stall(self, client: ClientSession) -> None:
        """What the client's framer stands at waits until everything before it has been answered."""
        self.phase = STALLED
        framer = self.from_client_framer
        rest = framer.put_back()
        client.put_aside(rest)
        self.server.pool.stats.bytes_received -= len(rest)  # counts when it comes back
        if not self.outstanding.ends_with_ready:
            requests.leave_out(self, framer.start, framer.start)
            self.parts.append(frontend.FLUSH_MESSAGE)  # else there would be no end of the answers

    def run(self, sql: bytes) -> None:
        """Run a query of our own, whose answer nobody sees; `done` follows its ReadyForQuery.

        A CancelRequest that is still under way was meant for what the client has sent: the query waits for its end.
        """
        self.ready = False
        if self.server.cancels:
            self.held_back = sql
            return
        self.from_server_framer.bulk = NO_BULK
        self.outstanding.push(OWN_QUERY)
        self.server.write(frontend.query(sql))

    def cancels_ended(self) -> None:
        """No CancelRequest for the server is under way any more."""
        sql = self.held_back
        if sql:
            self.held_back = b""
            self.run(sql)

    def done(self, now: float) -> None:
        """Our own query has been answered: parameters are set, or what a client left behind is rolled back."""
        self.from_server_framer.bulk = DATA_ROW
        client = self.client
        if self.phase == RECOVERING:
            recovery.go_on(self, now)
        elif self.phase == PROBING:
            session_state.verified(self, now)
        elif client is not None:
            self.phase = LINKED
            self.ready = self.status == STATUS_IDLE
            server = self.server
            if server.parameters.extras != client.parameters.extras:
                server.parameters = server.context.tracked.with_extras(server.parameters, client.parameters.extras)
            client.parameters = server.parameters
            if self.watch:
                session_state.verify(self)
            if self.phase == LINKED:
                client.go_on(self, now)
        if self.server.cancel is not None:
            self.server.cancel.go_on(now)

    def parameters_refused(self, report: Report, now: float) -> None:
        """The server does not take the client's parameters, or the ROLLBACK for one that has left."""
        client = self.client
        if client is None:
            raise errors.ProtocolViolation(errors.CLIENT_LEFT_EARLY.with_detail(report.message))
        if report.severity == "ERROR":
            report = replace(report, severity="FATAL")
        unchanged = self.server.parameters
        client.fail(report, now)
        self.server.parameters = unchanged

    def part(self) -> None:
        """End the link; the server's state is the caller's affair."""
        client = self.client
        if client is not None:
            client.pending = self.from_client_framer.take_kept()
            if client.pending:
                self.server.pool.stats.bytes_received -= len(client.pending)
            client.link = None
            self.client = None
            client.unblock_for_server()
            self.server.unblock()
        self.from_client_framer.reset()
        self.query_start = 0.0
        self.xact_start = 0.0
        self.received = 0
        self.sent = 0
        self.cancel_time = 0.0
        self.rolled_back = False
        self.saw_ddl = False
        self.saw_reset = False
        self.before_reset = None
        self.held_back = b""
        self.phase = FREE
        self.copy_in = False
        if self.parts:
            self.parts.clear()

    def client_gone(self, now: float) -> None:
        """The client has left: the server is kept if it is clean or can be made so, and closed otherwise."""
        server = self.server
        if server.pool.main is not None:
            self.part()
            server.disconnect(errors.REPLICATION_CLOSED, now)
            return
        if self.held_back:  # nobody needs it any more
            self.held_back = b""
            self.phase = LINKED
            self.ready = self.status == STATUS_IDLE
        idle = self.outstanding.is_empty
        if self.ready and idle and self.from_server_framer.at_boundary and not self.from_client_framer.remaining:
            self.end(now)
            return
        if server.context.cancel_on_disconnect and recovery.begin(self, now):
            return
        self.part()
        server.disconnect(errors.CLIENT_LEFT_EARLY if idle else errors.CLIENT_LEFT_IN_QUERY, now)

    @property
    def is_over(self) -> bool:
        """True when there is nothing that a CancelRequest could still cancel, now or behind a query of our own."""
        return self.phase == FREE or (self.outstanding.is_empty and not self.held_back)

    @property
    def runs_own(self) -> bool:
        """True while a query of our own runs, or waits for the end of a CancelRequest."""
        return self.outstanding.head() == OWN_QUERY or self.held_back != b""

    # --- client to server -----------------------------------------------------------------------------------------------
    def from_client(self, data: bytes, now: float) -> None:
        """A chunk of the linked client. Raises `ProtocolViolation`; `spare_from_client` is for what stood before it."""
        client = self.client
        if client is None:
            return
        if self.phase != LINKED:
            if self.phase == ENDING:
                self._finish_message(client, data, now)
            else:
                client.put_aside(data)
            return
        server = self.server
        stats = server.pool.stats
        stats.bytes_received += len(data)
        self.received += len(data)
        framer = self.from_client_framer
        if not framer.feed(data):
            return
        outstanding = self.outstanding
        first = framer.pos
        self.mark = 0
        leaving = False
        while framer.next():
            kind = framer.kind
            if kind == QUERY:
                if client.context.disable_pqexec:
                    raise errors.ProtocolViolation(errors.PQEXEC_DISALLOWED)
                if framer.may_be(HEADER_SIZE, requests.LETTER_D) and not requests.query(self, client):
                    break
                if self.watch and not session_state.query(self, client):
                    break
                if not outstanding.skipping:
                    if framer.stop != self.mark:
                        if client.unnamed is not None and not outstanding.is_empty:
                            outstanding.push_noted(QUERY, Pending(UNNAMED_PARSED, unnamed=client.unnamed))
                        else:
                            outstanding.push(QUERY)
                        server.unnamed = None
                    client.unnamed = None
            elif kind == SYNC:
                if not self.copy_in:
                    outstanding.push(SYNC)
                    outstanding.skipping = False
            elif kind == EXECUTE:
                if not outstanding.skipping:
                    outstanding.push(EXECUTE)
            elif requests.CONCERNS_STATEMENTS[kind]:
                if not requests.note(self, client):
                    break
            elif kind == COPY_DONE or kind == COPY_FAIL:
                if self.copy_in:
                    self.copy_in = False
                elif not outstanding.is_empty:
                    outstanding.push(COPY_DONE)
            elif kind == FUNCTION_CALL:
                if not outstanding.skipping:
                    outstanding.push(FUNCTION_CALL)
            elif kind == TERMINATE:
                leaving = not self._stays_for_answers(client)
                break
            elif kind != FLUSH:
                raise errors.ProtocolViolation(errors.UNKNOWN_PACKET.with_detail(_shown(kind)))
        self._pass_on_to_server(framer)
        if leaving:
            client.leave(errors.CLIENT_CLOSE_REQUEST, now)
        elif self.query_start == 0.0 and not outstanding.is_empty:
            self.query_start = now
            if client.context.text_chars:
                self.text = statement_text.text_of(client, framer.data, first)
            client.request_time = now
            server.request_time = now
            stats.query_count += 1
            if self.xact_start == 0.0:
                self.xact_start = now
                stats.xact_count += 1
        elif outstanding.is_empty and self.ready and not self.keeps and not framer.is_holding and self.phase == LINKED:
            self.end(now)  # everything in the chunk was answered without the server

    def _stays_for_answers(self, client: ClientSession) -> bool:
        """The client says Terminate. As PostgreSQL, which is done with what stands before it when it reads that; what has no
        Sync is another matter."""
        outstanding = self.outstanding
        last = outstanding.last_kind()
        if self.copy_in or not (outstanding.status_is_open or last == FUNCTION_CALL):
            self.from_client_framer.put_back()
            return False
        self.stall(client)
        return True

    def spare_from_client(self) -> None:
        """`from_client` has raised: what stands before the message that is not to be is in the queue already, and goes out."""
        if self.phase == LINKED:
            self.from_client_framer.put_back()
            self._pass_on_to_server(self.from_client_framer)

    def _finish_message(self, client: ClientSession, data: bytes, now: float) -> None:
        """The rest of a message that the server has a part of; with its end the link ends, too."""
        framer = self.from_client_framer
        rest = framer.remaining
        if len(data) < rest:
            framer.remaining -= len(data)
            self.server.write(data)
            return
        framer.remaining = 0
        self.server.write(data[:rest])
        self.end(now)
        if len(data) > rest:
            client.received(data[rest:], now)

    def _pass_on_to_server(self, framer: Framer) -> None:
        """Write the chunk, as far as it is whole, with what was put in and left out."""
        mark = self.mark
        end = framer.end
        if self.parts:
            if end > mark:
                self.parts.append(framer.data[mark:end])
            self.ready = False
            self._write_parts_to_server()
        elif mark == 0 and end == framer.size:
            if end:
                self.ready = False
                self.server.write(framer.data)
        elif end > mark:
            self.ready = False
            self.server.write(framer.data[mark:end])

    def _write_parts_to_server(self) -> None:
        parts = self.parts
        self.parts = []
        size: i64 = 0
        for part in parts:
            size += len(part)
        if size <= JOIN_LIMIT:
            self.server.write(b"".join(parts))
            return
        for part in parts:
            self.server.write(part)

    # --- server to client -----------------------------------------------------------------------------------------------
    def from_server(self, data: bytes, now: float) -> None:
        """A chunk of the linked server. Raises `ProtocolViolation` when it says what no server says here."""
        framer = self.from_server_framer
        self.server.pool.stats.bytes_sent += len(data)
        self.sent += len(data)
        if not framer.feed(data):
            return
        outstanding = self.outstanding
        self.mark = 0
        ran = False
        while framer.next():
            kind = framer.kind
            head = outstanding.head()
            if kind == READY_FOR_QUERY:
                if not framer.hold():
                    break
                if self._ready_for_query(head, now):
                    ran = True
            elif kind == NOTICE_RESPONSE or kind == NOTIFICATION_RESPONSE:
                continue
            elif kind == PARAMETER_STATUS:
                if not framer.hold():
                    break
                answers.parameter_status(self, head)
            elif (head & KIND_MASK) == QUERY and (head & ACTION_MASK) == FORWARD and head != NOTHING:
                if kind != ROW_DESCRIPTION and not answers.in_query(self, kind):
                    break
            elif head == NOTHING:
                if not answers.unexpected(self, kind):
                    break
            elif not answers.in_pipeline(self, kind, head, now):
                break
        self._pass_on_to_client(framer)
        if ran:
            self.done(now)
        elif self.phase != LINKED and (outstanding.is_empty or self.copy_in):
            self._answered(now)
        if self.ready and framer.at_boundary and ((self.phase == LINKED and not self.keeps) or self.phase == RECOVERING):
            if self.from_client_framer.remaining:
                self.phase = ENDING
            else:
                self.end(now)

    def _answered(self, now: float) -> None:
        """Everything that was sent is answered, or the server waits for copy data: who has waited for that goes on."""
        if self.phase == STALLED:
            if self.client is not None:
                self.phase = LINKED
                self._resume(self.client, now)
        elif self.phase == RECOVERING and not self.ready and self.outstanding.is_empty and not self.held_back:
            recovery.pipeline_answered(self)

    def _resume(self, client: ClientSession, now: float) -> None:
        """What was stalled goes on. It is part of the query and of the transaction that what stood before it was counted as."""
        stats = self.server.pool.stats
        was_between = self.query_start == 0.0
        was_outside = self.xact_start == 0.0
        lease = self.lease
        client.go_on(self, now)
        if self.client is client and self.lease == lease:
            if was_between and self.query_start > 0.0:
                stats.query_count -= 1
            if was_outside and self.xact_start > 0.0:
                stats.xact_count -= 1

    def spare_from_server(self) -> None:
        """`from_server` has raised: the client gets what stands before the message that is not to be."""
        if self.phase != FREE:
            self.from_server_framer.put_back()
            self._pass_on_to_client(self.from_server_framer)

    def _ready_for_query(self, head: i64, now: float) -> bool:
        """Settle a ReadyForQuery. True: it ended the setting of parameters."""
        framer = self.from_server_framer
        outstanding = self.outstanding
        kind = head & KIND_MASK
        if head == NOTHING or (kind != QUERY and kind != SYNC and kind != FUNCTION_CALL) or framer.stop - framer.start != 6:
            raise errors.ProtocolViolation(errors.SERVER_PROTOCOL.with_detail("ReadyForQuery was not expected"))
        status: i64 = framer.data[framer.start + 5]
        if status != STATUS_IDLE and status != STATUS_IN_TRANSACTION and status != STATUS_FAILED:
            raise errors.ProtocolViolation(errors.SERVER_PROTOCOL.with_detail("ReadyForQuery with an unknown status"))
        self.status = status
        if head & NOTED:
            answers.drop_note(self, head)
        outstanding.pop()
        if head & ACTION_MASK == SKIP:
            self.leave_out(framer.start, framer.stop)
            return True
        self.settle_fakes()
        if self.watch:
            session_state.ready(self, status, now)
        elif outstanding.is_empty:
            self.end_of_query(status, now)
        return False

    def end_of_query(self, status: i64, now: float) -> None:
        server = self.server
        stats = server.pool.stats
        client = self.client
        self.status_time = now
        if self.query_start > 0.0:
            if client is not None:
                usage.count_query(self, client)
            took = i64((now - self.query_start) * 1_000_000)
            stats.query_time += took
            stats.queries.add(took)
            self.query_start = 0.0
            slow = server.context.slow_query_us
            if slow and took >= slow and client is not None:
                server.context.host.slow_query(client, self, took)
        self.cancel_time = 0.0
        if status == STATUS_IDLE:
            self.ready = not self.copy_in
            if self.saw_ddl:
                self.saw_ddl = False
                server.context.statements.tables_changed()
            if self.xact_start > 0.0:
                if client is not None:
                    usage.count_transaction(self, client, now)
                lasted = i64((now - self.xact_start) * 1_000_000)
                stats.xact_time += lasted
                stats.xacts.add(lasted)
                self.xact_start = 0.0
        elif server.pool.limits.pool_mode == STATEMENT and self.phase == LINKED:
            raise errors.ProtocolViolation(errors.NO_TRANSACTION_BLOCKS)
        if self.saw_reset:
            answers.after_reset(self)
        if self.phase == RECOVERING and not self.ready:
            recovery.go_on(self, now)

    def settle_fakes(self) -> None:
        """Answers that no server gives and whose turn has come go out after the message under way."""
        outstanding = self.outstanding
        head = outstanding.head()
        if head == NOTHING or (head & ACTION_MASK != FAKE and head & KIND_MASK != COPY_DONE):
            return
        framer = self.from_server_framer
        outstanding.drop_copy_ends()
        head = outstanding.head()
        while head != NOTHING and head & ACTION_MASK == FAKE:
            if framer.stop > self.mark:
                self.parts.append(framer.data[self.mark : framer.stop])
                self.mark = framer.stop
            self.parts.append(PARSE_COMPLETE_MESSAGE if head & KIND_MASK == PARSE else CLOSE_COMPLETE_MESSAGE)
            answers.drop_note(self, head)
            outstanding.pop()
            outstanding.drop_copy_ends()
            head = outstanding.head()

    def leave_out(self, start: i64, stop: i64) -> None:
        """Bytes of the server's chunk that the client must not see."""
        framer = self.from_server_framer
        if start > self.mark:
            self.parts.append(framer.data[self.mark : start])
        self.mark = stop

    def _pass_on_to_client(self, framer: Framer) -> None:
        client = self.client
        mark = self.mark
        end = framer.end
        if not self.parts:
            if client is not None:
                if mark == 0 and end == framer.size:
                    client.write(framer.data)
                elif end > mark:
                    client.write(framer.data[mark:end])
            else:
                self.server.pool.stats.bytes_sent -= len(framer.data)  # an answer that nobody waits for
            return
        if end > mark:
            self.parts.append(framer.data[mark:end])
        parts = self.parts
        self.parts = []
        if client is not None:
            client.write(b"".join(parts))

    def end(self, now: float) -> None:
        """The server is clean: part, and back to the pool, which may give it to the next client at once."""
        server = self.server
        self.part()
        if self.watch or self.is_session or server.pool.limits.server_reset_query_always:
            self._reset(now)
        else:
            server.pool.release(server, now)

    def _reset(self, now: float) -> None:
        """Before it goes back the server may have to be cleaned: by server_reset_query, for session_state, or both."""
        server = self.server
        limits = server.pool.limits
        queries: list[bytes] = []
        if limits.server_reset_query and (self.is_session or limits.server_reset_query_always):
            queries.append(limits.server_reset_query)
        touched = session_state.touched(self) if self.watch else 0
        if touched & session_state.LIBRARY:
            server.disconnect(errors.STATE_REMAINS, now)
        elif touched:
            again = server.connect_query
            if again:  # it may have left anything of its own: the server is made as new
                server.reset([session_state.EVERYTHING_GOES, *queries, again], now)
            else:
                server.reset([session_state.cleaning(touched), *queries], now)
        elif queries:
            server.reset(queries, now)
        else:
            server.pool.release(server, now)


def _shown(kind: i64) -> str:
    return f"'{chr(int(kind))}' (0x{int(kind):02x})" if 0x20 < kind < 0x7F else f"0x{int(kind):02x}"
