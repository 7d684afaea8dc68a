"""auth_failure_ban: ten in a row, for so long, and no more memory than is allowed."""

from __future__ import annotations

import pytest

from pgpool_proxy.process.failed_logins import FAILURES, MAX_ADDRESSES, FailedLogins, origin_of


def banned(ban_s: float = 60.0) -> FailedLogins:
    failed = FailedLogins()
    failed.configure(0, ban_s)
    for number in range(FAILURES):
        assert not failed.is_banned("10.0.0.1", 100)
        assert failed.failed("10.0.0.1", 100) == (number == FAILURES - 1)
    return failed


def test_ten_failures_in_a_row_ban_an_address_and_no_other() -> None:
    failed = banned()
    assert failed.is_banned("10.0.0.1", 159)
    assert not failed.is_banned("10.0.0.2", 159)


def test_a_ban_ends_and_leaves_nothing_behind() -> None:
    failed = banned()
    assert not failed.is_banned("10.0.0.1", 160)
    assert repr(failed) == "<FailedLogins addresses=0>"


def test_a_success_forgives() -> None:
    failed = FailedLogins()
    failed.configure(0, 60)
    for _ in range(3):
        for _ in range(FAILURES - 1):
            assert not failed.failed("10.0.0.1", 0)
        failed.succeeded("10.0.0.1")
    assert not failed.is_banned("10.0.0.1", 0)


def test_failures_that_are_far_apart_do_not_add_up() -> None:
    failed = FailedLogins()
    failed.configure(0, 60)
    assert not any(failed.failed("10.0.0.1", number * 61) for number in range(FAILURES * 2))


def test_it_is_off_without_a_time_and_forgets_when_switched_off() -> None:
    failed = FailedLogins()
    assert not any(failed.failed("10.0.0.1", 0) for _ in range(FAILURES * 2))
    failed = banned()
    failed.configure(0, 0)
    assert not failed.is_banned("10.0.0.1", 100)


def test_what_it_remembers_is_bounded() -> None:
    failed = banned()
    for number in range(MAX_ADDRESSES):
        failed.failed(f"a{number}", 101)
    assert repr(failed) == f"<FailedLogins addresses={MAX_ADDRESSES}>"
    assert not failed.is_banned("10.0.0.1", 101)


def test_an_ipv6_network_of_64_bits_counts_as_one_address() -> None:
    """A single machine has all of it for the asking."""
    failed = FailedLogins()
    failed.configure(0, 60)
    for number in range(FAILURES):
        assert failed.failed(f"2001:db8:0:7::{number:x}", 0) == (number == FAILURES - 1)
    assert failed.is_banned("2001:db8:0:7:ffff:ffff:ffff:ffff", 1)
    assert not failed.is_banned("2001:db8:0:8::1", 1)
    assert failed.succeeded("2001:db8:0:7::1")
    assert not failed.is_banned("2001:db8:0:7::1", 1)


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
        ("no:address", "no:address"),
    ],
)
def test_whom_an_address_belongs_to(address: str, origin: str) -> None:
    assert origin_of(address) == origin
