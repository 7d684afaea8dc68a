"""One answer of several: what a console is told of an order that went to all workers. How long to wait for them is not decided
here.

An order is done when all have done it; KILL_CLIENT when the worker that has the client did, and RESUME when somebody was
paused. What all refuse alike is refused in their words; otherwise the answer names who refused, and who did not answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, replace
from enum import Enum
from typing import Any, Final, TypeAlias

from pgpool_proxy.admin.control import error
from pgpool_proxy.errors import Report

NOTICE: Final = "NOTICE"
GIVEN_UP: Final = "57014"  # timed out, cancelled, ended by RESUME: nothing stays as it was ordered
UNKNOWN_END: Final = "40003"  # statement_completion_unknown
NOBODY: Final = error("no worker is running", "57P03")
ANY_WILL_DO: Final = ("KILL_CLIENT", "RESUME")
NEEDS_ITS_OWNER: Final = "KILL_CLIENT"  # when that has done it, the others' silence does not matter


class Missing(Enum):
    """Why there is no answer of a worker."""

    LATE = "late"
    GONE = "gone"


Answer: TypeAlias = Report | Missing | None


def merge_answers(order: str, answers: Mapping[int, Answer], timeout_s: float) -> Report | None:
    """The answer to an order (the name of its command) of workers by number; `timeout_s` is how long they were waited for."""
    order = order.upper()
    done = sorted([number for number, answer in answers.items() if _is_done(answer)])
    refused = {number: answer for number, answer in sorted(answers.items()) if is_refused(answer)}
    missing = {number: answer for number, answer in sorted(answers.items()) if isinstance(answer, Missing)}
    if not answers:
        return NOBODY
    if done and order in ANY_WILL_DO:
        refused = {}
        if order == NEEDS_ITS_OWNER:
            missing = {}
    if not refused and not missing:
        return _noticed({number: answers[number] for number in done})
    return _failed(done, refused, missing, timeout_s)


def to_undo(order: str, answers: Mapping[int, Answer]) -> list[int]:
    """Who has to RESUME, since another worker gave the same order up: in one process all of it would have been undone."""
    if order.upper() not in ("PAUSE", "SUSPEND"):
        return []
    given_up = [answer for answer in answers.values() if isinstance(answer, Report) and answer.sqlstate == GIVEN_UP]
    if not given_up or any("ended by RESUME" in report.message for report in given_up):
        return []
    return sorted([number for number, answer in answers.items() if _is_done(answer)])


def _is_done(answer: Answer) -> bool:
    return answer is None or (isinstance(answer, Report) and answer.severity == NOTICE)


def is_refused(answer: Answer) -> bool:
    """Not done, and said so."""
    return isinstance(answer, Report) and answer.severity != NOTICE


# --- texts ------------------------------------------------------------------------------------------------------------------
def _failed(
    done: Sequence[int], refused: Mapping[int, Answer], missing: Mapping[int, Answer], timeout_s: float
) -> Report:
    groups = _alike(refused, lambda report: (report.message, report.sqlstate))
    silent = [
        *(f"{_who([n])} did not answer within {timeout_s:g} s" for n, why in missing.items() if why is Missing.LATE),
        *(f"{_who([n])} ended before it answered" for n, why in missing.items() if why is Missing.GONE),
    ]
    if not groups:
        return error("; ".join(silent), UNKNOWN_END, _done_by(done))
    first = groups[0][0]
    if first.sqlstate == GIVEN_UP:
        named = [first.message]
        details = [f"not done in {_who(numbers)}" for _, numbers in groups] if done else []
    elif len(groups) == 1 and not done and not silent:
        named = [first.message]
        details = _details(refused)
    else:
        named = [f"{report.message} ({_who(numbers)})" for report, numbers in groups]
        details = [*_details(refused), _done_by(done)]
    return replace(first, message="; ".join([*named, *silent]), detail="; ".join([text for text in details if text]))


def _noticed(answers: Mapping[int, Answer]) -> Report | None:
    """Done; with what there is to be said about it."""
    groups = _alike(answers, lambda report: (report.message, report.sqlstate))
    if not groups:
        return None
    if len(groups) == 1 and len(groups[0][1]) == len(answers):
        return replace(groups[0][0], detail="; ".join(_details(answers)))
    texts = [f"{report.message} ({_who(numbers)})" for report, numbers in groups]
    return replace(groups[0][0], message="; ".join(texts), detail="; ".join(_details(answers)))


def _alike(answers: Mapping[int, Answer], of: Callable[[Report], object]) -> list[tuple[Report, list[int]]]:
    """Reports that say the same, each once, with those who say it."""
    found: dict[object, tuple[Report, list[int]]] = {}
    for number, answer in answers.items():
        if isinstance(answer, Report):
            found.setdefault(of(answer), (answer, []))[1].append(number)
    return list(found.values())


def _details(answers: Mapping[int, Answer]) -> list[str]:
    """What the reports add, with the names of those who add it where they differ."""
    groups = [(report.detail, numbers) for report, numbers in _alike(answers, lambda report: report.detail) if report.detail]
    if len(groups) == 1:
        return [groups[0][0]]
    return [f"{_who(numbers)}: {detail}" for detail, numbers in groups]


def _done_by(numbers: Sequence[int]) -> str:
    return f"done by {_who(numbers)}" if numbers else ""


def _who(numbers: Sequence[int]) -> str:
    """"worker 2", "workers 1, 2 and 4"."""
    names = [str(number) for number in numbers]
    if len(names) == 1:
        return f"worker {names[0]}"
    return f"workers {', '.join(names[:-1])} and {names[-1]}"


# --- between processes --------------------------------------------------------------------------------------------------------
def to_json(report: Report | None) -> list[str] | None:
    """A report as JSON carries it."""
    return None if report is None else list(astuple(report))


def from_json(values: Iterable[Any] | None) -> Report | None:
    return None if values is None else Report(*[str(value) for value in values])
