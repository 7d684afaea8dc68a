"""The parameters that follow a client from server to server: which they are, their values, and what to SET at hand-over.

Servers report some parameters (ParameterStatus); for those that are tracked, a client's values and a server's values are each
one immutable `Parameters`. As long as a client and a server share the same object there is nothing to do, which is one
comparison of pointers on the way of every query.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mypy_extensions import i64

ALWAYS_TRACKED: Final = (
    b"client_encoding",
    b"DateStyle",
    b"TimeZone",
    b"standard_conforming_strings",
    b"application_name",
)
WHERE_REPORTED: Final = b"search_path"  # by PostgreSQL 18 and later: tracked without being asked for
EXACT: Final = (b"application_name", b"search_path")  # upper and lower case are different values
MAX_SHARED: Final = 10_000  # distinct sets of values that are kept to be shared; beyond it they are simply not shared


class Parameters:
    """The values of the tracked parameters in the order of `TrackedParameters.names`; None is "not known". Immutable."""

    def __init__(self, values: tuple[bytes | None, ...], extras: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.values = values
        self.extras = extras  # (name, value) of parameters that servers do not report (track_startup_parameters)


class TrackedParameters:
    """Which parameters are tracked, and the one place where `Parameters` are made (so that equal ones are shared)."""

    def __init__(self, extra: Sequence[bytes] = ()) -> None:
        names = list(ALWAYS_TRACKED)
        known = {name.lower() for name in names}
        for name in extra:
            if name and name.lower() not in known:
                known.add(name.lower())
                names.append(name)
        self.asked_for: i64 = len(names)  # those before it are every client's to set at login, whether they are reported or not
        if WHERE_REPORTED not in known:
            names.append(WHERE_REPORTED)
        self.names: list[bytes] = names
        self._index: dict[bytes, int] = {name.lower(): at for at, name in enumerate(names)}
        self._shared: dict[tuple[object, object], Parameters] = {}
        self.nothing: Parameters = self.make(tuple([None for _ in names]))

    def index(self, name: bytes) -> int:
        """Place of a parameter among the tracked ones (any case), or -1."""
        return self._index.get(name.lower(), -1)

    def make(self, values: tuple[bytes | None, ...], extras: tuple[tuple[bytes, bytes], ...] = ()) -> Parameters:
        key = (values, extras)
        found = self._shared.get(key)
        if found is None:
            found = Parameters(values, extras)
            if len(self._shared) >= MAX_SHARED:
                self._shared.clear()
            self._shared[key] = found
        return found

    def with_extras(self, old: Parameters, extras: tuple[tuple[bytes, bytes], ...]) -> Parameters:
        return old if old.extras == extras else self.make(old.values, extras)

    def replaced(self, old: Parameters, at: i64, value: bytes) -> Parameters:
        """`old` with one value changed; `old` itself when it is that already."""
        if old.values[at] == value:
            return old
        values = list(old.values)
        values[at] = value
        return self.make(tuple(values), old.extras)

    def from_reported(self, reported: dict[bytes, bytes]) -> Parameters:
        """The tracked ones among the parameters that a server has reported (names as it spells them)."""
        values: list[bytes | None] = [None for _ in self.names]
        for name, value in reported.items():
            at = self._index.get(name.lower(), -1)
            if at >= 0:
                values[at] = value
        return self.make(tuple(values))

    def overlaid(self, base: Parameters, own: dict[bytes, bytes]) -> Parameters:
        """`base` with a client's own values, keyed by name in any case; what is not tracked is left out."""
        values = list(base.values)
        for name, value in own.items():
            at = self._index.get(name.lower(), -1)
            if at >= 0:
                values[at] = value
        return self.make(tuple(values))

    def restored(
        self, before: Parameters | None, current: Parameters, at_login: Parameters, at_connect: Parameters
    ) -> Parameters:
        """A client's parameters after a RESET that has made the server's `before` to `current`.

        What it has changed to the value that the server had `at_login` gets the one that the client had `at_connect`; another
        value is the client's own, from a SET behind the RESET. `before` is None for a reset of everything, which may be of no
        visible effect.
        """
        values = list(current.values)
        for at, value in enumerate(current.values):
            if value == at_login.values[at] and (before is None or before.values[at] != value):
                values[at] = at_connect.values[at]
        return self.make(tuple(values), at_connect.extras)

    def difference(self, wanted: Parameters, current: Parameters) -> bytes:
        """SQL that turns `current` into `wanted`; empty when there is nothing to do. Values are compared without case."""
        if wanted.values == current.values and wanted.extras == current.extras:
            return b""
        parts = _extra_difference(wanted.extras, current.extras)
        for at, name in enumerate(self.names):
            want = wanted.values[at]
            have = current.values[at]
            if want is None or want == have:
                continue
            if have is not None and want.lower() == have.lower() and name.lower() not in EXACT:
                continue
            if name.lower() == b"search_path":  # a list of identifiers: SET would take it for one quoted name
                parts.append(b"SELECT pg_catalog.set_config('search_path'," + literal(want) + b",false);")
            else:
                parts.append(b"SET " + name + b"=" + literal(want) + b";")
        return b"".join(parts)


