from __future__ import annotations

import ipaddress
import re

import pytest

from pgpool_proxy.auth.hba import parse_hba

INTERFACES = [ipaddress.ip_interface("192.168.5.7/24"), ipaddress.ip_interface("fd00::7/64")]


def line_of(text, conn_type="host", database="db", user="alice", address="10.1.2.3", tls=False, **more):
    """The number of the line that decides, or None. The text must be without a problem."""
    resolve = more.pop("resolve", None)
    rules = parse_hba(text, "pg_hba.conf", interfaces=INTERFACES, **more.pop("files", {}))
    assert rules.problems == []
    rule = rules.match(conn_type, database, user, address, tls, resolve=resolve, **more)
    return None if rule is None else rule.line


def problem_of(text, **files):
    rules = parse_hba(text, "pg_hba.conf", **files)
    assert len(rules.problems) == 1
    assert rules.rules == []
    return str(rules.problems[0])


# --- lines --------------------------------------------------------------------------------------------------------


def test_the_first_line_that_fits_decides():
    text = "# comment\nhost other all all trust\nhost db all all reject\nhost all all all trust\n"
    assert line_of(text) == 3


def test_without_a_line_nobody_decides():
    assert line_of("host other all all trust\n") is None
    assert line_of("") is None


def test_comments_blanks_and_continued_lines():
    assert line_of("\n\t # x\nhost all \\\n  all all \\\n trust # comment\n") == 3
    assert line_of('host "a#b" all all trust#x', database="a#b") == 1
    assert line_of("host all all all trust\r\n") == 1


@pytest.mark.parametrize(
    ("line", "local", "plain", "tls"),
    [
        ("local all all trust", True, False, False),
        ("host all all all trust", False, True, True),
        ("hostssl all all all trust", False, False, True),
        ("hostnossl all all all trust", False, True, False),
    ],
)
def test_connection_types(line, local, plain, tls):
    assert (line_of(line, "local", address=None) is not None) is local
    assert (line_of(line) is not None) is plain
    assert (line_of(line, tls=True) is not None) is tls


def test_a_line_that_is_broken_is_left_out_and_named():
    rules = parse_hba("host all all all trust\nhost all all\nhost all all all md5\n", "pg_hba.conf")
    assert [rule.line for rule in rules.rules] == [1, 3]
    assert [(problem.file, problem.line) for problem in rules.problems] == [("pg_hba.conf", 2)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("host", "needs"),
        ("host all", "needs"),
        ("local all all", "before a method"),
        ("host all all", "before an address"),
        ("host all all all", "before a method"),
        ("hostgssenc all all all trust", "hostgssenc"),
        ("HOST all all all trust", "HOST"),
        ("host,local all all all trust", "not a list"),
        ("host all all all trust,md5", "not a list"),
        ("host all all 10.0.0.1,10.0.0.2 trust", "not a list"),
        ("host all all all gss", "gss"),
        ("host all all all TRUST", "TRUST"),
        ("host all all all trust map=x", 'option "map"'),
        ("hostssl all all all md5 clientcert=verify-full", "clientcert"),
        ("host all all all trust extra", "name=value"),
        ("hostssl all all all cert map=a map=b", "twice"),
        ("host all all all peer", "peer"),
        ("local all all cert", "cert"),
        ("hostnossl all all all cert", "cert"),
        ("host all +admins all trust", r"\+admins"),
        ("host +admins all all trust", r"\+admins"),
        ("host samerole all all trust", "samerole"),
        ("host samegroup all all trust", "samegroup"),
        ("host all /( all trust", "regular expression"),
        ('host all "alice all trust', "quotation mark"),
        ("host a, all all trust,", "follows a comma"),
        ("host ,a all all trust", "before it"),
        ("host a,,b all all trust", "before it"),
        ("host all all 10.0.0.1 trust", "mask"),
        ("host all all 10.0.0.1", "mask"),
        ("host all all 10.0.0.0/33 trust", "length"),
        ("host all all 10.0.0.0/ trust", "length"),
        ("host all all 10.0.0.0/+8 trust", "length"),
        ("host all all 10.0.0.0/255.0.0.0 trust", "length"),
        ("host all all ::/129 trust", "length"),
        ("host all all 10.0.0.0 255.0.255.0 trust", "does not fit"),
        ("host all all 10.0.0.0 ffff:: trust", "does not fit"),
        ("host all all 10.0.0.0 255.0.0.0,x trust", "invalid mask"),
        ("host all all 300.1.2.3 trust", "invalid address"),
        ("host all all 300.1.2.3/8 trust", "invalid address"),
        ("host all all 10.0.0 trust", "invalid address"),
        ("host all all fe80::1%eth0/64 trust", "zone"),
        ("host all all .example.com trust", "suffix"),
        ("host all all -x trust", "invalid address"),
        ("host all all a..b trust", "invalid address"),
        ("host all all " + "a" * 256 + " trust", "invalid address"),
        ("host a\0b all all trust", "zero byte"),
    ],
)
def test_problems_say_what_is_wrong(text, says):
    assert re.search(says, problem_of(text))


