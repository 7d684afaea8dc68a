"""Statements that clients share: who holds them, what each server has."""

from __future__ import annotations

from pgpool_proxy.session.prepared_statements import PREFIX, ClientStatements, ServerStatements, Statement, Statements
from pgpool_proxy.wire import frontend


def names(server: ServerStatements) -> list[bytes]:
    return [one.name for one in server._prepared.values()]


def test_one_text_is_one_statement_for_everybody() -> None:
    statements = Statements()
    one, other = statements.find_fresh(b"select 1\0\0\0"), statements.find_fresh(b"select 1\0\0\0")
    assert one is other
    assert one.name == PREFIX + b"1"
    assert statements.find_fresh(b"select 1\0\0\1\0\0\0\x17").name == PREFIX + b"2"
    assert statements.numbered(1) is one
    assert statements.numbered(9) is None


def test_a_statement_that_nobody_holds_is_forgotten() -> None:
    statements = Statements()
    statement = statements.find_fresh(b"x")
    statements.find_fresh(b"x")
    statements.let_go(statement)
    assert len(statements) == 1
    statements.let_go(statement)
    assert len(statements) == 0
    assert statements.numbered(1) is None
    assert statements.find_fresh(b"x").name == PREFIX + b"2", "a number is never used for another statement"


def test_after_a_change_of_tables_a_text_is_planned_anew() -> None:
    statements = Statements()
    old = statements.find_fresh(b"x")
    statements.tables_changed()
    new = statements.find_fresh(b"x")
    assert new is not old
    assert new.name != old.name
    statements.let_go(old)
    assert statements.find_fresh(b"x") is new, "the older one does not take the newer one with it"


def test_a_renamed_statement_is_prepared_nowhere() -> None:
    statements = Statements()
    server = ServerStatements(statements)
    statement = statements.find_fresh(b"x")
    server.add(statement)
    old = statement.name
    statements.rename(statement)
    assert statement.name != old
    assert not server.has(statement)
    assert statements.numbered(2) is statement
    assert statements.numbered(1) is None
    server.clear()
    statements.let_go(statement)
    assert len(statements) == 0


def test_the_statement_that_was_used_longest_ago_gives_way() -> None:
    statements = Statements()
    server = ServerStatements(statements)
    made: list[Statement] = [statements.find_fresh(b"%d" % at) for at in range(3)]
    for statement in made:
        server.add(statement)
    assert server.has(made[0])
    assert server.surplus(3) is None
    evicted = server.surplus(2)
    assert evicted is not None
    assert evicted.statement is made[1]
    assert names(server) == [made[0].name, made[2].name]
    assert made[1].holders == 1
    server.restore(evicted)
    assert server.has(made[1])
    assert made[1].holders == 2


def test_a_server_that_is_gone_holds_nothing() -> None:
    statements = Statements()
    server = ServerStatements(statements)
    for at in range(3):
        statement = statements.find_fresh(b"%d" % at)
        server.add(statement)
        statements.let_go(statement)
    assert len(statements) == len(server) == 3
    server.remove(2)
    server.remove(2)
    assert len(statements) == len(server) == 2
    server.clear()
    assert len(statements) == len(server) == 0


def test_a_client_has_its_own_names() -> None:
    statements = Statements()
    alice, bob = ClientStatements(statements), ClientStatements(statements)
    alice.put(b"s", statements.find_fresh(b"x"))
    bob.put(b"s", statements.find_fresh(b"y"))
    assert alice.get(b"s") is not bob.get(b"s")
    removed = alice.remove(b"s")
    assert removed is not None
    assert alice.remove(b"s") is None
    assert alice.get(b"s") is None
    assert len(statements) == 1
    bob.clear()
    assert len(bob) == len(statements) == 0


def test_a_close_that_did_not_happen_gives_the_name_back_unless_it_is_taken() -> None:
    statements = Statements()
    client = ClientStatements(statements)
    old = statements.find_fresh(b"x")
    client.put(b"s", old)
    old.holders += 1  # the note of the Close
    client.remove(b"s")
    client.put_back(b"s", old)
    assert client.get(b"s") is old
    assert old.holders == 2
    client.put_back(b"s", statements.find_fresh(b"y"))
    assert client.get(b"s") is old


def test_what_a_million_distinct_texts_leave_behind_is_nothing() -> None:
    statements = Statements()
    server = ServerStatements(statements)
    for at in range(3000):
        statement = statements.find_fresh(b"select %d" % at)
        server.surplus(99)
        server.add(statement)
        statements.let_go(statement)
    assert len(server) == len(statements) == 100


def test_the_head_of_a_bind_is_that_of_its_size_and_of_the_name_in_force() -> None:
    statements = Statements()
    statement = statements.find_fresh(b"x")
    for rest in (0, 10, 10, 300, 10):
        assert statement.bind_head(rest) == frontend.bind_head(b"", PREFIX + b"1", rest)
    statements.rename(statement)
    assert statement.bind_head(10) == frontend.bind_head(b"", PREFIX + b"2", 10)
    assert statements.numbered(1) is None
    assert statements.numbered(2) is statement
