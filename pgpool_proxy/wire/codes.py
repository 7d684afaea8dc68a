"""Numbers of the wire protocol under PostgreSQL's names (protocol pages "Message Formats" and "Message Flow").

Plain `Final` ints, not Enum members: HOT code compares them with a byte of a chunk.
"""

from __future__ import annotations

from typing import Final

BYTES: Final = [bytes((value,)) for value in range(256)]  # each value as the one byte that it is

# --- messages of the frontend (client to server) -----------------------------------------------------------------------
BIND: Final = 0x42  # B
CLOSE: Final = 0x43  # C
COPY_DATA: Final = 0x64  # d, both ways
COPY_DONE: Final = 0x63  # c, both ways
COPY_FAIL: Final = 0x66  # f
DESCRIBE: Final = 0x44  # D
EXECUTE: Final = 0x45  # E
FLUSH: Final = 0x48  # H
FUNCTION_CALL: Final = 0x46  # F
PARSE: Final = 0x50  # P
PASSWORD: Final = 0x70  # p: PasswordMessage, SASLInitialResponse, SASLResponse
QUERY: Final = 0x51  # Q
SYNC: Final = 0x53  # S
TERMINATE: Final = 0x58  # X

# --- messages of the backend (server to client) ------------------------------------------------------------------------
AUTHENTICATION: Final = 0x52  # R
BACKEND_KEY_DATA: Final = 0x4B  # K
BIND_COMPLETE: Final = 0x32  # 2
CLOSE_COMPLETE: Final = 0x33  # 3
COMMAND_COMPLETE: Final = 0x43  # C
COPY_IN_RESPONSE: Final = 0x47  # G
COPY_OUT_RESPONSE: Final = 0x48  # H
COPY_BOTH_RESPONSE: Final = 0x57  # W
DATA_ROW: Final = 0x44  # D
EMPTY_QUERY_RESPONSE: Final = 0x49  # I
ERROR_RESPONSE: Final = 0x45  # E
FUNCTION_CALL_RESPONSE: Final = 0x56  # V
NEGOTIATE_PROTOCOL_VERSION: Final = 0x76  # v
NO_DATA: Final = 0x6E  # n
NOTICE_RESPONSE: Final = 0x4E  # N
NOTIFICATION_RESPONSE: Final = 0x41  # A
PARAMETER_DESCRIPTION: Final = 0x74  # t
PARAMETER_STATUS: Final = 0x53  # S
PARSE_COMPLETE: Final = 0x31  # 1
PORTAL_SUSPENDED: Final = 0x73  # s
READY_FOR_QUERY: Final = 0x5A  # Z
ROW_DESCRIPTION: Final = 0x54  # T

# --- AuthenticationRequest codes -----------------------------------------------------------------------------------------
AUTH_OK: Final = 0
AUTH_CLEARTEXT_PASSWORD: Final = 3
AUTH_MD5_PASSWORD: Final = 5
AUTH_SASL: Final = 10
AUTH_SASL_CONTINUE: Final = 11
AUTH_SASL_FINAL: Final = 12

# --- first packets, which have no type byte --------------------------------------------------------------------------------
PROTOCOL_3_0: Final = 3 << 16
PROTOCOL_3_2: Final = 3 << 16 | 2
CANCEL_REQUEST: Final = 1234 << 16 | 5678
SSL_REQUEST: Final = 1234 << 16 | 5679
GSSENC_REQUEST: Final = 1234 << 16 | 5680

# --- transaction status in ReadyForQuery ----------------------------------------------------------------------------------
STATUS_IDLE: Final = 0x49  # I
STATUS_IN_TRANSACTION: Final = 0x54  # T
STATUS_FAILED: Final = 0x45  # E

# --- limits ----------------------------------------------------------------------------------------------------------------
HEADER_SIZE: Final = 5  # type byte and length
MAX_STARTUP_PACKET: Final = 10_000  # PostgreSQL's MAX_STARTUP_PACKET_LENGTH
MAX_PACKET_SIZE: Final = 2_147_483_647  # the length field is a signed Int32