# --- names --------------------------------------------------------------------------------------------------------


def test_lists_of_names_with_and_without_blanks():
    text = "host a,b, db all all trust"
    assert [line_of(text, database=name) for name in ("a", "b", "db", "c")] == [1, 1, 1, None]


def test_quoted_words_have_no_special_meaning():
    assert line_of('host "all" all all trust') is None
    assert line_of('host "all" all all trust', database="all") == 1
    assert line_of('host all "all" all trust') is None
    assert line_of('host "sameuser" all all trust', database="alice") is None
    assert line_of('host all "+alice" all trust', user="+alice") == 1
    assert line_of('host all "@alice" all trust', user="@alice") == 1
    assert line_of('host "a ""b"", c" all all trust', database='a "b", c') == 1
    assert line_of('host "replication" all all trust', replication=True) is None


def test_names_are_compared_letter_by_letter():
    assert line_of("host DB all all trust") is None
    assert line_of("host all Alice all trust") is None
    assert line_of("host d all all trust") is None


def test_sameuser_is_a_database_named_as_the_user():
    assert line_of("host sameuser all all trust", database="alice") == 1
    assert line_of("host sameuser all all trust") is None
    assert line_of("host all sameuser all trust", database="alice") is None


def test_physical_replication_needs_its_keyword():
    assert line_of("host all all all trust", replication=True) is None
    assert line_of("host db all all trust", replication=True) is None
    assert line_of("host replication all all trust", replication=True) == 1
    assert line_of("host replication all all trust", database="replication") is None


def test_patterns_match_databases_and_users():
    text = "host /^app_[0-9]+$,db /^ali all trust"
    assert line_of(text, database="app_7") == 1
    assert line_of(text) == 1
    assert line_of(text, database="app_7\n") is None
    assert line_of(text, user="malice") is None
    assert line_of('host "/^a{1,2}$" all all trust', database="aa") == 1


# --- addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "inside", "outside"),
    [
        ("10.1.2.0/24", ["10.1.2.0", "10.1.2.255"], ["10.1.1.255", "10.1.3.0"]),
        ("10.1.2.3/32", ["10.1.2.3"], ["10.1.2.2", "10.1.2.4"]),
        ("10.1.2.3/31", ["10.1.2.2", "10.1.2.3"], ["10.1.2.1", "10.1.2.4"]),
        ("0.0.0.0/0", ["0.0.0.0", "255.255.255.255"], ["::1", "::"]),
        ("::/0", ["::1", "fe80::1"], ["10.1.2.3", "::ffff:10.1.2.3"]),
        ("10.0.0.0 255.0.0.0", ["10.255.255.255"], ["11.0.0.0", "9.255.255.255"]),
        ("10.0.0.1 255.255.255.255", ["10.0.0.1"], ["10.0.0.0"]),
        ("10.0.0.1 0.0.0.0", ["1.2.3.4"], ["::1"]),
        ("fd00::/8", ["fd12::1", "fdff::"], ["fc00::", "10.0.0.1"]),
        ("fd00:: ff00::", ["fd12::1"], ["fe00::"]),
        ("fe80::/10", ["fe80::1%eth0", "fe80::1"], ["fec0::"]),
        ("10.0.0.0/8", ["::ffff:10.1.2.3", "::FFFF:0a01:0203"], ["::ffff:11.1.2.3"]),
        ("::ffff:10.0.0.0/104", ["10.1.2.3", "::ffff:10.1.2.3"], ["11.1.2.3"]),
        ("samehost", ["192.168.5.7", "fd00::7", "::ffff:192.168.5.7"], ["192.168.5.8", "fd00::8"]),
        ("samenet", ["192.168.5.99", "fd00::1234"], ["192.168.6.1", "fd00:0:0:1::1"]),
        ("all", ["10.0.0.1", "::1", None, "nonsense"], []),
    ],
)
def test_addresses(column, inside, outside):
    rules = parse_hba(f"host all all {column} trust", interfaces=INTERFACES)
    assert rules.problems == []
    for address in inside:
        assert rules.match("host", "db", "alice", address, False), address
    for address in [*outside, *([] if column == "all" else [None, "", "nonsense"])]:
        assert rules.match("host", "db", "alice", address, False) is None, address


