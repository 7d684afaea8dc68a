"""The parameters of a client's StartupMessage: which are its own, which are refused, and how the server spells them.

A client may ask for `client_encoding=utf-8` or `DateStyle=iso`; a server reports `UTF8` and `ISO, MDY`. What a value becomes is
learned from a server once and kept for the pool (`Spellings`); a value that no server accepts refuses the login, with the
server's own error, as on a server of one's own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from mypy_extensions import i64

from pgpool_proxy import errors
from pgpool_proxy.session.parameters import Parameters, TrackedParameters, parse_options

if TYPE_CHECKING:
    from pgpool_proxy.session.context import Context

NOT_PARAMETERS: Final = ("user", "database", "options", "replication")
KEPT_UNASKED: Final = (b"extra_float_digits",)  # what drivers send at their defaults: pgjdbc, lib/pq, sqlx
MAX_SPELLINGS: Final = 1000  # values whose spelling is kept for one pool
MAX_EXTRAS: Final = 64  # untracked parameters of one client
MAX_STARTUPS: Final = 1000  # StartupMessages that need not be read again
MAX_KEPT: Final = 512  # bytes of one of them: a driver's own are below 200
PLAIN_NAME: Final = re.compile(rb"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)?").fullmatch


class LoginParameters:
    """What one client asks for: `own` are tracked parameters, `extras` others that are kept for it, sorted by name."""

    def __init__(self) -> None:
        self.own: dict[bytes, bytes] = {}
        self.extras: tuple[tuple[bytes, bytes], ...] = ()
        self.answer: LoginAnswer | None = None  # what was said to the last client that asked for this

    @property
    def is_empty(self) -> bool:
        return not self.own and not self.extras

    def collect(self, context: Context, given: dict[str, bytes]) -> None:
        """Sort the parameters of a StartupMessage. Raises `ProtocolViolation` for those that are not supported."""
        extras: dict[bytes, bytes] = {}
        for name, value in given.items():
            if name not in NOT_PARAMETERS:
                self._take(context, name.encode("utf-8", "replace"), value, "startup parameter", extras)
        options = given.get("options", b"")
        if options:
            pairs = parse_options(options)
            if pairs is not None:
                for option, value in pairs:
                    self._take(context, option, value, "startup parameter in options", extras)
            elif "options" not in context.ignored_parameters:
                raise errors.ProtocolViolation(
                    errors.UNSUPPORTED_PARAMETER.saying(
                        "unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed"
                    )
                )
        if len(extras) > MAX_EXTRAS:
            raise errors.ProtocolViolation(errors.UNSUPPORTED_PARAMETER.saying("too many startup parameters"))
        self.extras = tuple(sorted(extras.items()))

    def add_host(self, address: str, port: int) -> None:
        """application_name_add_host: where the client comes from stands behind its application_name."""
        given = b"app"
        for name in list(self.own):
            if name.lower() == b"application_name":
                given = self.own.pop(name)
        self.own[b"application_name"] = given + f" - {address}:{port}".encode()

    def _take(self, context: Context, name: bytes, value: bytes, what: str, extras: dict[bytes, bytes]) -> None:
        if 0 <= context.tracked.index(name) < context.tracked.asked_for:
            self.own[name] = value
            return
        shown = name.decode("utf-8", "replace")
        ignored = context.ignored_parameters
        if shown in ignored or (what != "startup parameter" and "options" in ignored):
            return
        lower = name.lower()
        if lower in KEPT_UNASKED or (context.track_startup_parameters and PLAIN_NAME(name) is not None):
            extras[lower] = value
            return
        raise errors.ProtocolViolation(errors.UNSUPPORTED_PARAMETER.saying(f"unsupported {what}: {shown}"))


class LoginAnswer:
    """What a login is told of its parameters: good as long as the servers' spellings are the same."""

    def __init__(self, spellings: Spellings, parameters: Parameters, statuses: bytes) -> None:
        self._spellings: Spellings = spellings
        self._version: i64 = spellings.version
        self.parameters: Parameters = parameters
        self.statuses: bytes = statuses

    def is_of(self, spellings: Spellings) -> bool:
        return self._spellings is spellings and self._version == spellings.version


