"""The auth_file: any text is read without surprise, and what is written reads back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pgpool_proxy.auth.secret import Secret
from pgpool_proxy.auth.userlist import format_entry, parse_userlist

WRITTEN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
FILES = st.text(st.sampled_from('"" ;\n\r\tab\0,\u00a0'), max_size=60) | st.text(max_size=60)


@given(FILES)
def test_any_text_is_read_without_an_exception(text):
    users, problems = parse_userlist(text, "users.txt")
    assert len(problems) <= 1
    assert all(isinstance(secret, Secret) for secret in users.values())
    assert all(1 <= problem.line <= text.count("\n") + 1 for problem in problems)


@given(st.dictionaries(WRITTEN.filter(bool), WRITTEN, max_size=6))
def test_what_is_written_reads_back(passwords):
    text = "".join(format_entry(user, Secret.of(password)) for user, password in passwords.items())
    assert parse_userlist(text) == ({user: Secret.of(password) for user, password in passwords.items()}, [])


@given(st.dictionaries(WRITTEN.filter(bool), WRITTEN, min_size=1, max_size=4), FILES)
def test_what_stands_before_an_error_is_kept(passwords, tail):
    text = "".join(format_entry(user, password) for user, password in passwords.items())
    users, _ = parse_userlist(text + "x" + tail)
    assert list(users) == list(passwords)