def test_an_address_that_does_not_fit_its_mask_is_doubted():
    rules = parse_hba("host all all 10.1.2.3/8 trust", "pg_hba.conf")
    assert rules.problems == []
    assert [warning.line for warning in rules.warnings] == [1]
    assert rules.match("host", "db", "alice", "10.9.9.9", False)


def test_quoted_keywords_are_names_of_hosts():
    assert parse_hba('host all all "samehost" trust').names == {"samehost"}
    assert parse_hba('host all all "all" trust').names == {"all"}


def test_host_names_are_resolved_by_the_caller_and_only_when_all_else_fits():
    text = "host db all App.example.com. trust\nhost other all other.example.com trust\n"
    rules = parse_hba(text)
    assert rules.names == {"app.example.com", "other.example.com"}
    asked = []

    def resolve(name):
        asked.append(name)
        return ["10.9.9.9", ipaddress.ip_address("10.1.2.3"), "nonsense"]

    assert rules.match("host", "db", "alice", "10.1.2.3", False, resolve=resolve)
    assert rules.match("host", "db", "alice", "::ffff:10.9.9.9", False, resolve=resolve)
    assert rules.match("host", "db", "alice", "10.1.2.4", False, resolve=resolve) is None
    assert set(asked) == {"app.example.com"}
    assert rules.match("host", "db", "alice", "10.1.2.3", False) is None


# --- methods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["trust", "reject", "md5", "password", "cert", "scram-sha-256", "ldap", "pam"])
def test_methods(method):
    rule = parse_hba(f"host all all all {method}").rules[0]
    assert rule.method == method
    assert rule.options == {}
    assert rule.map == ""


def test_no_line_is_for_a_database_too_long_for_the_regular_expressions():
    """One of 9,900 characters took a second; passing over the expression alone would pass over a reject."""
    text = "host /^.*_.*_x$ all all reject\nhost all all all trust\n"
    assert line_of(text, database="_" * 127) == 2
    assert line_of(text, database="_" * 128) is None
    assert line_of("host all all all trust\n", database="_" * 128) == 1


def test_maps():
    rules = parse_hba('hostssl all all all cert map=certs\nlocal all all peer "map=os users"')
    assert [rule.map for rule in rules.rules] == ["certs", "os users"]


def test_ldap_options_keep_their_commas_and_show_no_password():
    text = 'host all all all ldap ldapserver=ldap.x ldapprefix="cn=" ldapsuffix=", dc=net" ldapbindpasswd=hush'
    rule = parse_hba(text).rules[0]
    assert rule.options == {
        "ldapserver": "ldap.x",
        "ldapprefix": "cn=",
        "ldapsuffix": ", dc=net",
        "ldapbindpasswd": "hush",
    }
    assert "hush" not in repr(rule)


# --- other files --------------------------------------------------------------------------------------------------


