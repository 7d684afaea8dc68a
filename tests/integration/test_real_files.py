"""pgbouncer.ini files as they are in use: each starts the real daemon, word for word but for addresses and paths, and is used.

tests/data/ini has them, modelled on the public documentation of operators, images and frameworks.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from fix_clients import Database
from fix_postgres import PASSING, USERS
from fix_proxy import ADMIN_PASSWORD, ADMIN_USER, MakeProxy, Proxy
from fix_tls import Certificates
from fix_wait import hand_over, unprivileged_account

FILES = Path(__file__).parents[1] / "data" / "ini"
#: what a client of it connects with; `dbname` is the test's database where none is given
CLIENTS: dict[str, dict[str, str]] = {
    "azure-sidecar": {},
    "bitnami-image": {},
    "cloudnative-pg": {"sslmode": "require"},
    "crunchy-postgres-operator": {"sslmode": "require"},
    "debian": {},
    "django": {"dbname": "django"},
    "edoburu-image": {},
    "gitlab-omnibus": {"dbname": "gitlabhq_production_sidekiq"},
    "heroku-buildpack": {"dbname": "db1"},
    "laravel": {"dbname": "forge"},
    "rails": {"dbname": "rails_replica"},
    "zalando-postgres-operator": {"sslmode": "require"},
}
#: functions that auth_query of these files calls, as their authors' documentation makes them
LOOKUPS = """
create schema pooler; create schema pgbouncer;
create function public.user_search(uname text) returns table (usename name, passwd text) language sql security definer
    as 'select usename, passwd from pg_catalog.pg_shadow where usename = $1';
create function pooler.user_lookup(i_username text, out uname text, out phash text) returns record language sql security definer
    as 'select usename::text, passwd from pg_catalog.pg_shadow where usename = i_username';
create function pgbouncer.get_auth(username text) returns table (username text, password text) language sql security definer
    as 'select rolname::text, rolpassword::text from pg_catalog.pg_authid where pg_authid.rolname = $1';
create function public.pg_shadow_lookup(in i_username text, out username text, out password text) returns record
    language sql security definer as 'select usename, passwd from pg_catalog.pg_shadow where usename = i_username';
"""


@pytest.fixture
def looked_up(database: Database) -> Iterator[Database]:
    """A database with the functions; in `postgres` too, where one of the operators wants them: of one worker at a time."""
    with database.server.connect(dbname="postgres", application_name=PASSING) as ours:
        ours.execute("select pg_advisory_lock(hashtext('functions of test_real_files'))")
        for dbname in (database.name, "postgres"):
            database.server.sql(LOOKUPS, dbname=dbname, user="postgres")
        yield database
        ours.execute("drop schema pooler, pgbouncer cascade; drop function public.user_search, public.pg_shadow_lookup")


def start(make_proxy: MakeProxy, name: str, database: Database, certificates: Certificates) -> Proxy:
    proxy = make_proxy(start=False, users={"scram_user": USERS["scram_user"][1], ADMIN_USER: ADMIN_PASSWORD, "postgres": ""})
    replace = {
        "HOST": database.server.host, "PORT": str(database.server.port), "DBNAME": database.name, "DIR": str(proxy.directory),
        "LISTEN_PORT": str(proxy.port), "ADMIN": ADMIN_USER, "AUTH_USER": "postgres", "USER": unprivileged_account() or "",
    }  # fmt: skip
    proxy.write_config()
    for file in (name, "included"):
        text = re.sub(r"@([A-Z_]+)@", lambda match: replace[match[1]], (FILES / f"{file}.ini").read_text())
        target = proxy.ini if file == name else proxy.directory / "included.ini"
        target.write_text(text)
        hand_over(target)
    certificate, key = certificates.server
    for source, copy in ((certificates.ca, "ca.crt"), (certificate, "tls.crt"), (key, "tls.key")):
        shutil.copy(source, proxy.directory / copy)
        hand_over(proxy.directory / copy)
    rules = proxy.directory / "pg_hba.conf"
    rules.write_text("local all all peer\nhost all all 0.0.0.0/0 scram-sha-256\nhost all all ::/0 scram-sha-256\n")
    hand_over(rules)
    secrets = dict(proxy.users)
    if "auth_query" in proxy.ini.read_text():  # the users that are looked up are not in it
        del secrets["scram_user"]
    proxy.auth_file.write_text("".join(f'"{user}" "{secret}"\n' for user, secret in secrets.items()))
    proxy.write_config = lambda: None  # type: ignore[method-assign]
    proxy.environ["PGPOOL_PROXY_METRICS_PORT"] = "0"  # the default one may be another worker's
    return proxy.start()


def settings_of(text: str) -> dict[str, str]:
    """The keys of [pgbouncer]; the last one of a name counts."""
    found: dict[str, str] = {}
    section = ""
    for line in map(str.strip, text.splitlines()):
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = match[1]
        elif section == "pgbouncer" and "=" in line and line[0] not in ";#%":
            key, value = line.split("=", 1)
            found[key.strip()] = value.strip()
    return found


def same(shown: str | None, written: str) -> bool:
    """SHOW CONFIG prints numbers its own way."""
    if (shown or "") == written:
        return True
    try:
        return float(shown or "") == float(int(written, 8) if re.fullmatch("0[0-7]+", written) else float(written))
    except ValueError:
        return (shown or "").replace(" ", "") == written.replace(" ", "")


def test_every_file_has_its_client() -> None:
    assert {path.stem for path in FILES.glob("*.ini")} == {*CLIENTS, "included"}


@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_it_loads_and_works(make_proxy: MakeProxy, looked_up: Database, certificates: Certificates, name: str) -> None:
    proxy = start(make_proxy, name, looked_up, certificates)
    keywords = {"dbname": looked_up.name, "user": "scram_user", "password": USERS["scram_user"][1], **CLIENTS[name]}
    with psycopg.connect(proxy.dsn(**keywords), autocommit=True) as connection:
        assert connection.execute("select current_database(), current_user").fetchone() == (looked_up.name, "scram_user")
        with connection.transaction():
            assert connection.execute("select %s::int + 1", [41]).fetchone() == (42,)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(proxy.dsn(**{**keywords, "password": "wrong"}))
    tls = {"sslmode": "require"} if "sslmode" in CLIENTS[name] else {}
    shown = {row["key"]: row["value"] for row in proxy.admin("SHOW CONFIG", **tls)}
    written = proxy.ini.read_text()
    wrong = {key: (value, shown[key]) for key, value in settings_of(written).items() if not same(shown[key], value)}
    assert not wrong
    if re.search("^%include", written, re.MULTILINE):
        included = {**keywords, "dbname": "included"}
        with psycopg.connect(proxy.dsn(**included)) as connection:
            assert connection.execute("select current_database()").fetchone() == (looked_up.name,)
    proxy.admin("RELOAD", **tls)
    log = proxy.log()
    assert not re.search(r"ERROR|FATAL", re.sub(r".*(pooler error|password|login failed).*", "", log)), log
