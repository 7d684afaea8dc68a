"""Who leaves a process that another one follows, and what has to be over before it says that all have left."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from pgpool_proxy.process.departure import Departure


def departure(timeout_s: float = 0.0, **worker: Any) -> Departure:
    registry = SimpleNamespace(login_clients=SimpleNamespace(count=worker.pop("logins", 0)), pools={})
    standing = SimpleNamespace(clock=lambda: 100.0, registry=registry, **{"has_arrivals": False, **worker})
    return Departure(cast(Any, standing), timeout_s)


@pytest.mark.parametrize("who", [{"has_arrivals": True}, {"logins": 1}])
def test_who_has_just_been_let_in_is_waited_for(who: dict[str, Any]) -> None:
    """A worker that says it is empty is ended, and its counters are taken as they are then."""
    assert not departure().move_all(101.0)
    assert departure(**who).move_all(101.0)
    assert departure(5.0, **who).move_all(101.0)
    assert not departure(5.0, **who).move_all(105.0)
