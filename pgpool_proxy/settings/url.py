"""`DATABASE_URL`: a connection URI as libpq reads it, made into a database entry, a user and a few settings.

Knows no file and no precedence (config.py has them). No error shows any part of a URL but the names of its parameters:
all the rest may be a password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes

from pgpool_proxy.errors import ConfigError
from pgpool_proxy.settings.entries import NAME_MAX, RESERVED, DatabaseEntry
from pgpool_proxy.settings.keys import strtol
from pgpool_proxy.settings.model import parse_setting

VARIABLE: Final = "DATABASE_URL"
SHAPE: Final = "expected postgresql://user:password@host:5432/dbname"
_SCHEME: Final = re.compile(r"postgres(?:ql)?://")
_BROKEN_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")

SETTINGS: Final = {
    "sslmode": "server_tls_sslmode",
    "sslrootcert": "server_tls_ca_file",
    "sslcert": "server_tls_cert_file",
    "sslkey": "server_tls_key_file",
    "connect_timeout": "server_connect_timeout",
}
"""Parameters of the URL that are settings here."""
PARTS: Final = frozenset({"host", "port", "user", "password", "dbname", "application_name", "client_encoding"})
"""Parameters that belong to the database entry, as libpq allows them in the query part too."""
FALLBACKS: Final = {"user": "PGUSER", "password": "PGPASSWORD"}


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """What a URL says."""

    entry: DatabaseEntry
    user: str
    password: str | None = field(repr=False)
    settings: dict[str, str]


def urls(environ: Mapping[str, str]) -> dict[str, str]:
    """Variable -> URL: DATABASE_URL and DATABASE_URL_<NAME>, those that are not empty, in order."""
    named = sorted(name for name in environ if name.startswith(VARIABLE + "_") and len(name) > len(VARIABLE) + 1)
    return {name: environ[name] for name in (VARIABLE, *named) if environ.get(name)}


def read_url(variable: str, url: str, environ: Mapping[str, str]) -> DatabaseUrl:
    """Raises ConfigError. The entry's name is the database's, or the end of DATABASE_URL_<NAME> in small letters. A user and a
    password that the URL does not have are PGUSER and PGPASSWORD, as for libpq."""

    def wrong(problem: str) -> ConfigError:
        return ConfigError(problem, file="environment", key=variable)

    scheme = _SCHEME.match(url)
    if scheme is None:
        raise wrong(SHAPE)
    rest, _, query = url[scheme.end() :].partition("?")
    authority, _, path = rest.partition("/")
    userinfo, _, address = authority.rpartition("@")
    if "@" in path or "@" in query.partition("=")[0]:
        raise wrong(f"{SHAPE}; write / ? and @ in a password as %2F %3F and %40")
    name, colon, password = userinfo.partition(":")
    parts = {"user": name, "dbname": path} | ({"password": password} if colon else {})
    try:
        hosts, port = _address(address)
        parts |= {"host": hosts} | ({"port": port} if port else {})
        parts = {key: _decoded(value) for key, value in parts.items()}
        given, settings = _query(query)
        parts |= given
        for key, fallback in FALLBACKS.items():
            if not parts.get(key) and environ.get(fallback):
                parts[key] = _storable(environ[fallback])
    except ValueError as exc:
        raise wrong(str(exc)) from None
    for key in ("user", "dbname", "host"):
        if not parts[key]:
            raise wrong(f"no {key}: {SHAPE}" + (" (or PGUSER and PGPASSWORD beside it)" if key == "user" else ""))
    entry_name = variable[len(VARIABLE) + 1 :].lower() or parts["dbname"]
    if entry_name == RESERVED or len(entry_name.encode("utf-8", "surrogateescape")) > NAME_MAX:
        raise wrong(f"the database's name is reserved or longer than {NAME_MAX} bytes")
    try:
        entry = _entry(entry_name, parts)
    except ValueError as exc:
        raise wrong(str(exc)) from None
    return DatabaseUrl(entry, parts["user"], parts.get("password") or None, settings)


def _entry(name: str, parts: Mapping[str, str]) -> DatabaseEntry:
    port = strtol(parts.get("port", "5432"))
    if port is None or not 1 <= port <= 65535:
        raise ValueError("port: expected a whole number from 1 to 65535")
    hosts = tuple(parts["host"].split(","))
    if "" in hosts:
        raise ValueError("host: expected a comma list of hosts, one of them is empty")
    return DatabaseEntry(
        name,
        dbname=parts["dbname"],
        hosts=hosts,
        port=port,
        user=parts["user"],
        password=parts.get("password") or None,
        application_name=parts.get("application_name"),
        client_encoding=parts.get("client_encoding"),
        file="environment",
    )


def _address(address: str) -> tuple[str, str]:
    """`host:port,[::1]:port` -> hosts as a comma list, and the one port that they share."""
    hosts: list[str] = []
    ports: set[str] = set()
    for item in address.split(",") if address else []:
        if item.startswith("["):
            host, bracket, tail = item[1:].partition("]")
            if not bracket or (tail and tail[0] != ":"):
                raise ValueError("host: expected an IPv6 address in [brackets]")
            port = tail[1:]
        else:
            host, _, port = item.partition(":")
            if ":" in port:
                raise ValueError("host: an IPv6 address needs [brackets]")
        hosts.append(host)
        ports.add(port)
    if len(ports) > 1:
        raise ValueError("port: all hosts must have the same port")
    return ",".join(hosts), ports.pop() if ports else ""


def _query(query: str) -> tuple[dict[str, str], dict[str, str]]:
    """The parameters of the query part: those of the entry, and those that are settings."""
    parts: dict[str, str] = {}
    settings: dict[str, str] = {}
    for item in query.split("&") if query else []:
        name, equals, text = item.partition("=")
        if not equals:
            raise ValueError("parameters: expected name=value&name=value")
        value = _decoded(text)
        if name in PARTS:
            parts[name] = value
        elif name in SETTINGS:
            try:
                parse_setting(SETTINGS[name], value)
            except ValueError as exc:
                raise ValueError(f"parameter {name}: {exc}") from None
            settings[SETTINGS[name]] = value
        else:
            known = ", ".join(sorted(PARTS | SETTINGS.keys()))
            raise ValueError(f'parameter "{name}" is not supported; these are: {known}')
    return parts, settings


def _decoded(text: str) -> str:
    if _BROKEN_ESCAPE.search(text):
        raise ValueError("a % that does not start a %XX escape; write % in a password as %25")
    return _storable(unquote_to_bytes(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape"))


def _storable(value: str) -> str:
    if "\0" in value or "\n" in value:
        raise ValueError("a zero byte or a line break")
    return value