class Disk:
    def __init__(self, **files):
        self.files = {name.replace("__", "/").replace("_conf", ".conf"): text for name, text in files.items()}
        self.read_paths = []

    def read(self, path):
        self.read_paths.append(path)
        if path not in self.files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self.files[path]

    def listing(self, path):
        return [name.rpartition("/")[2] for name in self.files if name.startswith(path + "/")]


def test_included_files_stand_where_they_are_included():
    disk = Disk(etc__more_conf="host db all all reject\ninclude deeper.conf\n", etc__deeper_conf="host x all all trust\n")
    rules = parse_hba("host a all all trust\ninclude more.conf\nhost b all all trust", "etc/hba", disk.read)
    assert rules.problems == []
    assert [(rule.file, rule.line) for rule in rules.rules] == [
        ("etc/hba", 1),
        ("etc/more.conf", 1),
        ("etc/deeper.conf", 1),
        ("etc/hba", 3),
    ]


def test_problems_of_included_files_name_those():
    disk = Disk(etc__more_conf="\nnonsense\nhost all all all trust")
    rules = parse_hba('include "/etc/more.conf"', "hba", lambda path: disk.read(path.lstrip("/")))
    assert [(problem.file, problem.line) for problem in rules.problems] == [("/etc/more.conf", 2)]
    assert len(rules.rules) == 1


def test_include_if_exists_minds_nothing_but_that():
    disk = Disk()
    assert parse_hba("include_if_exists gone.conf", "hba", disk.read).problems == []
    assert "gone.conf" in problem_of("include gone.conf", read=disk.read)

    def forbidden(path):
        raise PermissionError(13, "Permission denied", path)

    assert "denied" in problem_of("include_if_exists gone.conf", read=forbidden)


def test_include_dir_takes_conf_files_in_order():
    disk = Disk(d__b_conf="host b all all trust", d__a_conf="host a all all trust", d__c="nonsense")
    disk.files["d/.hidden.conf"] = "nonsense"
    rules = parse_hba("include_dir d", "hba", disk.read, disk.listing)
    assert rules.problems == []
    assert [rule.file for rule in rules.rules] == ["d/a.conf", "d/b.conf"]


def test_names_from_files():
    disk = Disk(etc__users="alice, # the comma goes on in the next line\nbob,\n\n@more\n", etc__more='"carol d"\n')
    text = "host all @users,eve all trust"
    rules = parse_hba(text, "etc/hba", disk.read)
    assert rules.problems == []
    assert rules.rules[0].users.names == {"alice", "bob", "carol d", "eve"}
    assert "users" in problem_of(text, read=Disk().read)


def test_without_a_reader_no_file_is_read():
    for text in ("include x", "include_dir x", "include_if_exists x", "host @x all all trust"):
        assert "cannot be read" in problem_of(text)


def test_files_that_include_themselves_are_a_problem():
    disk = Disk(a_conf="include b.conf", b_conf="include a.conf\nhost @n all all trust", n="@n")
    rules = parse_hba("include a.conf", "hba", disk.read)
    assert rules.rules == []
    assert len(rules.problems) == 2
    assert all("itself" in str(problem) for problem in rules.problems)


def test_files_that_multiply_are_stopped():
    names = [f"f{number}" for number in range(9)]
    everything = "\n".join(f"include {name}" for name in names)
    disk = Disk(**dict.fromkeys(names, everything))
    rules = parse_hba(everything, "hba", disk.read)
    assert len(disk.read_paths) <= 1000
    assert rules.rules == []
    assert rules.problems


def test_a_chain_of_files_has_an_end():
    disk = Disk(**{f"f{number}": f"include f{number + 1}" for number in range(20)})
    assert "deep" in problem_of("include f0", read=disk.read)
    assert len(disk.read_paths) == 10


@pytest.mark.parametrize("text", ["include", "include a b", "include a,b", "include_dir"])
def test_includes_take_one_name(text):
    assert "one name" in problem_of(text, read=Disk().read)


def test_a_file_in_another_encoding_is_a_problem():
    def read(path):
        return b"\xff".decode()

    assert "could not read" in problem_of("include x", read=read)


def test_rules_tell_what_they_are():
    assert repr(parse_hba("host all all all trust\nnonsense")) == "<HbaRules rules=1 problems=1>"
