"""LDAP and PAM: asked in threads of their own, whether a typed password is the user's.

Both libraries are optional extras and imported by the first login that needs them; without it the login is refused and the log
says what to install. A directory that hangs takes threads, never the loop; the threads do not keep the process from ending.
Nothing here logs a password.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pgpool_proxy.auth.hba import parse_options
from pgpool_proxy.auth.tokens import split_fields
from pgpool_proxy.errors import ConfigError
from pgpool_proxy.settings.config import Config, beside

MAX_THREADS: Final = 16
MAX_WAITING: Final = 1000  # logins; more than that wait for nothing
LDAP_TIMEOUT_S: Final = 10
PAM_SERVICE: Final = "pgbouncer"
LIBRARIES: Final = {"ldap": "ldap3", "pam": "pamela"}
SCOPES: Final = {"": "SUBTREE", "sub": "SUBTREE", "one": "LEVEL", "base": "BASE"}
# What means something in a filter or a distinguished name. PostgreSQL refuses the first five.
UNSAFE: Final = frozenset('*()\\/,+"<>;=\0')


@dataclass(frozen=True)
class Question:
    """Whom to ask about whom. `options` are those of an HBA line, `text` is auth_ldap_options."""

    method: str
    user: str
    address: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    text: str = field(default="", repr=False)


def load_libraries(config: Config) -> None:
    """Import what the configuration will need, before root's rights are given up: the new user may not be able to read it."""
    settings = config.settings
    named: str = settings.auth_type
    if named == "hba":
        try:
            named = Path(beside(config, settings.auth_hba_file)).read_text(errors="replace")
        except OSError:
            return
    for method, library in LIBRARIES.items():
        if method in named:
            try:
                import_module(library)
            except ImportError:  # the first login that needs it says so
                continue


def load_all_libraries() -> None:
    """The same where the configuration is not known."""
    for library in LIBRARIES.values():
        try:
            import_module(library)
        except ImportError:
            continue


class NotPossible(Exception):
    """There is no answer, and why; never leaves this module."""


Told = Callable[[bool, str], None]


class Outside:
    """The questions under way."""

    def __init__(self) -> None:
        self._running = 0
        self._waiting: deque[tuple[Question, bytes, Told]] = deque()
        self._closed = False

    def close(self) -> None:
        self._closed = True
        self._waiting.clear()

    def ask(self, question: Question, password: bytes, told: Told) -> None:
        """`told(proved, problem)` is called on the loop, later."""
        if self._running >= MAX_THREADS:
            if len(self._waiting) >= MAX_WAITING:
                asyncio.get_running_loop().call_soon(told, False, "too many logins wait for an answer")
            else:
                self._waiting.append((question, password, told))
            return
        self._running += 1
        loop = asyncio.get_running_loop()
        threading.Thread(
            target=self._work, args=(loop, question, password, told), name=f"{question.method} login", daemon=True
        ).start()

    def _work(self, loop: asyncio.AbstractEventLoop, question: Question, password: bytes, told: Told) -> None:
        proved, problem = answer(question, password)
        try:
            loop.call_soon_threadsafe(self._ended, proved, problem, told)
        except RuntimeError:  # the loop has ended meanwhile
            return

    def _ended(self, proved: bool, problem: str, told: Told) -> None:
        self._running -= 1
        if self._closed:
            return
        if self._waiting:
            self.ask(*self._waiting.popleft())
        told(proved, problem)


def answer(question: Question, password: bytes) -> tuple[bool, str]:
    """In a thread: (is it the user's password, what went wrong)."""
    try:
        typed = password.decode()
        if not typed or "\0" in question.user:
            return False, "an empty password"  # an anonymous bind would succeed
        if question.method == "pam":
            return ask_pam(question, typed), ""
        return ask_ldap(question, typed), ""
    except UnicodeDecodeError:
        return False, "the password is not UTF-8"
    except (NotPossible, ConfigError) as problem:
        return False, str(problem)
    except Exception as error:  # a library's own; its text may quote what it was given
        return False, f"failed with {type(error).__name__}"


# --- PAM ------------------------------------------------------------------------------------------------------------------
def ask_pam(question: Question, password: str) -> bool:
    try:
        import pamela
    except ImportError:
        raise NotPossible("pamela is not installed: pip install 'pgpool-proxy[pam]'") from None
    service = question.options.get("pamservice", PAM_SERVICE)
    try:
        # resetcred=0: nothing is changed about the credentials of this process
        pamela.authenticate(question.user, password, service=service, resetcred=0)
    except pamela.PAMError:
        return False
    return True


# --- LDAP -----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Directory:
    """Where an LDAP directory is and how users are found in it, under PostgreSQL's option names."""

    servers: tuple[str, ...]
    port: int
    use_tls: bool  # ldaps
    start_tls: bool
    prefix: str
    suffix: str
    base: str
    bind_dn: str
    bind_password: str = field(repr=False)
    attribute: str = "uid"
    filter: str = ""
    scope: str = "SUBTREE"


