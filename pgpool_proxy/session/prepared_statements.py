"""Prepared statements that clients share: query text -> statement -> its name on the servers. HOT in `find` and `has`.

Clients name their statements as they like; two clients that prepare the same text with the same parameter types mean the same
`Statement`, which has one name on all servers (`PGPOOL_<n>`). Each server remembers which of them it has, the least recently
used ones give way. A statement that no client and no server holds is forgotten.

What clients hold is bounded (`limit`, max_prepared_memory), and none of them may have more than half of it. What only servers
hold is bounded by their number and max_prepared_statements.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from pgpool_proxy.wire import frontend

PREFIX: Final = b"PGPOOL_"
STATEMENT_COST: Final = 512  # bytes that a statement takes beside its text, and a client's name for one beside the name:
NAME_COST: Final = 128  # together some 600 on CPython 3.11, and the dictionaries' spare places


def server_name(number: i64) -> bytes:
    """The name on servers of the statement with this number."""
    return PREFIX + b"%d" % int(number)


class Statement:
    """One query text with its parameter types. `rest` is the body of its Parse after the name."""

    def __init__(self, rest: bytes, number: i64) -> None:
        self.rest = rest
        self.number: i64 = number
        self.name: bytes = server_name(number)
        self.holders: i64 = 0
        self.names: i64 = 0  # clients' names for it
        self.epoch: i64 = 0  # of `Statements`, when it was first prepared
        self.hints: i64 = -1  # of its text (state_texts.py), once somebody has asked
        self._head: bytes = b""  # of the last Bind
        self._head_rest: i64 = -1

    def __repr__(self) -> str:
        return f"<Statement {self.name!r} holders={self.holders}>"

    def bind_head(self, rest: i64) -> bytes:
        """The head of a Bind to the unnamed portal, which `rest` bytes follow: drivers mostly send values of the same sizes."""
        if rest != self._head_rest:
            self._head = frontend.bind_head(b"", self.name, int(rest))
            self._head_rest = rest
        return self._head

    def rename(self, number: i64) -> None:
        self.number = number
        self.name = server_name(number)
        self._head_rest = -1


class Statements:
    """All statements of this process."""

    def __init__(self) -> None:
        self._by_rest: dict[bytes, Statement] = {}
        self._by_number: dict[int, Statement] = {}
        self._numbers: i64 = 0
        self._step: i64 = 1
        self._epoch: i64 = 0
        self.size: i64 = 0  # bytes that the statements which clients hold take, names included
        self.limit: i64 = 0  # of `size`; 0: none

    def __len__(self) -> int:
        return len(self._by_rest)

    def find_fresh(self, rest: bytes) -> Statement:
        """The statement of this text, made if there is none since tables have changed last. The caller holds it (`let_go`).

        Who holds an older one of the same text keeps it, and learns from the server that its plan is stale.
        """
        found = self._by_rest.get(rest)
        if found is None or found.epoch != self._epoch:
            self._numbers += self._step
            found = Statement(rest, self._numbers)
            found.epoch = self._epoch
            self._by_rest[rest] = found
            self._by_number[int(found.number)] = found
        found.holders += 1
        return found

    def has_room(self, known: ClientStatements | None, name: bytes, rest: bytes) -> bool:
        """May a client whose statements are `known` have one more? A text that others hold costs its own share all the same."""
        if self.limit == 0:
            return True
        cost = len(name) + len(rest) + NAME_COST + STATEMENT_COST
        own = known.size if known is not None else 0
        if (own + cost) * 2 > self.limit:
            return False
        found = self._by_rest.get(rest)
        if found is not None and found.names > 0:
            cost = len(name) + NAME_COST
        return self.size + cost <= self.limit

    def tables_changed(self) -> None:
        """DDL went by: what is prepared from now on must be planned anew."""
        self._epoch += 1

    def numbered(self, number: i64) -> Statement | None:
        return self._by_number.get(int(number))

    def last_number(self) -> i64:
        return self._numbers

    def number_from(self, number: i64) -> None:
        """Names up to `number` are in use on servers that we take over."""
        while self._numbers < number:
            self._numbers += (number - self._numbers + self._step - 1) // self._step * self._step

    def number_by(self, first: i64, step: i64) -> None:
        """Several processes share servers: `first`, `first` + `step`, and so on are ours."""
        self._numbers = first - step
        self._step = step

    def taken_over(self, rest: bytes, number: i64) -> Statement:
        """A statement that another process has numbered. The caller holds it (`let_go`)."""
        found = self._by_number.get(int(number))
        if found is None or found.rest != rest:
            found = Statement(rest, number)
            found.epoch = self._epoch
            self._by_number[int(number)] = found
            if rest not in self._by_rest:
                self._by_rest[rest] = found
        found.holders += 1
        return found

    def let_go(self, statement: Statement) -> None:
        """One holder less; the last one takes the statement with it."""
        statement.holders -= 1
        if statement.holders <= 0:
            if self._by_rest.get(statement.rest) is statement:
                del self._by_rest[statement.rest]
            self._by_number.pop(int(statement.number), None)

    def rename(self, statement: Statement) -> None:
        """The plans of this statement are stale everywhere: under its new name each server prepares it anew."""
        self._by_number.pop(int(statement.number), None)
        self._numbers += self._step
        statement.rename(self._numbers)
        self._by_number[int(statement.number)] = statement


class Prepared:
    """A statement as one server has it: under the name that it had when it was prepared there."""

    def __init__(self, statement: Statement, used: i64) -> None:
        self.statement = statement
        self.name: bytes = statement.name
        self.number: i64 = statement.number
        self.used: i64 = used


class ServerStatements:
    """What one server has prepared: at most `max_prepared_statements`, checked when one is added."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements
        self._prepared: dict[int, Prepared] = {}
        self._clock: i64 = 0

    def __len__(self) -> int:
        return len(self._prepared)

    def has(self, statement: Statement) -> bool:
        """Is it prepared under its present name? Counts as a use."""
        found = self._prepared.get(int(statement.number))
        if found is None:
            return False
        self._clock += 1
        found.used = self._clock
        return True

    def add(self, statement: Statement) -> None:
        self._clock += 1
        statement.holders += 1
        self._prepared[int(statement.number)] = Prepared(statement, self._clock)

    def everything(self) -> list[Prepared]:
        """Least recently used first."""
        return sorted(self._prepared.values(), key=_last_use)

    def restore(self, prepared: Prepared) -> None:
        """An eviction that did not happen: the server still has it."""
        prepared.statement.holders += 1
        self._prepared[int(prepared.number)] = prepared

    def remove(self, number: i64) -> None:
        found = self._prepared.pop(int(number), None)
        if found is not None:
            self._statements.let_go(found.statement)

    def surplus(self, limit: i64) -> Prepared | None:
        """The least recently used statement when there are more than `limit`; it is no longer counted as prepared."""
        if len(self._prepared) <= limit:
            return None
        oldest: Prepared | None = None
        for prepared in self._prepared.values():
            if oldest is None or prepared.used < oldest.used:
                oldest = prepared
        if oldest is not None:
            self.remove(oldest.number)
        return oldest

    def clear(self) -> None:
        """The server has none left (DEALLOCATE ALL, DISCARD ALL), or is gone."""
        prepared = list(self._prepared.values())
        self._prepared.clear()
        for one in prepared:
            self._statements.let_go(one.statement)


