"""Containers whose members know where they stand."""

from __future__ import annotations

import pytest

from pgpool_proxy.errors import IllegalTransition
from pgpool_proxy.pool.containers import Member, StateList


def filled(count: int) -> tuple[StateList, list[Member]]:
    container = StateList("cl_waiting")
    members = [Member() for _ in range(count)]
    for member in members:
        container.append(member)
    return container, members


def test_members_stand_in_the_order_of_joining() -> None:
    container, members = filled(3)
    assert container.members() == members == list(container)
    assert (container.first, container.last, container.count) == (members[0], members[2], 3)
    assert all(member.home is container for member in members)


@pytest.mark.parametrize("leaver", [0, 1, 2])
def test_a_member_may_leave_from_any_place(leaver: int) -> None:
    container, members = filled(3)
    gone = members.pop(leaver)
    container.remove(gone)
    assert container.members() == members
    assert (container.first, container.last, container.count) == (members[0], members[-1], 2)
    assert (gone.home, gone.before, gone.after) == (None, None, None)


def test_a_container_that_everybody_left_is_empty() -> None:
    container, members = filled(2)
    for member in members:
        container.remove(member)
    assert (container.first, container.last, container.count) == (None, None, 0)
    container.append(members[1])
    assert container.members() == [members[1]]


def test_nobody_stands_in_two_containers() -> None:
    container, members = filled(1)
    other = StateList("cl_active")
    with pytest.raises(IllegalTransition, match="cl_active while it stands in cl_waiting"):
        other.append(members[0])
    with pytest.raises(IllegalTransition, match="leaves cl_active"):
        other.remove(members[0])
    assert (container.count, other.count) == (1, 0)


def test_members_may_come_and_go_during_a_walk() -> None:
    container, members = filled(4)
    for member in container:
        container.remove(member)
    assert container.count == 0
    assert len(members) == 4


def test_a_container_shows_its_name_and_count() -> None:
    assert repr(filled(2)[0]) == "<StateList cl_waiting 2>"
