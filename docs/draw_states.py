"""Draws docs/states.md from the tables in pgpool_proxy/pool/states.py: `python docs/draw_states.py`.

A test compares the page with what this draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Final, TypeVar

from pgpool_proxy.pool.states import CLIENT_MOVES, SERVER_MOVES, ClientState, ServerState

S = TypeVar("S", bound=IntEnum)

PAGE: Final = Path(__file__).with_name("states.md")

CLIENTS: Final = {
    ClientState.LOGIN: "startup and authentication; in no pool yet",
    ClientState.WAITING_LOGIN: "has proved who it is; waits for the pool's first server, whose parameters it is to be told",
    ClientState.ACTIVE: "logged in: idle, or linked to a server",
    ClientState.WAITING: "has sent a request and waits for a server, first come, first served",
    ClientState.WAITING_CANCEL: "brought a CancelRequest; the connection that takes it to the server is being made",
    ClientState.ACTIVE_CANCEL: "brought a CancelRequest, which was passed on; waits for the server to close that connection",
    ClientState.CLOSED: "gone; in no container",
}
SERVERS: Final = {
    ServerState.LOGIN: "connecting, authenticating",
    ServerState.IDLE: "may be given to a client at once",
    ServerState.ACTIVE: "linked to a client, or being cleaned up after one that left in the middle of something",
    ServerState.USED: "idle for longer than server_check_delay: is checked before its next use",
    ServerState.TESTED: "runs server_reset_query or server_check_query",
    ServerState.ACTIVE_CANCEL: "a connection that carries a CancelRequest; does not count against any limit",
    ServerState.BEING_CANCELED: "released while a CancelRequest for it is under way: free when that has ended",
    ServerState.CLOSED: "gone; in no container",
}

HEAD: Final = """\
# The states of clients and servers

Drawn from the tables in `pgpool_proxy/pool/states.py` by `docs/draw_states.py`; a test compares the two. Each state is
a container of the pool, so the columns `cl_*` and `sv_*` of SHOW POOLS are lengths of lists. `Pool.move_client` and
`Pool.move_server` are the only ones to move anybody, and a move that is not drawn here raises `IllegalTransition`. From
every state it is possible to close, which the diagrams leave out.
"""


def section(title: str, moves: Mapping[S, frozenset[S]], meanings: Mapping[S, str], prefix: str) -> str:
    """A heading, a diagram and a table."""
    lines = [f"\n## {title}\n", "```mermaid", "stateDiagram-v2"]
    lines.append(f"    [*] --> {next(iter(moves)).name}")
    closed = max(moves)
    for state, successors in moves.items():
        lines += [f"    {state.name} --> {successor.name}" for successor in sorted(successors) if successor != closed]
    lines += ["```\n", "| state | SHOW POOLS | what it means | may become |", "|---|---|---|---|"]
    for state, successors in moves.items():
        column = "-" if state == closed else f"`{prefix}{state.name.lower()}`"
        after = ", ".join(successor.name for successor in sorted(successors)) or "-"
        lines.append(f"| {state.name} | {column} | {meanings[state]} | {after} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    return HEAD + section("Clients", CLIENT_MOVES, CLIENTS, "cl_") + section("Servers", SERVER_MOVES, SERVERS, "sv_")


if __name__ == "__main__":
    PAGE.write_text(page())
