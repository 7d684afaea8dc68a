"""auth_type = hba: the first line that fits decides, by every method that a line can name."""

from __future__ import annotations

import os
import pwd
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from fix_dns import NameServer
from fix_proxy import MakeProxy, Proxy
from fix_tls import Certificates, reload_by_signal
from fix_wait import hand_over, wait_until

ME = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def hba_proxy(make_proxy: MakeProxy, run_dir: Path):  # type: ignore[no-untyped-def]
    """`hba_proxy(rules)`: a daemon with these rules; `write_rules` changes them."""

    def make(rules: str, ident: str = "", start: bool = True, **settings: object) -> Proxy:
        directory = Path(run_dir / f"hba-{os.urandom(4).hex()}")
        directory.mkdir()
        directory.chmod(0o755)
        (directory / "hba.conf").write_text(rules)
        (directory / "ident.conf").write_text(ident)
        hand_over(directory, directory / "hba.conf", directory / "ident.conf")
        return make_proxy(
            auth_type="hba",
            auth_hba_file=directory / "hba.conf",
            auth_ident_file=directory / "ident.conf",
            start=start,
            **settings,
        )

    return make


def write_rules(proxy: Proxy, rules: str) -> None:
    Path(str(proxy.settings["auth_hba_file"])).write_text(rules)


def refused(proxy: Proxy, **keywords: object) -> str:
    """What a login that is refused is told; empty for one that is let in."""
    try:
        proxy.connect(**keywords).close()
    except psycopg.OperationalError as error:
        return str(error)
    return ""


def whoami(proxy: Proxy, **keywords: object) -> str:
    return str(proxy.sql("select current_user", **keywords)[0][0])


@pytest.mark.parametrize(
    ("method", "user", "password"),
    [
        ("trust", "scram_user", None),
        ("password", "plain_user", "plain-secret"),
        ("md5", "md5_user", "md5-secret"),
        ("scram-sha-256", "scram_user", "scram-secret"),
    ],
)
def test_a_line_names_the_method(hba_proxy, method: str, user: str, password: str | None) -> None:  # type: ignore[no-untyped-def]
    proxy = hba_proxy(f"host all all 127.0.0.1/32 {method}\n")
    assert whoami(proxy, user=user, password=password) == user
    if password is not None:
        with pytest.raises(psycopg.OperationalError, match="authentication failed"):
            proxy.connect(user=user, password="wrong")
    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        proxy.connect(user="nobody", password="wrong")


def test_the_first_line_that_fits_decides(hba_proxy) -> None:  # type: ignore[no-untyped-def]
    proxy = hba_proxy(
        "host other all all reject\n"
        "host app scram_user,md5_user 127.0.0.1 255.255.255.255 trust\n"
        "host app /^plain_ samehost scram-sha-256\n"
        'host "all" all all trust\n'
    )
    assert whoami(proxy, user="scram_user") == "scram_user"
    assert whoami(proxy, user="plain_user", password="plain-secret") == "plain_user"
    with pytest.raises(psycopg.OperationalError, match="login rejected"):
        proxy.connect(dbname="other", user="scram_user")
    with pytest.raises(psycopg.OperationalError, match="no authentication method is found"):
        proxy.connect(user="trust_user")


@pytest.mark.parametrize(("name", "fits"), [("localhost", True), ("no-such-host.invalid", False)])
def test_a_host_name_is_resolved(hba_proxy, name: str, fits: bool) -> None:  # type: ignore[no-untyped-def]
    proxy = hba_proxy(f"host all all {name} trust\n")
    for _ in range(2):
        if fits:
            assert whoami(proxy) == "trust_user"
        else:
            with pytest.raises(psycopg.OperationalError, match="no authentication method is found"):
                proxy.connect()


def test_a_host_name_is_asked_of_the_name_servers_that_servers_are_asked_of(hba_proxy, name_server: NameServer) -> None:  # type: ignore[no-untyped-def]
    name_server.names |= {"web.example.com": ["127.0.0.1"], "other.example.com": ["127.0.0.9"]}
    proxy = hba_proxy(
        "host all all other.example.com reject\nhost all all gone.example.com reject\nhost all all web.example.com trust\n",
        resolv_conf=name_server.resolv_conf, dns_nxdomain_ttl=600,
    )  # fmt: skip
    for _ in range(3):
        assert whoami(proxy) == "trust_user"
    assert [name_server.asked[f"{name}.example.com"] for name in ("other", "gone", "web")] == [1, 1, 1]
    assert {row["hostname"] for row in proxy.admin("SHOW DNS_HOSTS")} >= {"web.example.com", "other.example.com"}
    proxy.admin("SET dns_max_ttl = 0.1")
    name_server.ttl = 0
    name_server.names["other.example.com"] = ["127.0.0.1"]
    wait_until(lambda: "login rejected" in refused(proxy), 30, "its new address counts")