class Startup:
    """A StartupMessage of a usual client, as it was read: shared by all that send the same, so nothing in it changes."""

    def __init__(self, context: Context, minor: i64, user: str, database_name: str, parameters: LoginParameters) -> None:
        self.minor: i64 = minor
        self.user: str = user
        self.database_name: str = database_name
        self.parameters: LoginParameters = parameters
        self._ignored: frozenset[str] = context.ignored_parameters
        self._keeps_all: bool = context.track_startup_parameters

    def is_read_as(self, context: Context) -> bool:
        """Would it be read the same today?"""
        return (
            self._ignored is context.ignored_parameters
            and self._keeps_all == context.track_startup_parameters
            and self.minor <= context.newest_minor
            and not context.application_name_add_host
        )


class Startups:
    """The StartupMessages that clients have sent lately, by their bytes: an application sends the same ones over and over."""

    def __init__(self) -> None:
        self._known: dict[bytes, Startup] = {}

    def __len__(self) -> int:
        return len(self._known)

    def find(self, packet: bytes, context: Context) -> Startup | None:
        found = self._known.get(packet)
        return found if found is not None and found.is_read_as(context) else None

    def keep(self, packet: bytes, startup: Startup) -> None:
        if len(packet) > MAX_KEPT:
            return
        if len(self._known) >= MAX_STARTUPS:
            self._known.clear()
        self._known[packet] = startup


class Spellings:
    """How the servers of one pool spell the values that clients have asked for."""

    def __init__(self, tracked: TrackedParameters, base: Parameters) -> None:
        self._tracked: TrackedParameters = tracked
        self._base: Parameters = base
        self._known: dict[tuple[bytes, bytes], bytes] = {}
        self.version: i64 = 0  # grows with what is learned

    def parameters_of(self, asked: LoginParameters) -> Parameters:
        """The client's values, as far as they are known in the servers' spelling."""
        if asked.is_empty:
            return self._base
        own: dict[bytes, bytes] = {}
        for name, value in asked.own.items():
            spelled = self._spelled(name, value)
            own[name] = value if spelled is None else spelled
        extras = asked.extras
        for name, value in extras:
            if self._is_reported(name):  # search_path, by PostgreSQL 18
                own[name] = self._known.get((name, value), value)
                extras = tuple([extra for extra in extras if extra[0] != name])
        return self._tracked.with_extras(self._tracked.overlaid(self._base, own), extras)

    def must_ask(self, asked: LoginParameters) -> bool:
        """Is there a value whose spelling, or whose being accepted at all, only a server knows?"""
        for name, value in asked.own.items():
            if self._spelled(name, value) is None:
                return True
        return any(extra not in self._known for extra in asked.extras)

    def learn(self, asked: LoginParameters, answered: Parameters) -> None:
        """A server has taken all of `asked`, and reports `answered`."""
        self.version += 1
        if len(self._known) > MAX_SPELLINGS:
            self._known.clear()
        for name, value in asked.own.items():
            spelled = answered.values[self._tracked.index(name)]
            if spelled is not None:
                self._known[(name.lower(), value)] = spelled
        for name, value in asked.extras:
            spelled = answered.values[self._tracked.index(name)] if self._is_reported(name) else None
            self._known[(name, value)] = value if spelled is None else spelled

    def _is_reported(self, name: bytes) -> bool:
        at = self._tracked.index(name)
        return at >= 0 and self._base.values[at] is not None

    def _spelled(self, name: bytes, value: bytes) -> bytes | None:
        base = self._base.values[self._tracked.index(name)]
        lower = name.lower()
        if lower == b"application_name":
            if len(value) < 64 and value.isascii():
                return value
        elif base is not None and value.lower() == base.lower():
            return base
        return self._known.get((lower, value))
