"""LDAP against a real slapd, PAM against a real service file, and what failed logins cost an address."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from fix_postgres import USERS
from fix_proxy import ADMIN_PASSWORD, MakeProxy, Proxy
from fix_raw import MakeRawClient, RawClient, message, startup_message
from fix_tls import Certificates, reload_by_signal
from fix_wait import LOOPBACK, accepts, free_port, hand_over, wait_until

BASE = "dc=example,dc=com"
ROOT = f"cn=admin,{BASE}"
CONF = """\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
pidfile {directory}/slapd.pid
modulepath /usr/lib/ldap
moduleload back_mdb
database mdb
suffix "{base}"
rootdn "{root}"
rootpw root-secret
directory {directory}/db
TLSCertificateFile {certificate}
TLSCertificateKeyFile {key}
access to attrs=userPassword by anonymous auth by * none
access to * by users read by anonymous none
"""
LDIF = """\
dn: {base}
objectClass: dcObject
objectClass: organization
o: example
dc: example

dn: ou=people,{base}
objectClass: organizationalUnit
ou: people

dn: uid=trust_user,ou=people,{base}
objectClass: inetOrgPerson
uid: trust_user
cn: Trust
sn: User
mail: both@example.com
userPassword: ldap-secret

dn: uid=scram_user,ou=people,{base}
objectClass: inetOrgPerson
uid: scram_user
cn: Scram
sn: User
mail: both@example.com
userPassword: scram-secret

dn: uid=plain_user,ou=people,{base}
objectClass: inetOrgPerson
uid: plain_user
cn: Plain
sn: User
userPassword: plain-secret

dn: uid=md5_user,ou=people,{base}
objectClass: inetOrgPerson
uid: md5_user
cn: Md5
sn: User
mail: md5_user
userPassword: md5-secret
"""


@pytest.fixture(scope="module")
def slapd_ports(run_dir: Path, worker_id: str, certificates: Certificates) -> Iterator[tuple[int, int]]:
    """Ports of ldap:// and ldaps://, where a directory has four people: uid=trust_user has the password ldap-secret, the others
    that of the server. It is at 127.0.0.2, too, which its certificate does not name."""
    binary = shutil.which("slapd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if binary is None:
        pytest.skip("slapd is not installed")
    directory = run_dir / f"slapd-{worker_id}"
    (directory / "db").mkdir(parents=True)
    certificate, key = certificates.server
    names = {"directory": directory, "base": BASE, "root": ROOT, "certificate": certificate, "key": key}
    (directory / "slapd.conf").write_text(CONF.format(**names))
    (directory / "people.ldif").write_text(LDIF.format(**names))
    subprocess.run(
        ["/usr/sbin/slapadd", "-f", directory / "slapd.conf", "-l", directory / "people.ldif"], check=True, capture_output=True
    )
    port, tls_port = free_port(), free_port()
    where = f"ldap://{LOOPBACK}:{port} ldaps://{LOOPBACK}:{tls_port} ldaps://127.0.0.2:{tls_port}"
    process = subprocess.Popen(
        [binary, "-f", directory / "slapd.conf", "-h", where, "-d", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: accepts(port) and accepts(tls_port))
    yield port, tls_port
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="module")
def slapd(slapd_ports: tuple[int, int]) -> int:
    """The port of ldap:// alone."""
    return slapd_ports[0]


def told(proxy: Proxy, user: str, password: str) -> str:
    try:
        return str(proxy.sql("select current_user", user=user, password=password)[0][0])
    except psycopg.OperationalError as error:
        return str(error)


def answered(clients: list[RawClient]) -> list[RawClient]:
    """Those that something has come for."""
    return list(select.select([client.socket for client in clients], [], [], 0)[0])


