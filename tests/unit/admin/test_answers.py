"""answers.py: what a console is told when several workers were given its order."""

from __future__ import annotations

import json

import pytest

from pgpool_proxy.admin import control
from pgpool_proxy.admin.answers import NOBODY, Answer, Missing, from_json, merge_answers, to_json, to_undo
from pgpool_proxy.errors import CANCELED, Report

LATE, GONE = Missing.LATE, Missing.GONE
BAD_FILE = control.RELOAD_FAILED.with_detail("a.ini:3: pool_mode: expected one of session, transaction, statement")


def notice(message: str, detail: str = "") -> Report:
    return Report(message, "00000", "NOTICE", detail)


def merged(order: str, *answers: Answer) -> Report | None:
    return merge_answers(order, dict(enumerate(answers, 1)), 5)


def test_what_all_have_done_is_done() -> None:
    assert merged("PAUSE", None, None, None) is None
    assert merged("SET", None) is None


@pytest.mark.parametrize("report", [control.ALREADY_PAUSED, BAD_FILE, control.error("no such database: x"), CANCELED])
def test_what_all_refuse_is_refused_in_their_words(report: Report) -> None:
    assert merged("PAUSE", report, report) == report


def test_who_refused_what_others_did_is_named() -> None:
    assert merged("PAUSE", None, control.ALREADY_PAUSED, None, control.ALREADY_PAUSED) == control.error(
        "already suspended/paused (workers 2 and 4)", detail="done by workers 1 and 3"
    )


def test_different_refusals_are_told_apart() -> None:
    found = merged("RELOAD", BAD_FILE, control.SET_FAILED.with_detail("no"), BAD_FILE)
    assert found == Report(
        f"{BAD_FILE.message} (workers 1 and 3); SET failed (worker 2)",
        BAD_FILE.sqlstate,
        "ERROR",
        f"workers 1 and 3: {BAD_FILE.detail}; worker 2: no",
    )


def test_the_detail_of_a_refusal_stays() -> None:
    found = merged("RELOAD", None, BAD_FILE)
    assert found is not None
    assert found.message == f"{BAD_FILE.message} (worker 2)"
    assert found.detail == f"{BAD_FILE.detail}; done by worker 1"


def test_who_does_not_answer_is_named() -> None:
    assert merged("RELOAD", None, LATE, None) == control.error(
        "worker 2 did not answer within 5 s", "40003", "done by workers 1 and 3"
    )
    assert merged("RELOAD", LATE, GONE, LATE) == control.error(
        "worker 1 did not answer within 5 s; worker 3 did not answer within 5 s; worker 2 ended before it answered", "40003"
    )


def test_a_refusal_and_a_silence_are_both_told() -> None:
    found = merged("DISABLE", control.error("no such database: x"), LATE)
    assert found == control.error("no such database: x (worker 1); worker 2 did not answer within 5 s")


def test_a_pause_that_one_gave_up_has_the_same_words_and_is_undone_in_the_others() -> None:
    answers: dict[int, Answer] = {1: None, 2: control.TIMED_OUT, 3: None}
    found = merge_answers("PAUSE", answers, 5)
    assert found == control.TIMED_OUT.with_detail("not done in worker 2")
    assert to_undo("PAUSE", answers) == [1, 3]


def test_what_resume_has_ended_needs_no_undoing() -> None:
    answers: dict[int, Answer] = {1: None, 2: control.ENDED_BY_RESUME}
    found = merge_answers("PAUSE", answers, 5)
    assert found is not None
    assert found.message == control.ENDED_BY_RESUME.message
    assert to_undo("PAUSE", answers) == []


def test_a_refused_pause_stays_where_it_was_done() -> None:
    assert to_undo("PAUSE", {1: None, 2: control.ALREADY_PAUSED}) == []
    assert to_undo("WAIT_CLOSE", {1: None, 2: control.TIMED_OUT}) == []


# --- orders that one worker can carry out for all -----------------------------------------------------------------------------
def test_a_client_is_killed_when_the_worker_that_has_it_did() -> None:
    assert merged("KILL_CLIENT", control.CLIENT_NOT_FOUND, None, LATE) is None
    assert merged("kill_client", control.CLIENT_NOT_FOUND, control.CLIENT_NOT_FOUND) == control.CLIENT_NOT_FOUND


def test_a_client_that_may_be_where_nobody_answers_is_not_said_to_be_unknown() -> None:
    found = merged("KILL_CLIENT", control.CLIENT_NOT_FOUND, LATE)
    assert found is not None
    assert "worker 2 did not answer within 5 s" in found.message


def test_resume_is_done_when_somebody_was_paused() -> None:
    assert merged("RESUME", control.NOT_PAUSED, None, control.error("no such database: auto")) is None
    assert merged("RESUME", control.NOT_PAUSED, control.NOT_PAUSED) == control.NOT_PAUSED
    found = merged("RESUME", None, LATE)
    assert found == control.error("worker 2 did not answer within 5 s", "40003", "done by worker 1")


# --- notices, and the way between processes -----------------------------------------------------------------------------------
def test_a_notice_of_all_is_said_once() -> None:
    assert merged("SHUTDOWN", notice("a", "b"), notice("a", "b")) == notice("a", "b")


def test_notices_of_some_are_said_with_their_names() -> None:
    assert merged("SET", None, notice("a"), notice("b"), notice("a")) == notice("a (workers 2 and 4); b (worker 3)")


def test_nobody_is_there() -> None:
    assert merge_answers("PAUSE", {}, 5) == NOBODY


@pytest.mark.parametrize("report", [None, BAD_FILE, Report("m", "12345", "NOTICE", "d", "h"), Report("caf\udce9")])
def test_a_report_comes_through_json(report: Report | None) -> None:
    assert from_json(json.loads(json.dumps(to_json(report)))) == report