def test_while_a_name_is_resolved_others_log_in(hba_proxy, name_server: NameServer) -> None:  # type: ignore[no-untyped-def]
    name_server.is_silent = True
    proxy = hba_proxy(
        "host all trust_user slow.example.com trust\nhost all scram_user all trust\n", resolv_conf=name_server.resolv_conf
    )
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(refused, proxy)
        wait_until(lambda: name_server.asked.get("slow.example.com"), 10, "it is asked for")
        started = time.monotonic()
        for _ in range(20):
            assert whoami(proxy, user="scram_user") == "scram_user"
        assert not slow.done() or time.monotonic() - started > 4  # resolv.conf: two attempts of two seconds
        assert "no authentication method is found" in slow.result()


def test_hostssl_and_hostnossl_tell_encrypted_connections_apart(hba_proxy, certificates: Certificates) -> None:  # type: ignore[no-untyped-def]
    proxy = hba_proxy(
        "hostssl all trust_user all trust\nhostnossl all scram_user all trust\n",
        client_tls_sslmode="allow",
        **certificates.settings(),
    )
    assert whoami(proxy, sslmode="require") == "trust_user"
    assert whoami(proxy, user="scram_user", sslmode="disable") == "scram_user"
    for user, sslmode in (("trust_user", "disable"), ("scram_user", "require")):
        with pytest.raises(psycopg.OperationalError, match="no authentication method is found"):
            proxy.connect(user=user, sslmode=sslmode)


def test_cert_with_a_map_lets_in_whom_the_map_names(hba_proxy, certificates: Certificates) -> None:  # type: ignore[no-untyped-def]
    proxy = hba_proxy(
        "hostssl all scram_user all cert map=people\nhostssl all all all cert\n",
        ident="people alice scram_user\npeople /^(.*)@corp$ \\1\n",
        client_tls_sslmode="require",
        **certificates.settings(ca=True),
    )
    alice = certificates.client("alice")
    assert whoami(proxy, user="scram_user", sslmode="require", **alice) == "scram_user"
    assert whoami(proxy, user="scram_user", sslmode="require", **certificates.client("scram_user@corp")) == "scram_user"
    assert whoami(proxy, sslmode="require", **certificates.client("trust_user")) == "trust_user"
    for user, shown in (("scram_user", certificates.client("bob")), ("trust_user", alice), ("trust_user", {})):
        with pytest.raises(psycopg.OperationalError, match="certificate authentication failed"):
            proxy.connect(user=user, sslmode="require", **({"sslcert": "/nonexistent"} | shown))


def test_peer_lets_in_the_account_at_the_other_end(hba_proxy) -> None:  # type: ignore[no-untyped-def]
    proxy = hba_proxy(
        "local all trust_user peer map=accounts\nlocal all scram_user peer map=nobody\nlocal all all peer\n",
        ident=f"accounts {ME} trust_user\n",
        users={"trust_user": "x", "scram_user": "x", ME: "x"},
        databases={"app": "host=/nonexistent"},
    )
    proxy.databases = {}
    assert whoami_local(proxy, "trust_user") == "in"
    assert whoami_local(proxy, ME) == "in"
    assert "unix socket login rejected" in whoami_local(proxy, "scram_user")
    with pytest.raises(psycopg.OperationalError, match="no authentication method is found"):
        proxy.connect()


def whoami_local(proxy: Proxy, user: str) -> str:
    """Past the proof, the server that is not there is the only problem."""
    try:
        proxy.connect(host=proxy.directory, user=user)
    except psycopg.OperationalError as error:
        return "in" if "connect failed" in str(error) else str(error)
    return "in"


