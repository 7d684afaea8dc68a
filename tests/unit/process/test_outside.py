"""LDAP with a directory made up here: who is asked for, and what a user costs that there is not."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from pgpool_proxy.process.outside import Question, answer

PEOPLE = {"uid=alice,ou=people,dc=x": "secret", "uid=mallory,dc=x": "mallorys", "cn=admin,dc=x": "root"}
FOUND = {"(uid=alice)": ["uid=alice,ou=people,dc=x"], "(uid=twin)": ["uid=alice,ou=people,dc=x", "uid=mallory,dc=x"]}
SEARCH = {"ldapserver": "directory", "ldapbasedn": "dc=x", "ldapbinddn": "cn=admin,dc=x", "ldapbindpasswd": "root"}


class LDAPException(Exception):
    pass


@pytest.fixture
def binds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Each bind that was tried: (name, password)."""
    tried: list[tuple[str, str]] = []

    class Connection:
        def __init__(self, server: object, user: str, password: str, **_: object) -> None:
            self.user, self.password = user, password
            self.response: list[dict[str, str]] = []

        def bind(self) -> bool:
            tried.append((self.user, self.password))
            return PEOPLE.get(self.user) == self.password

        def search(self, base: str, text: str, **_: object) -> None:
            self.response = [{"type": "searchResEntry", "dn": name} for name in FOUND.get(text, [])]

        def unbind(self) -> None:
            pass

    def made(*_: object, **__: object) -> None:
        return None

    fake = SimpleNamespace(
        Tls=made, Server=made, Connection=Connection, NONE=0, SIMPLE=1, ANONYMOUS=2, SUBTREE=3,
        core=SimpleNamespace(exceptions=SimpleNamespace(LDAPException=LDAPException)),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "ldap3", fake)
    return tried


def test_who_is_found_is_bound_as(binds: list[tuple[str, str]]) -> None:
    assert answer(Question("ldap", "alice", "", SEARCH), b"secret") == (True, "")
    assert answer(Question("ldap", "alice", "", SEARCH), b"wrong") == (False, "")
    assert [name for name, _ in binds] == ["cn=admin,dc=x", "uid=alice,ou=people,dc=x"] * 2


@pytest.mark.parametrize("user", ["nobody", "twin", "mallory"])
def test_a_user_that_is_not_found_costs_a_bind_as_well(binds: list[tuple[str, str]], user: str) -> None:
    """And is refused whatever comes of it: uid=mallory,dc=x is somebody whom the search does not find."""
    proved, problem = answer(Question("ldap", user, "", SEARCH), b"mallorys")
    assert not proved
    assert "the search found" in problem
    assert [name for name, _ in binds] == ["cn=admin,dc=x", f"uid={user},dc=x"]
