"""The queue of answers that are still expected."""

from __future__ import annotations

from pgpool_proxy.session.outstanding import (
    FAKE,
    KIND_MASK,
    NAMED,
    NOTED,
    NOTHING,
    NUMBER_SHIFT,
    PARSED,
    SKIP,
    Outstanding,
    Pending,
)
from pgpool_proxy.wire.codes import BIND, CLOSE, COPY_DONE, EXECUTE, PARSE, QUERY, SYNC


def filled(*entries: int) -> Outstanding:
    outstanding = Outstanding()
    for entry in entries:
        outstanding.push(entry)
    return outstanding


def kinds(outstanding: Outstanding) -> list[int]:
    found = []
    while not outstanding.is_empty:
        found.append(int(outstanding.head()) & KIND_MASK)
        outstanding.pop()
    return found


def test_answers_are_expected_in_the_order_of_the_requests() -> None:
    outstanding = filled(PARSE, BIND, EXECUTE, SYNC)
    assert len(outstanding) == 4
    assert outstanding.last_kind() == SYNC
    assert kinds(outstanding) == [PARSE, BIND, EXECUTE, SYNC]
    assert outstanding.is_empty
    assert (outstanding.head(), outstanding.last_kind()) == (NOTHING, NOTHING)


def test_an_entry_carries_what_to_do_and_the_number_of_its_statement() -> None:
    entry = PARSE | SKIP | 70_000 << NUMBER_SHIFT
    outstanding = filled(entry)
    assert outstanding.head() == entry
    assert outstanding.head() & KIND_MASK == PARSE
    assert outstanding.head() >> NUMBER_SHIFT == 70_000


def test_notes_belong_to_their_entries_in_order() -> None:
    outstanding = Outstanding()
    notes = [Pending(PARSED, b"%d" % at) for at in range(3)]
    for note in notes:
        outstanding.push_noted(PARSE, note)
        outstanding.push(BIND)
    assert outstanding.head() & NOTED
    assert outstanding.first_note() is notes[0]
    for note in notes:
        outstanding.pop()
        assert outstanding.pop_note() is note
        assert not outstanding.head() & NOTED
        outstanding.pop()


def test_names_belong_to_their_entries_in_order() -> None:
    outstanding = Outstanding()
    for name in (b"a", b"b"):
        outstanding.push_named(BIND, name)
        outstanding.push(EXECUTE)
    assert outstanding.head() & NAMED
    assert outstanding.first_name() == b"a"
    outstanding.pop()
    outstanding.pop()
    assert outstanding.first_name() == b"b"


def test_a_long_pipeline_keeps_its_order_and_its_memory_bounded() -> None:
    outstanding = Outstanding()
    for at in range(20_000):
        outstanding.push(at << NUMBER_SHIFT | BIND)
        outstanding.push_noted(at << NUMBER_SHIFT | PARSE, Pending(PARSED, b"%d" % at))
        if at >= 100:
            assert outstanding.head() >> NUMBER_SHIFT == at - 100
            outstanding.pop()
            outstanding.pop()
            assert outstanding.pop_note().name == b"%d" % (at - 100)
    assert len(outstanding) == 200
    assert len(outstanding._entries) < 5000
    assert len(outstanding._notes) < 5000


def test_a_fake_that_is_due_next_is_seen_behind_the_ends_of_copies() -> None:
    assert filled(EXECUTE, PARSE | FAKE).fake_follows()
    assert filled(EXECUTE, COPY_DONE, PARSE | FAKE).fake_follows()
    assert not filled(EXECUTE, BIND, PARSE | FAKE).fake_follows()
    assert not filled(EXECUTE).fake_follows()
    assert not filled(EXECUTE, COPY_DONE).fake_follows()


def test_the_ends_of_copies_have_no_answer() -> None:
    outstanding = filled(COPY_DONE, COPY_DONE, SYNC, COPY_DONE)
    outstanding.drop_copy_ends()
    assert kinds(outstanding) == [SYNC, COPY_DONE]


