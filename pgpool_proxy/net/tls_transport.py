"""TLS over a transport of the loop: a protocol to the transport below, a transport to the session above. HOT.

Theory of operation
-------------------
SHAKING   what comes goes to OpenSSL, and what OpenSSL says goes out; what the session writes is dropped, since nothing may go
          out in clear. Ends in OPEN (`Handshake.tls_opened`) or CLOSED (`tls_failed`, `tls_lost`).
OPEN      a chunk is decrypted to its end and handed on in one piece, so at most the beginning of a record stays here.
          Pausing, both ways, is therefore the business of the transport below.
CLOSED    close_notify has been sent, or the connection is lost: whatever comes or is written is dropped. Nobody waits for
          the peer's close_notify.

The transport below hands over its bytes from the very call that makes this its protocol, so none that came in clear is taken
for an encrypted one. A stream that ends without close_notify ends the connection like any other end: whether something is
missing shows in PostgreSQL's own messages. Renegotiation is off in the context; OpenSSL answers key updates by itself.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final, Protocol

from mypy_extensions import i64

SHAKING: Final = 0
OPEN: Final = 1
CLOSED: Final = 2

RECORD: Final = 16_384  # the plain bytes of a record, at the most
CLOSE_S: Final = 2.0  # how long a peer may take to read what was written before the end


class Below(Protocol):
    """What is asked of the loop's transport."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_protocol(self, protocol: Any) -> None: ...

    def get_extra_info(self, name: str, default: Any = None) -> Any: ...

    def get_write_buffer_size(self) -> int: ...


class Above(Protocol):
    """What is asked of the connection that the decrypted bytes are for."""

    def data_received(self, data: bytes) -> None: ...

    def connection_lost(self, error: BaseException | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class Handshake(Protocol):
    """Who is told how the handshake has ended, once."""

    def tls_opened(self, transport: TlsTransport) -> None: ...

    def tls_failed(self, error: Exception) -> None: ...

    def tls_lost(self, error: BaseException | None) -> None:
        """The peer has gone in the middle of it."""
        ...


class TlsTransport:
    """One encrypted connection. `server_hostname` is for the client's role; None is the server's.

    In the server's role `above` had the connection before, and is told of its loss whenever that is; in the client's role
    it has nothing of it before the handshake is done, and reading is paused then until `begin_reading`.
    """

    def __init__(
        self, below: Below, above: Above, context: ssl.SSLContext, handshake: Handshake, server_hostname: str | None = None
    ) -> None:
        self.state: i64 = SHAKING
        self._below: Below = below
        self._above: Above = above
        self._handshake: Handshake | None = handshake
        self._is_client: bool = server_hostname is not None
        self._is_known: bool = server_hostname is None  # to `above`
        self._incoming: ssl.MemoryBIO = ssl.MemoryBIO()
        self._outgoing: ssl.MemoryBIO = ssl.MemoryBIO()
        self.tls: ssl.SSLObject = context.wrap_bio(
            self._incoming, self._outgoing, server_side=not self._is_client, server_hostname=server_hostname
        )
        # SSLObject's methods only pass on to this object of C, at the price of an interpreted frame each.
        self._stream: Any = getattr(self.tls, "_sslobj", None) or self.tls

    def begin(self, early: bytes = b"") -> None:
        """Take over the transport below; `early` is what it has brought already."""
        self._below.set_protocol(self)
        if self._is_client:
            self._shake()
        elif early:
            self.data_received(early)

    # --- told by the transport below ------------------------------------------------------------------------------------
    def connection_made(self, transport: object) -> None:
        return None

    def data_received(self, data: bytes) -> None:
        state = self.state
        if state == CLOSED:
            return
        self._incoming.write(data)
        if state == OPEN:
            self._read(len(data))
        else:
            self._shake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: BaseException | None) -> None:
        self.state = CLOSED
        handshake = self._handshake
        self._handshake = None
        if handshake is not None:
            handshake.tls_lost(error)
        if self._is_known:
            self._above.connection_lost(error)

    def pause_writing(self) -> None:
        if self.state == OPEN:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        if self.state == OPEN:
            self._above.resume_writing()

    # --- the handshake --------------------------------------------------------------------------------------------------
    def _shake(self) -> None:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            self._break()
            handshake = self._handshake
            self._handshake = None
            if handshake is not None:
                handshake.tls_failed(error)
            return
        self._flush()
        self.state = OPEN
        self._is_known = True
        if self._is_client:
            self._below.pause_reading()
        opened = self._handshake
        self._handshake = None
        if opened is not None:
            opened.tls_opened(self)
        if not self._is_client:
            self._read(RECORD)  # what came with the end of the handshake

    def begin_reading(self) -> None:
        """`above` is ready."""
        self._below.resume_reading()
        self._read(RECORD)

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._below.write(self._outgoing.read())

    def _break(self) -> None:
        """OpenSSL is not content with the peer: its alert goes out, and that is the end."""
        self.state = CLOSED
        self._flush()
        self._below.close()

    # --- the encrypted stream -------------------------------------------------------------------------------------------
    def _read(self, size: i64) -> None:
        """Decrypt all that is here, `size` bytes at a time at the most (a buffer is made for each), and hand it on."""
        if self.state != OPEN:
            return
        stream = self._stream
        if size > RECORD:
            size = RECORD
        incoming = self._incoming
        data = b""
        parts: list[bytes] | None = None
        has_ended = False
        try:
            while incoming.pending or stream.pending():
                part: bytes = stream.read(size)
                if not part:
                    has_ended = True
                    break
                if not data:
                    data = part
                elif parts is None:
                    parts = [data, part]
                else:
                    parts.append(part)
        except ssl.SSLWantReadError:  # a record is cut
            pass
        except ssl.SSLZeroReturnError:
            has_ended = True
        except OSError:
            self._break()
        if self._outgoing.pending and self.state == OPEN:
            self._flush()  # the answer to a key update
        if data:
            self._above.data_received(data if parts is None else b"".join(parts))
        if has_ended:
            self.close()

    def write(self, data: bytes) -> None:
        """Told by the session."""
        if self.state != OPEN:
            return
        stream = self._stream
        try:
            if len(data) <= RECORD:
                stream.write(data)
            else:
                view = memoryview(data)
                at = 0
                while at < len(data):
                    at += stream.write(view[at : at + RECORD])
        except OSError:
            self._break()
            return
        self._below.write(self._outgoing.read())

    def close(self) -> None:
        """Close after what was written has gone out."""
        state = self.state
        self.state = CLOSED
        if state == SHAKING:
            self._below.abort()
        elif state == OPEN:
            try:
                self.tls.unwrap()
            except OSError:  # it would wait for the peer's close_notify
                pass
            self._flush()
            below = self._below
            below.close()
            if below.get_write_buffer_size():
                asyncio.get_running_loop().call_later(CLOSE_S, below.abort)

    def abort(self) -> None:
        """Close at once."""
        self.state = CLOSED
        self._below.abort()

    def pause_reading(self) -> None:
        self._below.pause_reading()

    def resume_reading(self) -> None:
        self._below.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The TLS connection as `ssl_object`; all else is the transport's below."""
        return self.tls if name == "ssl_object" else self._below.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        return self._below.get_write_buffer_size()
