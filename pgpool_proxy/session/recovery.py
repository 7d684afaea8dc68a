"""A server whose client has left in the middle of something, brought back to a clean state instead of being closed.

The query is cancelled, a COPY is failed, an open pipeline gets its Sync, and when the server answers with a transaction still
open, that is rolled back. What is answered meanwhile goes nowhere. Where the client's last message was cut, nothing can be said
to the server any more, and it is closed; likewise when it does not come to an end in time (`ServerSession.overdue`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pgpool_proxy import errors
from pgpool_proxy.session.outstanding import KIND_MASK
from pgpool_proxy.wire import frontend
from pgpool_proxy.wire.codes import COPY_FAIL, EXECUTE, FUNCTION_CALL, QUERY, STATUS_IDLE, SYNC

if TYPE_CHECKING:
    from pgpool_proxy.session.link import Link

RECOVERING: Final = 3  # of session/link.py
PREPARING: Final = 1
PROBING: Final = 6
COPY_FAILED: Final = frontend.message(COPY_FAIL, b"the client has left\0")
ROLLBACK: Final = b"ROLLBACK"


def begin(link: Link, now: float) -> bool:
    """The client has left. False: the server cannot be saved."""
    server = link.server
    outstanding = link.outstanding
    if link.from_client_framer.remaining or not server.cancel_key:
        return False
    if link.phase == PREPARING or link.phase == PROBING:  # our own query ends by itself
        link.part()
        link.phase = RECOVERING
        link.cancel_time = now
        return True
    was_copy_in = link.copy_in
    head = outstanding.head()
    link.part()
    link.phase = RECOVERING
    link.cancel_time = now
    server.client = None
    if was_copy_in:
        server.write(COPY_FAILED)
        if head & KIND_MASK == EXECUTE:
            _sync(link)
    elif outstanding.is_empty:
        if link.status == STATUS_IDLE:
            _sync(link)  # something without an answer was sent: Flush, or a late CopyData
        else:
            go_on(link, now)
        return True
    elif outstanding.skipping or not _ends_with_ready(link):
        _sync(link)
    server.context.host.cancel_server(server, now)
    return True


def _ends_with_ready(link: Link) -> bool:
    """Will a ReadyForQuery follow what was sent?"""
    kind = link.outstanding.last_kind()
    return kind == QUERY or kind == SYNC or kind == FUNCTION_CALL


def _sync(link: Link) -> None:
    link.outstanding.push(SYNC)
    link.outstanding.skipping = False
    link.server.write(frontend.SYNC_MESSAGE)


def go_on(link: Link, now: float) -> None:
    """Everything has been answered: roll back what is open; a server that is clean leaves by the link's own end."""
    if link.status == STATUS_IDLE:
        link.ready = True
    elif link.rolled_back:
        link.server.disconnect(errors.CLIENT_LEFT_EARLY.with_detail("ROLLBACK did not end the transaction"), now)
    else:
        link.rolled_back = True
        link.run(ROLLBACK)
