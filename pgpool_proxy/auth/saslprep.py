"""SASLprep (RFC 4013) of passwords as PostgreSQL does it. Knows only characters.

PostgreSQL departs from the RFC in three ways, kept here because both ends must derive the same key: pure ASCII passes
unchanged, the forbidden and right-to-left checks look at the text before normalization, and a password that SASLprep
refuses (or that is no UTF-8) is used as raw bytes. So is one of more than MAX_PREPARED bytes here: strangers type passwords
too, and normalizing takes time by the square of the length, 4 s for 64 kB of combining marks.
"""

from __future__ import annotations

import stringprep
import unicodedata
from typing import Final

MAX_PREPARED: Final = 1024  # bytes; the most that PostgreSQL took for a password up to 13


def saslprep(password: bytes) -> bytes:
    """The password as SCRAM derives keys from it; the bytes themselves where SASLprep does not apply."""
    if password.isascii() or len(password) > MAX_PREPARED:
        return password
    try:
        text = password.decode("utf-8")
    except UnicodeDecodeError:
        return password
    mapped = "".join(mapped_character(character) for character in text)
    if not mapped or any(is_forbidden(character) for character in mapped) or breaks_bidi(mapped):
        return password
    return unicodedata.normalize("NFKC", mapped).encode("utf-8")


def mapped_character(character: str) -> str:
    """RFC 4013 section 2.1: other spaces become a space, what is commonly mapped to nothing goes."""
    if stringprep.in_table_c12(character):
        return " "
    return "" if stringprep.in_table_b1(character) else character


def is_forbidden(character: str) -> bool:
    """RFC 4013 sections 2.3 and 2.5: forbidden output and code points that Unicode 3.2 had not assigned."""
    return (
        stringprep.in_table_c21_c22(character)
        or stringprep.in_table_c3(character)
        or stringprep.in_table_c4(character)
        or stringprep.in_table_c5(character)
        or stringprep.in_table_c6(character)
        or stringprep.in_table_c7(character)
        or stringprep.in_table_c8(character)
        or stringprep.in_table_c9(character)
        or stringprep.in_table_a1(character)
    )


def breaks_bidi(text: str) -> bool:
    """RFC 3454 section 6: right-to-left text has no left-to-right letters, and starts and ends right-to-left."""
    if not any(stringprep.in_table_d1(character) for character in text):
        return False
    if any(stringprep.in_table_d2(character) for character in text):
        return True
    return not (stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1]))
