"""pg_hba.conf: who may come from where, and how they have to prove it.

Knows PostgreSQL 16's file format without what needs its catalogs (`+group`, samerole, samegroup). The first line that
fits decides; a line that cannot be read is a problem and decides nothing. Must not know how a method is carried out,
read a file by itself, nor resolve names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pgpool_proxy.auth.addresses import Address, AddressTest, Interface, Resolve, parse_address, parse_test
from pgpool_proxy.auth.regex import compile_pattern
from pgpool_proxy.auth.tokens import Files, Line, Token, tokenize
from pgpool_proxy.errors import ConfigError

LOCAL: Final = "local"
HOST: Final = "host"
HOST_TLS: Final = "hostssl"
HOST_NO_TLS: Final = "hostnossl"
# The longest name that is held against regular expressions: theirs can take time by a power of its length, and a database
# that a stranger names may be as long as a StartupMessage. PostgreSQL's own names have 63 bytes.
MAX_MATCHED: Final = 127
TYPES: Final = frozenset({LOCAL, HOST, HOST_TLS, HOST_NO_TLS})

LDAP_OPTIONS: Final = frozenset(
    {"ldapserver", "ldapport", "ldapscheme", "ldaptls", "ldapprefix", "ldapsuffix", "ldapbasedn", "ldapbinddn"}
    | {"ldapbindpasswd", "ldapsearchattribute", "ldapsearchfilter", "ldapurl"}
)
# Options by method. An option that is not known here is a problem: it might have been there to forbid something.
METHODS: Final[dict[str, frozenset[str]]] = {
    "trust": frozenset(),
    "reject": frozenset(),
    "password": frozenset(),
    "md5": frozenset(),
    "scram-sha-256": frozenset(),
    "peer": frozenset({"map"}),
    "cert": frozenset({"map"}),
    "ldap": LDAP_OPTIONS,
    "pam": frozenset({"pamservice", "pam_use_hostname"}),
}


@dataclass(frozen=True, slots=True)
class Names:
    """The database or user column."""

    everything: bool = False
    same_user: bool = False
    replication: bool = False
    names: frozenset[str] = frozenset()
    patterns: tuple[re.Pattern[str], ...] = ()

    def match(self, name: str, user: str) -> bool:
        return (
            self.everything
            or name in self.names
            or (self.same_user and name == user)
            or any(pattern.search(name) is not None for pattern in self.patterns)
        )


@dataclass(frozen=True, slots=True)
class HbaRule:
    """One line: whom it is for, `method`, and the method's `options` (with `map` among them)."""

    file: str
    line: int
    conn_type: str
    databases: Names
    users: Names
    address: AddressTest
    method: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)  # ldapbindpasswd is among them

    @property
    def map(self) -> str:
        """The ident map, or an empty string."""
        return self.options.get("map", "")

    def match(
        self,
        local: bool,
        database: str,
        user: str,
        address: Address | None,
        tls: bool,
        replication: bool,
        resolve: Resolve,
    ) -> bool:
        """True where the line is for this connection. `replication` means physical replication."""
        if local != (self.conn_type == LOCAL):
            return False
        if (self.conn_type == HOST_TLS and not tls) or (self.conn_type == HOST_NO_TLS and tls):
            return False
        if replication:  # not even `all` is for it
            if not self.databases.replication:
                return False
        elif not self.databases.match(database, user):
            return False
        # The address comes last: a name may have to be resolved for it.
        return self.users.match(user, user) and (local or self.address.match(address, resolve))


class HbaRules:
    """All lines of an HBA file. `problems` are lines left out, `warnings` lines that may not mean what they say.

    `names` are the host names that `match` may have to resolve, `has_patterns` tells of regular expressions for databases.
    """

    __slots__ = ("has_patterns", "names", "problems", "rules", "warnings")

    def __init__(self, rules: list[HbaRule], problems: list[ConfigError], warnings: list[ConfigError]) -> None:
        self.rules = rules
        self.problems = problems
        self.warnings = warnings
        self.names = frozenset(rule.address.name for rule in rules if rule.address.name)
        self.has_patterns = any(rule.databases.patterns for rule in rules)

    def __repr__(self) -> str:
        return f"<HbaRules rules={len(self.rules)} problems={len(self.problems)}>"

    def match(
        self,
        conn_type: str,
        database: str,
        user: str,
        address: Address | str | None,
        tls: bool,
        replication: bool = False,
        resolve: Resolve | None = None,
    ) -> HbaRule | None:
        """The first line for this connection, or None. Where a regular expression would have to say whether a line is for a
        database with a name beyond MAX_MATCHED, no line is: passing over that one might pass over a reject.

        `conn_type` is "local" (unix socket) or "host". `resolve` gives the addresses of a name out of `names`;
        without it lines with a name fit nobody.
        """
        if self.has_patterns and max(len(database), len(user)) > MAX_MATCHED:
            return None
        peer = None if address is None else parse_address(address)
        for rule in self.rules:
            if rule.match(conn_type == LOCAL, database, user, peer, tls, replication, resolve or unresolved):
                return rule
        return None