def _extra_difference(wanted: tuple[tuple[bytes, bytes], ...], current: tuple[tuple[bytes, bytes], ...]) -> list[bytes]:
    """Statements that turn one set of untracked parameters into another."""
    names = [name for name, _ in wanted]
    parts = [b"RESET " + name + b";" for name, _ in current if name not in names]
    for name, value in wanted:
        if (name, value) not in current:
            parts.append(b"SELECT pg_catalog.set_config(" + literal(name) + b"," + literal(value) + b",false);")
    return parts


def taken_by_reset(extras: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """Statements that give a server those of `extras` again that a RESET took from it; what its client has SET meanwhile stays.

    The tag of RESET does not say what it was about. pg_settings tells a SET by its source; it does not show parameters of an
    unknown prefix (`app.tenant`) and `role`, which are empty or `none` after a RESET.
    """
    parts: list[bytes] = []
    for name, value in extras:
        named = literal(name)
        parts.append(
            b"SELECT pg_catalog.set_config(" + named + b"," + literal(value) + b",false) WHERE coalesce("
            b"(SELECT source<>'session' FROM pg_catalog.pg_settings WHERE pg_catalog.lower(name)=" + named + b"),"
            b"coalesce(pg_catalog.current_setting(" + named + b",true),'') IN ('','none'));"
        )
    return b"".join(parts)


def literal(value: bytes) -> bytes:
    """`value` as an SQL string literal that reads the same whatever standard_conforming_strings is."""
    quoted = value.replace(b"'", b"''")
    if b"\\" in quoted:
        return b"E'" + quoted.replace(b"\\", b"\\\\") + b"'"
    return b"'" + quoted + b"'"


def parse_options(options: bytes) -> list[tuple[bytes, bytes]] | None:
    """(name, value) pairs of the startup parameter `options`: `-c k=v`, `-ck=v`, `--k=v`, backslash escapes.

    None when there is anything else in it. As PostgreSQL's pg_split_opts and process_postgres_switches.
    """
    pairs: list[tuple[bytes, bytes]] = []
    words = _split(options)
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word == b"-c":
            if at >= len(words):
                return None
            setting = words[at]
            at += 1
        elif word.startswith((b"-c", b"--")):
            setting = word[2:]
        else:
            return None
        name, equals, value = setting.partition(b"=")
        if not equals or not name:
            return None
        pairs.append((name.replace(b"-", b"_") if word.startswith(b"--") else name, value))
    return pairs


def _split(options: bytes) -> list[bytes]:
    words: list[bytes] = []
    word = bytearray()
    inside = False
    escaped = False
    for byte in options:
        if escaped:
            word.append(byte)
            escaped = False
        elif byte == 0x5C:
            escaped = True
            inside = True
        elif byte in b" \t\n\r\f\v":
            if inside:
                words.append(bytes(word))
                word = bytearray()
                inside = False
        else:
            word.append(byte)
            inside = True
    if inside:
        words.append(bytes(word))
    return words
