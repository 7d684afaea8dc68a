"""`pgpool-proxy passwd`: what it writes is what the daemon reads, and what it does not touch stays as it is."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgpool_proxy.auth.secret import Secret
from pgpool_proxy.auth.userlist import parse_userlist
from pgpool_proxy.process import passwd

NAMES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20)


def run(monkeypatch: pytest.MonkeyPatch, typed: str, *arguments: object) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed + "\n"))
    return passwd.main([str(argument) for argument in arguments])


@pytest.mark.parametrize(("method", "kind"), [("scram-sha-256", "scram"), ("md5", "md5"), ("plain", "plain")])
def test_an_entry_that_was_written_is_checked_and_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str, kind: str
) -> None:
    file = tmp_path / "users.txt"
    assert run(monkeypatch, 'se"cret', "-f", file, "-m", method, "alice") == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    users, problems = parse_userlist(file.read_text())
    assert (list(users), problems, users["alice"].kind) == (["alice"], [], kind)
    assert run(monkeypatch, 'se"cret', "-f", file, "--check", "alice") == 0
    assert run(monkeypatch, "another", "-f", file, "--check", "alice") == 1


def test_scram_is_the_default_and_no_two_secrets_are_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert run(monkeypatch, "secret", "alice") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first != second
    assert first.startswith('"alice" "SCRAM-SHA-256$4096:')


def test_comments_other_users_and_the_mode_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "users.txt"
    file.write_text('; head\n"alice" "old"\n"bob" "b" rest\n\n"alice" "older"\n; tail')
    file.chmod(0o640)
    assert run(monkeypatch, "new", "-f", file, "-m", "plain", "alice") == 0
    assert file.read_text() == '; head\n"bob" "b" rest\n\n"alice" "new"\n; tail\n'
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert run(monkeypatch, "", "-f", file, "--delete", "bob") == 0
    assert list(parse_userlist(file.read_text())[0]) == ["alice"]


@pytest.mark.parametrize(
    ("typed", "arguments"),
    [
        ("", ["alice"]),
        ("secret", []),
        ("secret", ["alice", "bob"]),
        ("secret", ["--check", "alice"]),
        ("secret", ["-i", "0", "alice"]),
        ("md5" + "0" * 32, ["-m", "plain", "alice"]),
        ("x" * 70_000, ["alice"]),
    ],
)
def test_what_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, arguments: list[str]
) -> None:
    assert run(monkeypatch, typed, *arguments) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("pgpool-proxy passwd: ")
    assert not typed or typed not in told.err


def test_a_broken_file_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "users.txt"
    file.write_text('"alice" "x"\n"bob\n')
    assert run(monkeypatch, "new", "-f", file, "carol") == 1
    assert file.read_text() == '"alice" "x"\n"bob\n'


@given(st.dictionaries(NAMES, NAMES, max_size=5), st.dictionaries(NAMES, st.none() | NAMES, max_size=5))
def test_merging_changes_just_these_users(before: dict[str, str], change: dict[str, str | None]) -> None:
    from pgpool_proxy.auth.userlist import format_entry

    text = "; head\n" + "".join(format_entry(name, secret) for name, secret in before.items())
    secrets = {name: None if secret is None else Secret.of(secret) for name, secret in change.items()}
    users, problems = parse_userlist(passwd.merged(text, secrets))
    expected = {name: Secret.of(secret) for name, secret in before.items()} | secrets
    assert problems == []
    assert users == {name: secret for name, secret in expected.items() if secret is not None}
