"""The HTTP side: /metrics, /healthz, /readyz, the status page and its data. h11 speaks HTTP, this file answers.

For operators and machines inside: read-only, no cookies, nothing from outside. Bounded for strangers all the same: connections,
the size of a request, and the time until it is complete. The health endpoints ask for no token, so that probes need none; the
rest does where `metrics_auth_token` is set.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from typing import Final, cast

import h11
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from pgpool_proxy.metrics.collector import Exposition
from pgpool_proxy.metrics.snapshot import HISTORY, HistoryRow, Readiness, Snapshot, Source

MAX_CONNECTIONS: Final = 64
MAX_REQUEST: Final = 8192  # bytes of a request's head
REQUEST_S: Final = 10.0  # for a request to be complete
IDLE_S: Final = 75.0  # between two requests: Prometheus keeps its connection
JSON: Final = "application/json"
HTML: Final = "text/html; charset=utf-8"
TEXT: Final = "text/plain; charset=utf-8"
PAGE: Final = files(__package__).joinpath("status.html").read_bytes()  # now: later we may be an account that cannot read it
OPEN_TO_ALL: Final = frozenset({"/healthz", "/readyz"})
POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = (
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("content-security-policy", POLICY),
)


class HttpServer:
    """Listens where metrics_listen_addr and metrics_port say."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.connections: set[HttpConnection] = set()
        self._servers: list[asyncio.Server] = []
        self._is_closed = False
        self._exposition = Exposition()
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")

    async def open(self, addresses: list[str], port: int) -> None:
        """Raises OSError where one of the addresses cannot be had."""
        loop = asyncio.get_running_loop()
        try:
            for address in addresses:
                host = None if address == "*" else address
                self._servers.append(await loop.create_server(partial(HttpConnection, self), host, port, reuse_address=True))
        except OSError:
            self.close()
            raise

    @property
    def ports(self) -> list[int]:
        return [sock.getsockname()[1] for server in self._servers for sock in server.sockets]

    def close(self) -> None:
        self._is_closed = True
        for server in self._servers:
            server.close()
        self._servers.clear()
        for connection in list(self.connections):
            connection.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- answers ----------------------------------------------------------------------------------------------------------
    def answer(self, path: str, token: bytes, done: Answer) -> None:
        """`done(status, content type, body)`, at once or later."""
        wanted = self.source.token()
        if path not in OPEN_TO_ALL and wanted and not hmac.compare_digest(token, wanted.encode(errors="surrogateescape")):
            done(401, TEXT, b"a bearer token is needed\n")
        elif path == "/healthz":
            done(200, JSON, b'{"status": "ok"}\n')
        elif path == "/readyz":
            self.source.readiness(partial(_tell_readiness, done))
        elif path == "/metrics":
            self.source.snapshot(partial(self._in_thread, self._exposition.render, CONTENT_TYPE_LATEST, done))
        elif path == "/status.json":
            self.source.history(partial(self._tell_status, done))
        elif path == "/":
            done(200, HTML, PAGE)
        else:
            done(404, TEXT, b"there are /, /metrics, /healthz, /readyz and /status.json\n")

    def _tell_status(self, done: Answer, history: list[HistoryRow]) -> None:
        self.source.snapshot(partial(self._in_thread, partial(status, history), JSON, done))

    def _in_thread(
        self, make: Callable[[Snapshot], bytes], content_type: str, done: Answer, snapshot: Callable[[], Snapshot]
    ) -> None:
        """What takes more than a moment is made beside the loop, from values that nobody changes."""
        if self._is_closed:
            return  # while the snapshot was on its way
        future = asyncio.get_running_loop().run_in_executor(self._threads, lambda: make(snapshot()))

        def told(ended: asyncio.Future[bytes]) -> None:
            if ended.cancelled():
                return
            error = ended.exception()
            if error is not None:
                done(500, TEXT, f"internal error: {type(error).__name__}\n".encode())
            else:
                done(200, content_type, ended.result())

        future.add_done_callback(told)


Answer = Callable[[int, str, bytes], None]


