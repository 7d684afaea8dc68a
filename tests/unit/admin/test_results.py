"""results.py: values in both formats."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.types.numeric import NumericBinaryLoader

from pgpool_proxy.admin.results import INT4, INT8, NUMERIC, TEXT, Column, binary, row_description, text


@given(st.integers(min_value=-(10**30), max_value=10**30))
def test_a_numeric_in_binary_is_what_a_driver_reads(value: int) -> None:
    data = binary(NUMERIC, value)
    assert data is not None
    assert NumericBinaryLoader(1700).load(data) == Decimal(value)


@given(st.integers(min_value=-(10**12), max_value=10**12), st.integers(min_value=0, max_value=9))
def test_a_numeric_with_a_fraction_is_read_with_its_scale(value: int, places: int) -> None:
    number = Decimal(value).scaleb(-places)
    data = binary(NUMERIC, number)
    assert data is not None
    assert NumericBinaryLoader(1700).load(data) == number
    assert int.from_bytes(data[6:8], "big") == places
    assert text(NUMERIC, number) == f"{number:f}".encode()


@pytest.mark.parametrize("value", [0, 1, 9_999, 10_000, 10_001, 100_000_000, 123_400_000_000, -20_000])
def test_a_numeric_sends_no_zero_digits_at_its_end(value: int) -> None:
    data = binary(NUMERIC, value)
    assert data is not None
    assert NumericBinaryLoader(1700).load(data) == Decimal(value)
    assert len(data) == 8 or data[-2:] != b"\0\0"
    assert int.from_bytes(data[:2], "big") == (len(data) - 8) // 2


def test_whole_numbers_in_binary_have_the_size_of_their_type() -> None:
    assert binary(INT4, -2) == b"\xff\xff\xff\xfe"
    assert binary(INT8, 1 << 40) == (1 << 40).to_bytes(8, "big")


def test_a_number_that_does_not_fit_is_the_largest_that_does() -> None:
    assert text(INT4, 1 << 40) == b"2147483647"
    assert binary(INT4, -(1 << 40)) == b"\x80\0\0\0"
    assert text(NUMERIC, 1 << 80) == b"%d" % (1 << 80)


def test_text_is_the_same_in_both_formats() -> None:
    assert text(TEXT, "größe") == binary(TEXT, "größe") == "größe".encode()
    assert text(TEXT, None) is None
    assert binary(INT4, None) is None


def test_a_name_that_is_not_utf8_is_printed_as_utf8_all_the_same() -> None:
    assert text(TEXT, b"caf\xe9".decode("utf-8", "surrogateescape")) == b"caf?"


def test_a_row_description_has_a_format_for_each_column() -> None:
    found = row_description((Column("a", TEXT), Column("b", INT4)), (0, 1))
    assert found == (
        b"T\0\0\0\x2e\0\x02"
        b"a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0"
        b"b\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\x01"
    )