def _last_use(prepared: Prepared) -> i64:
    return prepared.used


class ClientStatements:
    """The statements that one client has prepared, by the client's own names."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements
        self._by_name: dict[bytes, Statement] = {}
        self.size: i64 = 0  # bytes, as if it had all of its texts for itself

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: bytes) -> Statement | None:
        return self._by_name.get(name)

    def everything(self) -> list[tuple[bytes, Statement]]:
        return list(self._by_name.items())

    def put(self, name: bytes, statement: Statement) -> None:
        """`name` means `statement`, whose hold (`Statements.find`) goes over to this map."""
        self._by_name[name] = statement
        self._count(name, statement)

    def _count(self, name: bytes, statement: Statement) -> None:
        self.size += len(name) + NAME_COST + len(statement.rest) + STATEMENT_COST
        self._statements.size += len(name) + NAME_COST
        if statement.names == 0:
            self._statements.size += len(statement.rest) + STATEMENT_COST
        statement.names += 1

    def _discount(self, name: bytes, statement: Statement) -> None:
        self.size -= len(name) + NAME_COST + len(statement.rest) + STATEMENT_COST
        self._statements.size -= len(name) + NAME_COST
        statement.names -= 1
        if statement.names == 0:
            self._statements.size -= len(statement.rest) + STATEMENT_COST

    def put_back(self, name: bytes, statement: Statement) -> None:
        """A Close that did not happen."""
        if name not in self._by_name:
            statement.holders += 1
            self._by_name[name] = statement
            self._count(name, statement)

    def remove(self, name: bytes) -> Statement | None:
        found = self._by_name.pop(name, None)
        if found is not None:
            self._discount(name, found)
            self._statements.let_go(found)
        return found

    def clear(self) -> None:
        held = self._by_name
        self._by_name = {}
        for name, statement in held.items():
            self._discount(name, statement)
            self._statements.let_go(statement)
