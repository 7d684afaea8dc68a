"""A server whose client has left in the middle of something, brought back to a clean state instead of being closed.

The query is cancelled, a COPY is failed, an open pipeline is rolled back and gets its Sync, and when the server answers with a
transaction still open, that is rolled back, too. What is answered meanwhile goes nowhere. Where the client's last message was
cut, nothing can be said to the server any more, and it is closed; likewise when it does not come to an end in time
(`ServerSession.overdue`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pgpool_proxy import errors
from pgpool_proxy.session.outstanding import KIND_MASK
from pgpool_proxy.wire import frontend
from pgpool_proxy.wire.codes import COPY_FAIL, EXECUTE, QUERY, STATUS_IDLE, SYNC

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
    was_own = link.phase == PREPARING or link.phase == PROBING
    if link.phase == PREPARING and link.client is not None:  # what it sets is reported but for the extras
        server.parameters = server.context.tracked.with_extras(server.parameters, link.client.parameters.extras)
    was_copy_in = link.copy_in
    link.part()
    link.phase = RECOVERING
    link.cancel_time = now
    server.client = None
    if was_own:  # our own query ends by itself
        return True
    if was_copy_in:
        fail_copy(link)
    elif outstanding.skipping:
        _sync(link)
        return True
    elif outstanding.is_empty:
        if link.status == STATUS_IDLE:
            _roll_back_pipeline(link)  # or there was something without an answer: Flush, a late CopyData
        else:
            go_on(link, now)
        return True
    elif not outstanding.ends_with_ready:
        server.write(frontend.FLUSH_MESSAGE)  # `pipeline_answered` follows; it may be a COPY yet, where only Sync is ignored
    elif len(outstanding) > 1 and outstanding.last_kind() != SYNC:
        _sync(link)  # an error before the last Query would let the server skip that one
    server.context.host.cancel_server(server, now)
    return True


def fail_copy(link: Link) -> None:
    """The server waits for copy data, which nobody will send."""
    by_execute = link.outstanding.head() & KIND_MASK == EXECUTE
    link.copy_in = False
    link.server.write(COPY_FAILED)
    if by_execute:
        _sync(link)


def pipeline_answered(link: Link) -> None:
    """All that was sent is answered, and it had no Sync at its end."""
    if link.outstanding.skipping:
        _sync(link)
    else:
        _roll_back_pipeline(link)


def _roll_back_pipeline(link: Link) -> None:
    """A pipeline without its Sync: one from us would commit it. PostgreSQL rolls it back when its client leaves."""
    link.outstanding.push(QUERY)
    link.server.unnamed = None
    link.server.write(frontend.query(ROLLBACK))
    _sync(link)


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
