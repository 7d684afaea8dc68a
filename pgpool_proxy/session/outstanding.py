"""Answers that are still expected from a server, in order, and what to do with each: FORWARD, SKIP or FAKE. HOT.

Theory of operation
-------------------
Each request that has an answer is an entry, a number: the message type in the low 8 bits, then what to do, then flags, then the
number of the prepared statement that it is about. FORWARD passes the answer on; SKIP swallows the answer to a request that
we put in ourselves; FAKE marks an answer that no server gives: it is sent when everything before it has been answered.

A request that changes what we believe about prepared statements has a `Pending` note beside it (flag NOTED), which says how to
take the belief back when the request fails, or is discarded because something before it in the pipeline failed.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from pgpool_proxy.session.prepared_statements import Prepared, Statement
from pgpool_proxy.wire.codes import COPY_DONE, FUNCTION_CALL, QUERY, SYNC

KIND_MASK: Final = 0xFF
FORWARD: Final = 0
SKIP: Final = 1 << 8
FAKE: Final = 2 << 8
ACTION_MASK: Final = 3 << 8
NOTED: Final = 1 << 10
UNNAMED: Final = 1 << 11  # a Parse or Close of the unnamed statement
NAMED: Final = 1 << 12  # the client's name is kept beside it
NOTED_QUERY: Final = QUERY | NOTED
NUMBER_SHIFT: Final = 13

NOTHING: Final = -1
KEPT_ENTRIES: Final = 64  # places that stay when the queue is empty; of names fewer, since they hold on to what stood in them
KEPT_NAMES: Final = 4

PARSED: Final = 0  # the client's Parse: gives the client a name and the server a statement
PARSE_FAKED: Final = 1  # the client's Parse of what the server has: gives the client a name
PARSE_INJECTED: Final = 2  # our own Parse: gives the server a statement
PARSE_DUPLICATE: Final = 3  # the client's Parse of a name that it has: the server is made to refuse it
CLOSE_FAKED: Final = 4  # the client's Close: took a name away
CLOSE_INJECTED: Final = 5  # our own Close of an evicted statement
PARSE_REFUSED: Final = 8  # our own Parse of nonsense, whose error is answered to a Parse that there is no room for
UNNAMED_INJECTED: Final = 7  # our own Parse or Close of the unnamed statement
UNNAMED_PARSED: Final = 6  # the client's unnamed Parse behind other requests: replaced an older one


class Pending:
    """What a noted request did, so that it can be taken back."""

    def __init__(
        self,
        what: i64,
        name: bytes = b"",
        statement: Statement | None = None,
        prepared: Prepared | None = None,
        unnamed: bytes | None = None,
    ) -> None:
        self.what: i64 = what
        self.name = name
        self.statement = statement
        self.prepared = prepared
        self.unnamed = unnamed


class Outstanding:
    """The queue of one server. `skipping` is True from an error in the extended protocol until the client's next Sync."""

    def __init__(self) -> None:
        self._entries: list[int] = []  # places, taken from _head to _tail: a list that empties costs a malloc
        self._head: i64 = 0
        self._tail: i64 = 0
        self._notes: list[Pending] = []
        self._note_head: i64 = 0
        self._names: list[bytes] = []  # the client's names of NAMED entries' statements, in order, in places like those
        self._name_head: i64 = 0
        self._name_tail: i64 = 0
        self.skipping: bool = False
        self._unsettled: bool = False  # a Sync follows a note that is not settled yet
        self._queries: i64 = 0
        self._syncs: i64 = 0

    @property
    def status_is_open(self) -> bool:
        """True when a ReadyForQuery is to come that may bring another transaction status."""
        return self._syncs > 0 or self._queries > 0

    @property
    def is_uncertain(self) -> bool:
        """True when the names of prepared statements may still change by what was sent before the last Sync or Query."""
        return self._unsettled or self._queries > 0

    @property
    def is_empty(self) -> bool:
        return self._head == self._tail

    def __len__(self) -> int:
        return int(self._tail - self._head)

    def _append(self, entry: i64) -> None:
        if self._tail < len(self._entries):
            self._entries[self._tail] = int(entry)
        else:
            self._entries.append(int(entry))
        self._tail += 1

    def push(self, entry: i64) -> None:
        self._append(entry)
        if entry == QUERY:
            self._queries += 1
        elif entry == SYNC:
            self._syncs += 1
            if self._note_head != len(self._notes):
                self._unsettled = True

    def push_named(self, entry: i64, name: bytes) -> None:
        """A Bind or Describe of a statement whose name was turned over."""
        self._append(entry | NAMED)
        if self._name_tail < len(self._names):
            self._names[self._name_tail] = name
        else:
            self._names.append(name)
        self._name_tail += 1

    def push_noted(self, entry: i64, note: Pending) -> None:
        self._append(entry | NOTED)
        self._notes.append(note)
        if entry == QUERY:
            self._queries += 1

    def head(self) -> i64:
        """The entry whose answer comes next, or NOTHING."""
        if self._head == self._tail:
            return NOTHING
        return self._entries[self._head]

    def pop(self) -> None:
        entry: i64 = self._entries[self._head]
        if entry == QUERY or entry == NOTED_QUERY:
            self._queries -= 1
        elif entry == SYNC:
            self._syncs -= 1
        elif entry & NAMED:
            self._name_head += 1
            if self._name_head == self._name_tail:
                self._name_head = self._name_tail = 0
                if len(self._names) > KEPT_NAMES:
                    self._names.clear()
        self._head += 1
        if self._head == self._tail:
            self._head = self._tail = 0
            if len(self._entries) > KEPT_ENTRIES:
                self._entries.clear()
        elif self._head >= 1024 and self._head * 2 >= self._tail:
            del self._entries[: self._head]
            self._tail -= self._head
            self._head = 0

    def pop_note(self) -> Pending:
        """The note of the entry that was at the head; to be called once for each NOTED entry, in order."""
        note = self._notes[self._note_head]
        self._note_head += 1
        if self._note_head == len(self._notes):
            self._notes.clear()
            self._note_head = 0
            self._unsettled = False
        elif self._note_head >= 1024 and self._note_head * 2 >= len(self._notes):
            del self._notes[: self._note_head]
            self._note_head = 0
        return note

    def last_kind(self) -> i64:
        """Message type of the newest entry, or NOTHING."""
        if self._head == self._tail:
            return NOTHING
        newest: i64 = self._entries[self._tail - 1]
        return newest & KIND_MASK

    @property
    def ends_with_ready(self) -> bool:
        """True when the newest entry is answered with ReadyForQuery, unless an error before it lets it be skipped."""
        kind = self.last_kind()
        return kind == QUERY or kind == SYNC or kind == FUNCTION_CALL

    def first_note(self) -> Pending:
        """The note of the entry at the head, which stays."""
        return self._notes[self._note_head]

    def first_name(self) -> bytes:
        """The client's name of the statement that the Bind or Describe at the head is about."""
        return self._names[self._name_head]

    def fake_follows(self) -> bool:
        """True when an answer of our own is due right behind the answer to the head."""
        at: i64 = self._head + 1
        size = self._tail
        while at < size:
            entry: i64 = self._entries[at]
            if entry & KIND_MASK != COPY_DONE:
                return entry & ACTION_MASK == FAKE
            at += 1
        return False

    def drop_copy_ends(self) -> None:
        """CopyDone and CopyFail have no answer of their own: those at the head are done with."""
        while self._head != self._tail and (self._entries[self._head] & KIND_MASK) == COPY_DONE:
            self.pop()

    def copy_in_begins(self) -> bool:
        """The server went into COPY IN for the entry at the head. True: the client has already ended it.

        PostgreSQL ignores Sync while it reads copy data, so those which were sent ahead get no ReadyForQuery.
        """
        kept = self._entries[self._head : self._head + 1]
        at: i64 = self._head + 1
        size = self._tail
        ended = False
        while at < size:
            entry = self._entries[at]
            kind: i64 = entry & KIND_MASK
            at += 1
            if kind == SYNC:
                self._syncs -= 1
                continue
            if kind == COPY_DONE:
                ended = True
                break
            kept.append(entry)
        kept.extend(self._entries[at:size])
        self._entries = kept
        self._head = 0
        self._tail = len(kept)
        return ended

    def clear(self) -> None:
        self._entries.clear()
        self._notes.clear()
        self._names.clear()
        self._head = self._tail = self._note_head = self._name_head = self._name_tail = 0
        self._queries = self._syncs = 0
        self._unsettled = False
        self.skipping = False
