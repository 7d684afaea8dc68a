"""SHOW WORKERS: the processes that serve. What one of them says of itself and what its supervisor says of it make one row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple
from decimal import Decimal
from typing import Any, Final

from pgpool_proxy.admin.control import Row, Source, WorkerFigures

COLUMNS: Final = "worker pid state:text clients servers leases cpu_seconds:numeric memory:int8 restarts"


def records(figures: Iterable[WorkerFigures]) -> Iterator[tuple[Any, ...]]:
    """As a part of the table (merge.py)."""
    return (astuple(one) for one in figures)


def own_records(source: Source) -> Iterator[tuple[Any, ...]]:
    return records(source.workers())


def combined(figures: Iterable[WorkerFigures]) -> list[WorkerFigures]:
    """One for each worker, by number. Where several say something of the same one, the first who knows it is believed."""
    found: dict[int, list[Any]] = {}
    for one in figures:
        values = astuple(one)
        known = found.setdefault(one.number, list(values))
        known[:] = [value if old is None else old for old, value in zip(known, values, strict=True)]
    return [WorkerFigures(*found[number]) for number in sorted(found)]


def workers(figures: Iterable[WorkerFigures]) -> Iterator[Row]:
    """The rows; CPU time to a hundredth of a second."""
    for one in figures:
        cpu = None if one.cpu_seconds is None else Decimal(f"{one.cpu_seconds:.2f}")
        yield (one.number, one.pid, one.state, one.clients, one.servers, one.leases, cpu, one.memory, one.restarts)