def test_a_broken_line_at_reload_keeps_the_old_rules(hba_proxy) -> None:  # type: ignore[no-untyped-def]
    proxy = hba_proxy("host all trust_user all trust\nhost all all all reject\n")
    assert whoami(proxy) == "trust_user"
    write_rules(proxy, "host all trust_user all trsut\nhost all all all trust\n")
    reload_by_signal(proxy)
    assert proxy.wait_log("RELOAD failed, the old configuration stays.*hba.conf:1")
    assert whoami(proxy) == "trust_user"
    with pytest.raises(psycopg.OperationalError, match="login rejected"):
        proxy.connect(user="scram_user")
    write_rules(proxy, "host all scram_user all trust\n")
    reload_by_signal(proxy)
    assert whoami(proxy, user="scram_user") == "scram_user"
    with pytest.raises(psycopg.OperationalError, match="no authentication method is found"):
        proxy.connect()


def test_rules_lists_and_maps_may_lie_in_files_of_their_own(hba_proxy, certificates: Certificates) -> None:  # type: ignore[no-untyped-def]
    """include, include_if_exists, include_dir, @lists and patterns; a broken line in any of them keeps the old rules."""
    proxy = hba_proxy(
        "include_if_exists nothing.conf\ninclude first.conf\ninclude_dir more\n", ident="include maps.conf\n", start=False,
        client_tls_sslmode="allow", **certificates.settings(ca=True),
    )  # fmt: skip
    directory = Path(str(proxy.settings["auth_hba_file"])).parent
    (directory / "more").mkdir()
    (directory / "more").chmod(0o755)
    files = {
        "first.conf": "host all @users.txt all reject\nhostssl @databases.txt /^scram_ samehost cert map=people\n",
        "users.txt": "md5_user, # never\n@more.txt\n",
        "more.txt": "plain_user\n",
        "databases.txt": "app\n",
        "maps.conf": "people /^(.*)@corp\\.example$ \\1_user\n",
        "more/10.conf": "host all /^trust_ samenet trust\n",
        "more/20.conf": "host all all all reject\n",
        "more/30.text": "this is no rule and no .conf\n",
    }
    for name, text in files.items():
        (directory / name).write_text(text)
        hand_over(directory / name)
    hand_over(directory / "more")
    proxy.start()

    def let_in() -> list[bool]:
        scram = certificates.client("scram@corp.example")
        return [refused(proxy, **keywords) == "" for keywords in ({}, {"user": "scram_user", "sslmode": "require", **scram})]

    def turned_away() -> list[str]:
        odd = certificates.client("scram@corpXexample")
        return [refused(proxy, user=user) for user in ("md5_user", "plain_user", "pgbouncer")] + [
            refused(proxy, user="scram_user", sslmode="require", **odd)
        ]

    assert let_in() == [True, True]
    assert ["rejected" in said or "certificate auth" in said for said in turned_away()] == [True] * 4
    for name, at in (("more/10.conf", "10.conf:1"), ("maps.conf", "maps.conf:1"), ("first.conf", "first.conf:1")):
        (directory / name).write_text("host all all all trust extra words\n" if name != "maps.conf" else "people /( x\n")
        reload_by_signal(proxy)
        assert proxy.wait_log(f"RELOAD failed, the old configuration stays.*{at}")
        assert let_in() == [True, True]
        assert "" not in turned_away()
        (directory / name).write_text(files[name])


@pytest.mark.parametrize(
    "rules",
    [
        "host all all all\n",
        "host all all all gss\n",
        "host all all 999.0.0.1/8 trust\n",
        "host all all all ldap\n",
        "host all all all ldap ldapserver=ldap.example.com ldapport=x ldapprefix=uid=\n",
    ],
)
def test_a_broken_line_at_start_is_no_start(hba_proxy, rules: str) -> None:  # type: ignore[no-untyped-def]
    proxy = hba_proxy(rules, start=False)
    assert proxy.run_to_end() == 1
    assert "hba.conf:1" in proxy.log()


@pytest.mark.parametrize("options", ["", "ldapserver=ldap.example.com", "ldapserver=x ldapprefix=a ldapbasedn=b", "ldapurl=http://x/"])
def test_auth_ldap_options_that_cannot_work_are_no_start(make_proxy: MakeProxy, options: str) -> None:
    proxy = make_proxy(start=False, auth_type="ldap", auth_ldap_options=options)
    assert proxy.run_to_end() == 1
    assert "auth_ldap_options: " in proxy.log()


def test_the_console_obeys_the_rules_too(hba_proxy) -> None:  # type: ignore[no-untyped-def]
    proxy = hba_proxy("host pgbouncer admin_user all scram-sha-256\nhost all all all trust\n")
    with pytest.raises(psycopg.OperationalError, match="SASL authentication failed"):
        proxy.admin("SHOW VERSION", password="wrong")
