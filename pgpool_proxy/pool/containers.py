"""Containers whose members know where they stand, so that joining, leaving and counting cost nothing that grows. HOT.

A member is in one container at a time: that is what makes "every server in exactly one container" true by construction.
"""

from __future__ import annotations

from collections.abc import Iterator

from mypy_extensions import i64

from pgpool_proxy.errors import IllegalTransition


class Member:
    """Something that can stand in one `StateList`."""

    def __init__(self) -> None:
        self.home: StateList | None = None
        self.before: Member | None = None
        self.after: Member | None = None


class StateList:
    """Members in order of joining; `count` is what SHOW POOLS prints."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count: i64 = 0
        self.first: Member | None = None
        self.last: Member | None = None

    def append(self, member: Member) -> None:
        """Join at the end. Raises `IllegalTransition` when it stands in a container already."""
        if member.home is not None:
            raise IllegalTransition(f"{member!r} joins {self.name} while it stands in {member.home.name}")
        member.home = self
        last = self.last
        member.before = last
        if last is None:
            self.first = member
        else:
            last.after = member
        self.last = member
        self.count += 1

    def remove(self, member: Member) -> None:
        """Leave. Raises `IllegalTransition` when it does not stand here."""
        if member.home is not self:
            raise IllegalTransition(f"{member!r} leaves {self.name}, where it does not stand")
        before = member.before
        after = member.after
        if before is None:
            self.first = after
        else:
            before.after = after
        if after is None:
            self.last = before
        else:
            after.before = before
        member.home = None
        member.before = None
        member.after = None
        self.count -= 1

    def members(self) -> list[Member]:
        """A copy in order: for walks during which members may come and go."""
        found: list[Member] = []
        member = self.first
        while member is not None:
            found.append(member)
            member = member.after
        return found

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members())

    def __repr__(self) -> str:
        return f"<StateList {self.name} {self.count}>"