def _tell_readiness(done: Answer, readiness: Readiness) -> None:
    if readiness.is_ready:
        done(200, JSON, b'{"status": "ready"}\n')
    else:
        body = json.dumps({"status": "not ready", "reasons": list(readiness.reasons)})
        done(503, JSON, body.encode() + b"\n")


def status(history: list[HistoryRow], snapshot: Snapshot) -> bytes:
    """/status.json: what the status page draws."""
    document = {
        "version": snapshot.version,
        "build": snapshot.build,
        "started_at": snapshot.started_at,
        "clients": snapshot.clients,
        "max_clients": snapshot.max_clients,
        "pools": [
            {
                "database": pool.database,
                "user": pool.user,
                "mode": pool.mode,
                "size": pool.size,
                "clients": pool.clients,
                "servers": pool.servers,
                "longest_wait": round(pool.longest_wait, 3),
                "totals": pool.totals,
            }
            for pool in snapshot.pools
        ],
        "databases": [asdict(database) for database in snapshot.databases],
        "history": {"columns": HISTORY, "rows": history},
    }
    return json.dumps(document, separators=(",", ":")).encode()


# --- one connection -------------------------------------------------------------------------------------------------------
class HttpConnection(asyncio.Protocol):
    """One client of the HTTP side; its requests are answered one after the other."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._request: h11.Request | None = None
        self._answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        if len(self._server.connections) >= MAX_CONNECTIONS:
            self._transport.abort()
            return
        self._server.connections.add(self)
        self._expect_request(REQUEST_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _expect_request(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.close)

    def data_received(self, data: bytes) -> None:
        self._http.receive_data(data)
        if not self._answering:
            self._go_on()

    def eof_received(self) -> bool:
        self._http.receive_data(b"")
        if not self._answering:
            self._go_on()
        return self._answering  # a half-closed client still gets its answer

    def _go_on(self) -> None:
        """Take in what has come, until a request is complete."""
        try:
            while self._transport is not None:
                event = self._http.next_event()
                if isinstance(event, h11.Request):
                    self._request = event
                elif isinstance(event, h11.EndOfMessage):
                    self._answer()
                    return
                elif isinstance(event, h11.ConnectionClosed):
                    self.close()
                    return
                elif event is h11.NEED_DATA or event is h11.PAUSED:
                    return
        except h11.RemoteProtocolError as error:
            if self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                self._write(error.error_status_hint, TEXT, b"this is no HTTP request\n", closing=True)
            self.close()

    def _answer(self) -> None:
        request = self._request
        if request is None or self._transport is None:
            return
        if request.method not in {b"GET", b"HEAD"}:
            self._told(405, TEXT, b"GET or HEAD\n")
            return
        self._answering = True
        if self._timer is not None:
            self._timer.cancel()
        path = request.target.decode("ascii", "replace").partition("?")[0]
        said = next((value for name, value in request.headers if name == b"authorization"), b"")
        scheme, _, credentials = said.partition(b" ")
        self._server.answer(path, credentials.strip() if scheme.lower() == b"bearer" else b"", self._told)

    def _told(self, status_code: int, content_type: str, body: bytes) -> None:
        self._answering = False
        if self._transport is None or self._transport.is_closing():
            return
        self._write(status_code, content_type, body)
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self._request = None
            self._expect_request(IDLE_S)
            self._go_on()
        else:
            self.close()

    def _write(self, status_code: int, content_type: str, body: bytes, closing: bool = False) -> None:
        if self._transport is None:
            return
        headers = [*HEADERS, ("content-type", content_type), ("content-length", str(len(body)))]
        if status_code == 401:
            headers.append(("www-authenticate", "Bearer"))
        if closing:
            headers.append(("connection", "close"))
        parts = [self._http.send(h11.Response(status_code=status_code, headers=headers))]
        if self._request is None or self._request.method != b"HEAD":
            parts.append(self._http.send(h11.Data(data=body)))
        parts.append(self._http.send(h11.EndOfMessage()))
        self._transport.write(b"".join(part for part in parts if part))