def directory(options: Mapping[str, str]) -> Directory:
    """The options of a line or of auth_ldap_options. Raises ConfigError."""
    given = dict(options)
    url = given.pop("ldapurl", "")
    scope = "SUBTREE"
    if url:
        parts = urlsplit(url)
        if parts.scheme not in {"ldap", "ldaps"} or parts.username is not None or not parts.hostname:
            raise ConfigError("expected ldap://host:port/basedn?attribute?scope?filter", key="ldapurl")
        attribute, word, found = ([unquote(part) for part in parts.query.split("?")] + ["", "", ""])[:3]
        if word not in SCOPES:
            raise ConfigError("the scope is one of sub, one, base", key="ldapurl")
        scope = SCOPES[word]
        from_url = {
            "ldapscheme": parts.scheme,
            "ldapserver": parts.hostname,
            "ldapport": str(parts.port or ""),
            "ldapbasedn": unquote(parts.path.lstrip("/")),
            "ldapsearchattribute": attribute,
            "ldapsearchfilter": found,
        }
        given = {name: value for name, value in from_url.items() if value} | given
    servers = tuple(given.get("ldapserver", "").split())
    if not servers:
        raise ConfigError("ldapserver or ldapurl is missing", key="ldap")
    secure = given.get("ldapscheme", "ldap") == "ldaps"
    port = given.get("ldapport", "636" if secure else "389")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError("expected a port", key="ldapport")
    simple = "ldapprefix" in given or "ldapsuffix" in given
    if simple == ("ldapbasedn" in given):
        raise ConfigError("either ldapprefix and ldapsuffix, or ldapbasedn and its kin", key="ldap")
    return Directory(
        servers,
        int(port),
        secure,
        given.get("ldaptls", "0") == "1",
        given.get("ldapprefix", ""),
        given.get("ldapsuffix", ""),
        given.get("ldapbasedn", ""),
        given.get("ldapbinddn", ""),
        given.get("ldapbindpasswd", ""),
        given.get("ldapsearchattribute", "uid"),
        given.get("ldapsearchfilter", ""),
        scope,
    )


def ask_ldap(question: Question, password: str) -> bool:
    """Bind as the user, whose name is put together or searched for first."""
    try:
        import ldap3
    except ImportError:
        raise NotPossible("ldap3 is not installed: pip install 'pgpool-proxy[ldap]'") from None
    options = question.options or parse_options(split_fields(question.text), "ldap")
    where = directory(options)
    if not question.user or UNSAFE.intersection(question.user):
        raise NotPossible("the user name has a character that means something to LDAP")
    if where.base:
        found = _search(ldap3, where, question.user)
        if len(found) != 1:  # a bind all the same: an answer that comes sooner would tell who there is
            nobody = _bound(ldap3, where, f"{where.attribute}={question.user},{where.base}", password)
            if nobody is not None:
                nobody.unbind()
            raise NotPossible(f"the search found {'no entry' if not found else 'more than one entry'}")
        name = found[0]
    else:
        name = where.prefix + question.user + where.suffix
    connection = _bound(ldap3, where, name, password)
    if connection is None:
        return False
    connection.unbind()
    return True


def _search(ldap3: Any, where: Directory, user: str) -> list[str]:
    """The distinguished names that the search finds: one, none, or two of those that there are."""
    connection = _bound(ldap3, where, where.bind_dn, where.bind_password)
    if connection is None:
        raise NotPossible("the directory refuses ldapbinddn")
    try:
        text = where.filter.replace("$username", user) if where.filter else f"({where.attribute}={user})"
        connection.search(where.base, text, search_scope=getattr(ldap3, where.scope), attributes=[], size_limit=2)
        return [str(entry["dn"]) for entry in connection.response if entry["type"] == "searchResEntry"]
    finally:
        connection.unbind()


def _bound(ldap3: Any, where: Directory, name: str, password: str) -> Any:
    """A connection that is bound as `name`; None where the directory refuses it. An empty name is anonymous."""
    tls = ldap3.Tls(validate=ssl.CERT_REQUIRED)
    problem = "no server could be reached"
    for host in where.servers:
        server = ldap3.Server(
            host, where.port, use_ssl=where.use_tls, tls=tls, get_info=ldap3.NONE, connect_timeout=LDAP_TIMEOUT_S
        )
        connection = ldap3.Connection(
            server,
            user=name or None,
            password=password or None,
            authentication=ldap3.SIMPLE if name else ldap3.ANONYMOUS,
            receive_timeout=LDAP_TIMEOUT_S,
            raise_exceptions=False,
        )
        try:
            if where.start_tls:
                connection.open()
                if not connection.start_tls():
                    raise NotPossible("the directory refuses StartTLS")
            if connection.bind():
                return connection
        except ldap3.core.exceptions.LDAPException as error:
            problem = f"{host}: {type(error).__name__}"
            continue
        return None
    raise NotPossible(problem)
