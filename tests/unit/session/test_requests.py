"""requests.py: the pure parts; what it does to streams is proved in tests/property/test_parity.py."""

from __future__ import annotations

import pytest

from pgpool_proxy.session.requests import deallocated


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"DEALLOCATE pdo_stmt_00000001", b"pdo_stmt_00000001"),
        (b"deallocate prepare Abc ;", b"abc"),
        (b'DEALLOCATE "Mixed ""quotes"""', b'Mixed "quotes"'),
        (b"  DEALLOCATE\n\ta1", b"a1"),
        (b"DEALLOCATE ALL", b""),
        (b'DEALLOCATE "all"', b"all"),
        (b"DEALLOCATE a; DROP TABLE x", b""),
        (b"DEALLOCATE", b""),
        (b"DELETE FROM x", b""),
        (b"SELECT 1 -- DEALLOCATE a", b""),
    ],
)
def test_the_name_in_a_deallocate_is_read_as_postgresql_reads_it(text: bytes, name: bytes) -> None:
    assert deallocated(text) == name
