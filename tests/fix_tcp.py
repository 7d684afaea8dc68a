"""A middleman on TCP: between a client and the proxy, or the proxy and PostgreSQL, it misbehaves as it is told.

Directions: `up` is from the one who connected to the one who listens (client to server), `down` the way back.
Faults are attributes that can be changed at any time and hold for the chunks that come after.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fix_wait import LOOPBACK, free_port, wait_until

CHUNK = 65_536


@dataclass
class Flow:
    """One direction of all connections, and what is wrong with it."""

    name: str
    #: bytes per write; 0 means as they come
    chop: int = 0
    #: seconds before each write
    delay: float = 0.0
    #: bytes that arrive here are never passed on, and nobody is told
    swallow: bool = False
    #: reset the connection when this many bytes have gone this way (over all connections)
    cut_after: int | None = None
    #: bytes that went this way, over all connections
    bytes: int = 0
    writes: int = 0
    #: called with each chunk; what it returns is sent instead
    rewrite: Callable[[bytes], bytes] | None = None
    running: threading.Event = field(default_factory=threading.Event)

    def pause(self) -> None:
        """Read no further: the sender meets a full window, sooner or later."""
        self.running.clear()

    def resume(self) -> None:
        self.running.set()


class Pair:
    """One connection through the middleman."""

    def __init__(self, middleman: Middleman, left: socket.socket, right: socket.socket) -> None:
        self.middleman = middleman
        self.left = left
        self.right = right
        self.closed = threading.Event()
        # Readable once the pair is closed: a thread that waits in the kernel would keep the sockets open.
        self._bell, self._ring = socket.socketpair()
        self._lock = threading.Lock()

    def close(self, *, reset: bool = False) -> None:
        """End both sides; with `reset` by RST instead of FIN."""
        with self._lock:
            if self.closed.is_set():
                return
            self.closed.set()
        self._ring.close()
        for sock in (self.left, self.right):
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            sock.close()

    def wait(self, sock: socket.socket, event: int) -> None:
        """Until this side can be read or written; OSError when the pair is closed first."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        poll.register(sock, event)
        poll.poll()
        if self.closed.is_set():
            raise OSError("closed")

    def send(self, sock: socket.socket, data: bytes) -> None:
        while data:
            try:
                data = data[sock.send(data, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                self.wait(sock, select.POLLOUT)

    def free(self) -> None:
        self._bell.close()

    def half_close(self, flow: str) -> None:
        """Say "nothing more will come" in one direction; the other goes on."""
        (self.right if flow == "up" else self.left).shutdown(socket.SHUT_WR)


class Middleman:
    """Listens on `host` and `port` and passes on to `target`, a port of this machine."""

    def __init__(self, target: int, host: str = LOOPBACK, port: int = 0) -> None:
        self.target = target
        self.host = host
        self.port = port or free_port()
        self.up = Flow("up")
        self.down = Flow("down")
        self.accepted = 0
        self.pairs: list[Pair] = []
        self._acceptors: list[threading.Thread] = []
        self._pumps: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self.up.resume()
        self.down.resume()
        self.listen()

    def __repr__(self) -> str:
        counts = f"open={len(self.open)} up={self.up.bytes} down={self.down.bytes}"
        return f"<Middleman {self.port} -> {self.target} {counts}>"

    @property
    def open(self) -> list[Pair]:
        return [pair for pair in self.pairs if not pair.closed.is_set()]

    # --- what happens to connections ---

    def listen(self) -> None:
        """Accept connections (again)."""
        self._listener = self._bind()
        self._run(self._acceptors, self._accept, self._listener)

    def refuse(self) -> None:
        """Stop listening: whoever connects now is refused. Open connections go on."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def deaf_listen(self) -> None:
        """Listen but never accept: whoever connects waits for an answer that does not come."""
        self.refuse()
        self._listener = self._bind()

    def drop(self) -> int:
        """Close all open connections; how many there were."""
        return self._end(reset=False)

    def reset(self) -> int:
        """The same by RST."""
        return self._end(reset=True)

    def pause(self) -> None:
        """Nothing moves in either direction until `resume()`."""
        self.up.pause()
        self.down.pause()

    def resume(self) -> None:
        self.up.resume()
        self.down.resume()

    def stop(self) -> None:
        self.refuse()
        # Whom a thread has accepted it still makes a pair of: only then are there no more of them to come.
        self._join(self._acceptors)
        self.drop()
        self.resume()
        self._join(self._pumps)
        for pair in self.pairs:
            pair.free()

    # --- the threads ---

    def _bind(self) -> socket.socket:
        def bound() -> socket.socket | None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((self.host, self.port))
                listener.listen(200)
            except OSError:
                listener.close()
                return None
            return listener

        return wait_until(bound, 5, f"port {self.port} is free again")

    def _run(self, threads: list[threading.Thread], function: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, name=f"{self!r} {function.__name__}", daemon=True)
        threads.append(thread)
        thread.start()

    def _join(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.join(15)  # to connect may take an acceptor ten
            assert not thread.is_alive(), f"{thread.name} hangs"

    def _end(self, *, reset: bool) -> int:
        pairs = self.open
        for pair in pairs:
            pair.close(reset=reset)
        return len(pairs)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                left, _ = listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                right = socket.create_connection((LOOPBACK, self.target), timeout=10)
            except OSError:
                left.close()
                continue
            right.settimeout(None)
            for sock in (left, right):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = Pair(self, left, right)
            self.pairs.append(pair)
            self._run(self._pumps, self._pump, pair, left, right, self.up)
            self._run(self._pumps, self._pump, pair, right, left, self.down)

    def _pump(self, pair: Pair, source: socket.socket, sink: socket.socket, flow: Flow) -> None:
        try:
            while True:
                flow.running.wait()
                pair.wait(source, select.POLLIN)
                chunk = source.recv(CHUNK)
                if not chunk:
                    break
                flow.running.wait()
                if not self._pass_on(pair, sink, flow, flow.rewrite(chunk) if flow.rewrite else chunk):
                    return
            sink.shutdown(socket.SHUT_WR)
        except (OSError, ValueError):
            # One side is gone: so is the other.
            pair.close()
            return
        if flow.name == "down":
            pair.close()

    def _pass_on(self, pair: Pair, sink: socket.socket, flow: Flow, chunk: bytes) -> bool:
        size = flow.chop or len(chunk)
        for start in range(0, len(chunk), size):
            piece = chunk[start : start + size]
            if flow.cut_after is not None:
                piece = piece[: max(0, flow.cut_after - flow.bytes)]
            if flow.delay and pair.closed.wait(flow.delay):
                return False
            if piece and not flow.swallow:
                flow.bytes += len(piece)  # before it is sent: who has received it may look at the count
                flow.writes += 1
                pair.send(sink, piece)
            if flow.cut_after is not None and flow.bytes >= flow.cut_after:
                pair.close(reset=True)
                return False
        return True


MakeMiddleman = Callable[..., Middleman]


@pytest.fixture
def make_middleman() -> Iterator[MakeMiddleman]:
    """Makes middlemen before a port: `make_middleman(postgres.port)`; `host=` and `port=` say where, if that matters."""
    made: list[Middleman] = []

    def make(target: int, **place: Any) -> Middleman:
        made.append(Middleman(target, **place))
        return made[-1]

    yield make
    for middleman in made:
        middleman.stop()
