"""The tables of states, and the page that is drawn from them."""

from __future__ import annotations

import runpy
from enum import IntEnum
from pathlib import Path

import pytest

from pgpool_proxy.errors import IllegalTransition
from pgpool_proxy.pool import states
from pgpool_proxy.pool.states import CLIENT_MOVES, SERVER_MOVES, ClientState, ServerState, check_client_move, check_server_move

DRAW = Path(__file__).parents[3] / "docs" / "draw_states.py"


@pytest.mark.parametrize(
    ("kind", "prefix", "moves", "check"),
    [(ClientState, "CL_", CLIENT_MOVES, check_client_move), (ServerState, "SV_", SERVER_MOVES, check_server_move)],
)
class TestTables:
    def test_the_numbers_of_hot_code_are_those_of_the_enum(self, kind: type[IntEnum], prefix: str, moves, check) -> None:
        assert {name: getattr(states, prefix + name) for name in kind.__members__} == dict(kind.__members__)

    def test_every_state_has_its_moves(self, kind: type[IntEnum], prefix: str, moves, check) -> None:
        assert list(moves) == list(kind)

    def test_every_state_can_be_reached_and_can_close_once(self, kind: type[IntEnum], prefix: str, moves, check) -> None:
        first, closed = min(kind), max(kind)
        reached = {first}
        for _ in kind:
            reached |= {after for state in reached for after in moves[state]}
        assert reached == set(kind)
        assert all(closed in after for state, after in moves.items() if state != closed)
        assert moves[closed] == frozenset()

    def test_a_move_is_legal_exactly_when_the_table_has_it(self, kind: type[IntEnum], prefix: str, moves, check) -> None:
        for old in kind:
            for new in kind:
                if new in moves[old]:
                    check(int(old), int(new))
                else:
                    with pytest.raises(IllegalTransition, match=f"{old.name} -> {new.name}"):
                        check(int(old), int(new))


def test_docs_states_is_drawn_from_the_tables() -> None:
    drawn = runpy.run_path(str(DRAW))
    assert drawn["PAGE"].read_text() == drawn["page"](), "run: python docs/draw_states.py"