def options(port: int, kind: str) -> str:
    where = f"ldapserver={LOOPBACK} ldapport={port}"
    bind = f'ldapbinddn="{ROOT}" ldapbindpasswd=root-secret'
    return {
        "simple": f'{where} ldapprefix="uid=" ldapsuffix=",ou=people,{BASE}"',
        "search": f'{where} ldapbasedn="{BASE}" {bind}',
        "filter": f'{where} ldapbasedn="{BASE}" {bind} ldapsearchfilter="(&(objectClass=person)(uid=$username))"',
        "url": f'ldapurl="ldap://{LOOPBACK}:{port}/{BASE}?uid?sub" {bind}',
        "two": f'{where} ldapbasedn="{BASE}" {bind} ldapsearchfilter="(mail=both@example.com)"',
        "anonymous": f'{where} ldapbasedn="{BASE}"',
    }[kind]


@pytest.mark.parametrize("by_rule", [False, True])
@pytest.mark.parametrize("kind", ["simple", "search", "filter", "url"])
def test_ldap_lets_in_who_can_bind(make_proxy: MakeProxy, slapd: int, run_dir: Path, kind: str, by_rule: bool) -> None:
    settings: dict[str, object] = {"auth_type": "ldap", "auth_ldap_options": options(slapd, kind)}
    if by_rule:
        rules = run_dir / f"ldap-{slapd}-{kind}.conf"
        rules.write_text(f"host all all all ldap {options(slapd, kind)}\n")
        rules.chmod(0o644)
        settings = {"auth_type": "hba", "auth_hba_file": rules}
    proxy = make_proxy(users={}, **settings)
    assert told(proxy, "trust_user", "ldap-secret") == "trust_user"
    assert told(proxy, "scram_user", "scram-secret") == "scram_user"  # what was typed logs in to the server
    for user, password in (
        ("trust_user", "wrong"),
        ("trust_user", "scram-secret"),
        ("nobody", "ldap-secret"),
        ("*", "ldap-secret"),
        ("trust_user)(uid=*", "ldap-secret"),
        ("x,ou=people", "ldap-secret"),
    ):
        assert "LDAP authentication failed" in told(proxy, user, password)
    assert "secret" not in proxy.log()


@pytest.mark.parametrize("trusted", [True, False])
def test_ldap_over_tls_wants_the_certificate_of_the_directory_that_was_named(
    make_proxy: MakeProxy, slapd_ports: tuple[int, int], certificates: Certificates, run_dir: Path, trusted: bool
) -> None:
    """ldaps by option and by URL, and StartTLS; and ldapsearchattribute."""
    port, tls_port = slapd_ports
    simple = f'ldapprefix="uid=" ldapsuffix=",ou=people,{BASE}"'
    bind = f'ldapbinddn="{ROOT}" ldapbindpasswd=root-secret'
    rules = run_dir / f"ldaps-{tls_port}-{trusted}.conf"
    rules.write_text(
        f"host all trust_user all ldap ldapscheme=ldaps ldapserver={LOOPBACK} ldapport={tls_port} {simple}\n"
        f'host all scram_user all ldap ldapurl="ldaps://localhost:{tls_port}/{BASE}?uid?sub" {bind}\n'
        f"host all plain_user all ldap ldapserver={LOOPBACK} ldapport={port} ldaptls=1 {simple}\n"
        f'host all md5_user all ldap ldapserver={LOOPBACK} ldapport={port} ldaptls=1 ldapbasedn="{BASE}" {bind} '
        "ldapsearchattribute=mail\n"
        f"host all elsewhere all ldap ldapscheme=ldaps ldapserver=127.0.0.2 ldapport={tls_port} {simple}\n"
    )
    hand_over(rules)
    environ = {"SSL_CERT_FILE": str(certificates.directory / "roots.crt")}
    (certificates.directory / "roots.crt").write_bytes((certificates.ca if trusted else certificates.stranger_ca).read_bytes())
    hand_over(certificates.directory / "roots.crt")
    proxy = make_proxy(users={}, auth_type="hba", auth_hba_file=rules, environ=environ)
    for user, (_, password) in USERS.items():
        assert (told(proxy, user, password or "ldap-secret") == user) == trusted, user
        assert "LDAP authentication failed" in told(proxy, user, "wrong")
    assert "LDAP authentication failed" in told(proxy, "elsewhere", "x")
    assert proxy.wait_log("ldap: 127.0.0.2: LDAP")
    assert "secret" not in proxy.log()


