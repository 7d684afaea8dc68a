"""Rows of SHOW FDS on their way to a new daemon, each with the descriptor that goes with it (SCM_RIGHTS)."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections import deque
from typing import Final

from pgpool_proxy.admin.control import Row
from pgpool_proxy.admin.results import TEXT_FORMAT, data_row
from pgpool_proxy.admin.show import FDS, TABLES

MAX_QUEUED: Final = 64  # sockets that are on their way at once
BUSY: Final = (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS)  # the other side has to take some first


class RowSender:
    """Writes past the loop to the console's connection, of which it has a duplicate: its descriptor is ours to close."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._queue: deque[tuple[bytes, int]] = deque()  # rows, each with the descriptor that goes with it, or -1

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, row: Row, own: int = -1) -> None:
        """The descriptor is duplicated: the caller's may be closed before the row goes out."""
        columns = TABLES[FDS].columns
        self._queue.append((data_row(columns, [TEXT_FORMAT] * len(columns), row), os.dup(own) if own >= 0 else -1))

    def send(self) -> None:
        """As much as the other side takes now. Raises OSError when it has gone."""
        while self._queue:
            data, own = self._queue[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, own.to_bytes(4, sys.byteorder))] if own >= 0 else []
            try:
                sent = self._socket.sendmsg([data], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError as error:
                if error.errno in BUSY:
                    return
                raise
            if own >= 0:
                os.close(own)
            if sent < len(data):
                self._queue[0] = (data[sent:], -1)
            else:
                self._queue.popleft()

    def close(self) -> None:
        self._socket.close()
        for _, own in self._queue:
            if own >= 0:
                os.close(own)
        self._queue.clear()