def unresolved(name: str) -> Sequence[Address | str]:
    return ()


def parse_hba(
    text: str,
    file: str = "",
    read: Callable[[str], str] | None = None,
    listing: Callable[[str], Sequence[str]] | None = None,
    interfaces: Sequence[Interface] = (),
) -> HbaRules:
    """Reads an HBA file.

    `read` gives the text of another file and `listing` the names in a directory, for include, include_if_exists,
    include_dir and @file; both raise OSError. `interfaces` are this host's addresses with their networks, for samehost
    and samenet. Never raises: what is wrong stands in `problems`.
    """
    problems: list[ConfigError] = []
    warnings: list[ConfigError] = []
    rules: list[HbaRule] = []
    for line in tokenize(text, file, Files(read, listing), problems):
        doubts: list[str] = []
        try:
            rules.append(parse_rule(line, interfaces, doubts))
        except ConfigError as problem:
            problems.append(ConfigError(problem.problem, file=line.file, line=line.number))
        warnings += [ConfigError(doubt, file=line.file, line=line.number) for doubt in doubts]
    return HbaRules(rules, problems, warnings)


def parse_rule(line: Line, interfaces: Sequence[Interface], doubts: list[str]) -> HbaRule:
    """One line. Raises ConfigError."""
    fields = line.fields
    conn_type = single(fields, 0, "a connection type").text
    if conn_type not in TYPES:
        raise ConfigError(f'unknown connection type "{conn_type}"')
    if len(fields) < 3:
        raise ConfigError("a line needs a database, a user and a method")
    databases, users = parse_databases(fields[1]), parse_users(fields[2])
    at = 3
    address = AddressTest()
    if conn_type != LOCAL:
        tokens = [single(fields, at, "an address")] + [joined(column) for column in fields[at + 1 : at + 2]]
        address, taken = parse_test(tokens, interfaces, doubts)
        at += taken
    method = single(fields, at, "a method").text
    if method not in METHODS:
        raise ConfigError(f'unknown or unsupported method "{method}"')
    if method == "peer" and conn_type != LOCAL:
        raise ConfigError("peer is for local lines only")
    if method == "cert" and conn_type in {LOCAL, HOST_NO_TLS}:
        raise ConfigError("cert is for hostssl and host lines only")
    options = parse_options(fields[at + 1 :], method)
    return HbaRule(line.file, line.number, conn_type, databases, users, address, method, options)


def parse_databases(tokens: list[Token]) -> Names:
    """Names, /patterns, all, sameuser, replication. Raises ConfigError."""
    for word in ("samerole", "samegroup"):
        if any(token.is_keyword(word) for token in tokens):
            raise ConfigError(f"{word} is not supported: memberships are known to the database only")
    rest = [token for token in tokens if not any(token.is_keyword(word) for word in ("sameuser", "replication"))]
    found = parse_users(rest)
    return Names(
        found.everything,
        any(token.is_keyword("sameuser") for token in tokens),
        any(token.is_keyword("replication") for token in tokens),
        found.names,
        found.patterns,
    )


def parse_users(tokens: list[Token]) -> Names:
    """Names, /patterns, all. Raises ConfigError."""
    names: set[str] = set()
    patterns: list[re.Pattern[str]] = []
    everything = False
    for token in tokens:
        if token.is_group:
            raise ConfigError(f'"{token.text}" is not supported: memberships are known to the database only')
        if token.is_regex:
            patterns.append(compile_pattern(token.text[1:]))
        elif token.is_keyword("all"):
            everything = True
        else:
            names.add(token.text)
    return Names(everything, names=frozenset(names), patterns=tuple(patterns))


def parse_options(fields: list[list[Token]], method: str) -> dict[str, str]:
    """name=value, as many as there are. Raises ConfigError."""
    options: dict[str, str] = {}
    for token in (token for column in fields for token in column):
        name, equals, value = token.text.partition("=")
        if not equals:
            raise ConfigError(f'"{token.text}" is not an option of the form name=value')
        if name not in METHODS[method]:
            raise ConfigError(f'unknown option "{name}" of method {method}')
        if name in options:
            raise ConfigError(f'option "{name}" is given twice')
        options[name] = value
    return options


def joined(column: list[Token]) -> Token:
    """A field as one word, for where a list is never right: it then fails as a word."""
    return Token(",".join(token.text for token in column), column[0].quoted)


def single(fields: list[list[Token]], at: int, what: str) -> Token:
    """The only token of a field. Raises ConfigError."""
    if at >= len(fields):
        raise ConfigError(f"the line ends before {what}")
    if len(fields[at]) != 1:
        raise ConfigError(f"{what} is one word, not a list")
    return fields[at][0]