def test_an_empty_password_never_reaches_the_directory(
    make_proxy: MakeProxy, slapd: int, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(users={}, auth_type="ldap", auth_ldap_options=options(slapd, "simple"))
    client = make_raw_client(proxy.port)
    client.send(startup_message())
    assert client.read_message().type == b"R"
    client.send_message(b"p", b"\0")
    assert client.read_message().fields()["M"] == "empty password returned by client"


@pytest.mark.parametrize(
    ("kind", "problem"), [("two", "more than one entry"), ("anonymous", "the search found no entry|refuses|NoSuch|failed with")]
)
def test_what_the_directory_leaves_open_refuses(make_proxy: MakeProxy, slapd: int, kind: str, problem: str) -> None:
    proxy = make_proxy(users={}, auth_type="ldap", auth_ldap_options=options(slapd, kind))
    assert "LDAP authentication failed" in told(proxy, "trust_user", "ldap-secret")
    assert proxy.wait_log(problem)


def test_a_directory_that_hangs_blocks_nobody_else(make_proxy: MakeProxy, make_raw_client: MakeRawClient) -> None:
    import socket

    with socket.create_server((LOOPBACK, 0)) as silent:
        port = silent.getsockname()[1]
        proxy = make_proxy(
            users={}, auth_type="ldap", auth_ldap_options=options(port, "simple"), client_login_timeout=0
        )
        slow = [make_raw_client(proxy.port) for _ in range(30)]
        for client in slow:
            client.send(startup_message())
            assert client.read_message().type == b"R"
            client.send_message(b"p", b"secret\0")
        quick = make_raw_client(proxy.port)
        quick.send(startup_message())
        assert quick.read_message().type == b"R"
        assert not answered(slow), "the directory answers nobody, and that is not what the quick one waited for"
        proxy.settings["client_login_timeout"] = 1
        reload_by_signal(proxy)
        for client in slow:
            assert client.read_message().fields()["M"] == "client_login_timeout"


def test_a_library_that_is_not_installed_is_named(make_proxy: MakeProxy, tmp_path: Path) -> None:
    for module in ("ldap3", "pamela"):
        (tmp_path / f"{module}.py").write_text("raise ImportError('hidden')\n")
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    proxy = make_proxy(
        users={}, auth_type="ldap", auth_ldap_options=options(1, "simple"), environ={"PYTHONPATH": path}
    )
    assert "LDAP authentication failed" in told(proxy, "trust_user", "x")
    assert proxy.wait_log(r"ldap3 is not installed: pip install 'pgpool-proxy\[ldap\]'")


# --- PAM ------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def make_pam_service(run_dir: Path) -> Iterator[Callable[..., str]]:
    """A service that asks a script, which reads the password and knows the user as PAM_USER."""
    if os.geteuid() != 0 or not Path("/etc/pam.d").is_dir() or not list(Path("/lib").glob("*/security/pam_exec.so")):
        pytest.skip("a PAM service file can be written by root only")
    name = f"pgpool-proxy-test-{os.getpid()}"
    script = run_dir / f"{name}.sh"
    service = Path("/etc/pam.d") / name

    def make(body: str, account: str = "pam_permit.so") -> str:
        script.write_text(f"#!/bin/sh\nread -r typed\n{body}")
        script.chmod(0o755)
        service.write_text(f"auth required pam_exec.so expose_authtok quiet {script}\naccount required {account}\n")
        return name

    yield make
    service.unlink(missing_ok=True)


@pytest.fixture
def pam_service(make_pam_service: Callable[..., str]) -> str:
    """One that knows trust_user with pam-secret, and the others with the server's password."""
    known = " ".join(f'"{user}:{password or "pam-secret"}")' for user, (_, password) in USERS.items()).replace(") ", "|")
    return make_pam_service(f'case "$PAM_USER:$typed" in {known} exit 0;; esac\nexit 1\n')


def test_pam_lets_in_whom_the_service_knows(make_proxy: MakeProxy, pam_service: str, run_dir: Path) -> None:
    rules = run_dir / f"{pam_service}.conf"
    rules.write_text(f"host all all all pam pamservice={pam_service}\n")
    hand_over(rules)
    proxy = make_proxy(users={}, auth_type="hba", auth_hba_file=rules)
    assert told(proxy, "trust_user", "pam-secret") == "trust_user"
    for user, password in (("trust_user", "wrong"), ("nobody", "pam-secret")):
        assert "PAM authentication failed" in told(proxy, user, password)
    assert "pam-secret" not in proxy.log()


@pytest.mark.parametrize("known", ["nothing", "right", "wrong"])
@pytest.mark.parametrize("method", ["ldap", "pam"])
def test_a_cell_of_ldap_and_pam_lets_in_exactly_whom_it_should(
    make_proxy: MakeProxy, request: pytest.FixtureRequest, run_dir: Path, method: str, known: str
) -> None:
    """What was typed, and found right, logs in to servers of each kind, unless auth_file has something else for them."""
    if method == "ldap":
        line = f"ldap {options(request.getfixturevalue('slapd'), 'simple')}"
    else:
        line = f"pam pamservice={request.getfixturevalue('pam_service')}"
    rules = run_dir / f"{method}-{known}-{os.urandom(4).hex()}.conf"
    rules.write_text(f"host all all all {line}\n")
    hand_over(rules)
    passwords = {user: password or f"{method}-secret" for user, (_, password) in USERS.items()}
    users = {"nothing": {}, "right": passwords, "wrong": dict.fromkeys(passwords, "not-it")}[known]
    proxy = make_proxy(users=users, auth_type="hba", auth_hba_file=rules, server_login_retry=0)
    for user, (server, _) in USERS.items():
        assert (told(proxy, user, passwords[user]) == user) == (server == "trust" or known != "wrong"), user
        for password in ("not-it", "x", ""):
            assert told(proxy, user, password) != user


def pam_rules(run_dir: Path, service: str) -> Path:
    rules = run_dir / f"{service}-{os.urandom(4).hex()}.conf"
    rules.write_text(f"host all all all pam pamservice={service}\n")
    hand_over(rules)
    return rules


def test_pam_that_knows_the_password_and_does_not_admit_the_account_refuses(
    make_proxy: MakeProxy, make_pam_service: Callable[..., str], run_dir: Path
) -> None:
    """An account that has expired, for one: pam_acct_mgmt is asked, too."""
    service = make_pam_service("exit 0\n", "pam_deny.so")
    proxy = make_proxy(users={}, auth_type="hba", auth_hba_file=pam_rules(run_dir, service))
    assert "PAM authentication failed" in told(proxy, "trust_user", "pam-secret")


def test_a_pam_module_that_hangs_blocks_nobody_else(
    make_proxy: MakeProxy, make_pam_service: Callable[..., str], make_raw_client: MakeRawClient, run_dir: Path
) -> None:
    opened = run_dir / f"pam-gate-{os.urandom(4).hex()}"
    service = make_pam_service(f'[ "$typed" = quick ] && exit 0\nwhile [ ! -e {opened} ]; do sleep 0.05; done\nexit 1\n')
    proxy = make_proxy(users={}, auth_type="hba", auth_hba_file=pam_rules(run_dir, service))
    slow = [make_raw_client(proxy.port) for _ in range(5)]
    for client in slow:
        client.send(startup_message(), message(b"p", b"slow\0"))
        assert client.read_message().body == b"\0\0\0\3"
    assert told(proxy, "trust_user", "quick") == "trust_user"
    assert not answered(slow)
    opened.touch()
    for client in slow:
        assert client.read_message().fields()["M"] == "PAM authentication failed"


def test_pam_without_a_service_file_refuses(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(users={}, auth_type="pam")
    assert "PAM authentication failed" in told(proxy, "trust_user", "x")


# --- failed logins ----------------------------------------------------------------------------------------------------------
def test_auth_failure_delay_delays_the_refusal_and_nobody_else(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient
) -> None:
    proxy = make_proxy(auth_type="plain", auth_failure_delay=600)

    def fail() -> RawClient:
        client = make_raw_client(proxy.port)
        client.send(startup_message("plain_user"), message(b"p", b"wrong\0"))
        assert client.read_message().body == b"\0\0\0\3"
        return client

    failed = [fail() for _ in range(5)]
    wait_until(lambda: proxy.log().count("login failed: db=app user=plain_user") == 5)
    assert told(proxy, "plain_user", "plain-secret") == "plain_user"
    assert not answered(failed)
    proxy.settings["auth_failure_delay"] = 0.5
    reload_by_signal(proxy)
    start = time.monotonic()
    assert fail().read_message().fields()["M"] == "password authentication failed"
    assert time.monotonic() - start >= 0.5
    assert not answered(failed)


def test_auth_failure_ban_refuses_an_address_that_keeps_failing_but_not_the_unix_socket(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(auth_type="plain", auth_failure_ban=2)
    for _ in range(10):
        assert "password authentication failed" in told(proxy, "plain_user", "wrong")
    assert "too many failed logins" in told(proxy, "plain_user", "plain-secret")
    assert proxy.wait_log("10 failed logins in a row: 127.0.0.1 is refused for 2 s")
    assert proxy.sql("select 1", user="plain_user", password="plain-secret", host=proxy.directory) == [(1,)]
    assert wait_until(lambda: told(proxy, "plain_user", "plain-secret") == "plain_user")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_ban_ends_logins_that_had_begun_before_it(
    make_proxy: MakeProxy, make_raw_client: MakeRawClient, workers: int
) -> None:
    """Otherwise each of a thousand connections, opened beforehand, would be good for one more guess."""
    proxy = make_proxy(auth_type="plain", auth_failure_ban=3600, workers=workers)
    guesses = [make_raw_client(proxy.port) for _ in range(20)]
    inside = make_raw_client(proxy.port)
    assert inside.login("plain_user", password="plain-secret")[-1].type == b"Z"
    by_socket = make_raw_client(path=f"{proxy.directory}/.s.PGSQL.{proxy.port}")
    for client in [*guesses, by_socket]:
        client.send(startup_message("plain_user"))
        assert client.read_message().type == b"R"
    for client in guesses[:10]:
        client.send_message(b"p", b"wrong\0")
        assert client.read_message().fields()["M"] == "password authentication failed"
    for client in guesses[10:]:
        assert client.read_message().fields()["M"] == "too many failed logins (auth_failure_ban)"
    by_socket.send_message(b"p", b"plain-secret\0")
    assert by_socket.read_message().body == bytes(4)
    assert [found.type for found in inside.query("select 1")] == [b"T", b"D", b"C", b"Z"]


def test_auth_failure_ban_counts_over_all_workers(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(auth_type="plain", auth_failure_ban=3600, workers=2)
    told(proxy, "plain_user", "wrong")
    assert told(proxy, "plain_user", "plain-secret") == "plain_user"  # forgives, in both workers
    for _ in range(9):
        assert "password authentication failed" in told(proxy, "plain_user", "wrong")
    wait_until(lambda: "too many failed logins" in told(proxy, "plain_user", "wrong"))
    wait_until(lambda: all("too many failed logins" in told(proxy, "plain_user", "plain-secret") for _ in range(6)))


def test_a_flood_of_bad_logins_does_not_block_the_loop(make_proxy: MakeProxy, make_raw_client: MakeRawClient) -> None:
    secret = subprocess.run(
        [sys.executable, "-m", "pgpool_proxy", "passwd", "-i", "1000000", "trust_user"],
        input="right\n", capture_output=True, text=True, check=True,
    ).stdout.split('"')[3]  # fmt: skip
    users = {"trust_user": secret, "plain_user": "plain-secret", "admin_user": ADMIN_PASSWORD}
    proxy = make_proxy(auth_type="plain", users=users, max_client_conn=500)
    flood = []
    for number in range(100):
        flood.append(make_raw_client(proxy.port))
        flood[-1].send(startup_message(), message(b"p", b"wrong %d\0" % number))
        assert flood[-1].read_message().type == b"R"
    for _ in range(3):
        assert told(proxy, "plain_user", "plain-secret") == "plain_user"
    assert len(answered(flood)) < 100, "the logins came in between, and not behind the derivations for the flood"