def test_a_sync_that_was_sent_into_a_copy_gets_no_answer() -> None:
    outstanding = filled(EXECUTE, SYNC)
    assert not outstanding.copy_in_begins()
    assert kinds(outstanding) == [EXECUTE]


def test_a_copy_that_was_ended_ahead_swallows_the_syncs_before_its_end_only() -> None:
    outstanding = filled(EXECUTE, SYNC, COPY_DONE, SYNC, QUERY)
    assert outstanding.copy_in_begins()
    assert kinds(outstanding) == [EXECUTE, SYNC, QUERY]


def test_a_copy_begins_in_the_middle_of_a_pipeline_that_was_answered_in_part() -> None:
    outstanding = filled(PARSE, BIND, EXECUTE, SYNC, COPY_DONE, SYNC)
    outstanding.pop()
    outstanding.pop()
    assert outstanding.copy_in_begins()
    assert kinds(outstanding) == [EXECUTE, SYNC]


def test_a_status_is_open_while_a_ready_for_query_is_to_come() -> None:
    for entry in (QUERY, SYNC):
        outstanding = filled(entry)
        assert outstanding.status_is_open
        outstanding.pop()
        assert not outstanding.status_is_open
    assert not filled(BIND).status_is_open
    copying = filled(EXECUTE, SYNC)
    copying.copy_in_begins()
    assert not copying.status_is_open


def test_names_are_uncertain_while_a_sync_stands_behind_a_note() -> None:
    outstanding = Outstanding()
    outstanding.push_noted(PARSE, Pending(PARSED, b"a"))
    assert not outstanding.is_uncertain
    outstanding.push(SYNC)
    assert outstanding.is_uncertain
    outstanding.pop()
    outstanding.pop_note()
    assert not outstanding.is_uncertain
    assert filled(QUERY).is_uncertain


def test_a_queue_of_a_lost_server_is_as_new() -> None:
    outstanding = Outstanding()
    outstanding.push_noted(PARSE, Pending(PARSED, b"a"))
    outstanding.push_named(BIND, b"a")
    outstanding.push(SYNC)
    outstanding.push(QUERY)
    outstanding.skipping = True
    outstanding.clear()
    assert outstanding.is_empty
    assert not outstanding.skipping
    assert not outstanding.status_is_open
    assert not outstanding.is_uncertain
    outstanding.push_named(BIND, b"b")
    assert outstanding.first_name() == b"b"
    outstanding.push_noted(CLOSE, Pending(PARSED, b"c"))
    assert outstanding.first_note().name == b"c"


def test_places_of_a_queue_that_has_emptied_are_used_again() -> None:
    outstanding = Outstanding()
    for turn in range(3):
        for number in range(5):
            outstanding.push_named(BIND | number << NUMBER_SHIFT, b"%d-%d" % (turn, number))
            outstanding.push(EXECUTE)
        outstanding.push(SYNC)
        for number in range(5):
            assert outstanding.first_name() == b"%d-%d" % (turn, number)
            assert int(outstanding.head()) >> NUMBER_SHIFT == number
            outstanding.pop()
            outstanding.pop()
        assert outstanding.last_kind() == SYNC
        assert len(outstanding) == 1
        outstanding.pop()
        assert outstanding.is_empty
        assert outstanding.head() == outstanding.last_kind() == NOTHING
        assert not outstanding.fake_follows()


def test_a_short_queue_after_a_long_one_has_nothing_of_it() -> None:
    outstanding = filled(*[EXECUTE] * 3, SYNC)
    for _ in range(4):
        outstanding.pop()
    outstanding.push(QUERY)
    assert kinds(outstanding) == [QUERY]
    outstanding.push(BIND)
    assert not outstanding.copy_in_begins()
    outstanding.push(SYNC)
    assert kinds(outstanding) == [BIND, SYNC]
    outstanding.push(SYNC)
    outstanding.clear()
    assert outstanding.is_empty
    assert len(filled(*[EXECUTE] * 5000)) == 5000
