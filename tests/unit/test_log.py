"""What the log writes, and that it can neither be forged nor bring the daemon down."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pgpool_proxy import log
from pgpool_proxy.errors import ConfigError
from pgpool_proxy.settings import Settings, load


@dataclass
class Plain:
    """The settings that the log reads."""

    verbose: int = 0
    logfile: str = ""
    log_format: str = "text"
    syslog: bool = False
    syslog_ident: str = "pgbouncer"
    syslog_facility: str = "daemon"


@pytest.fixture(autouse=True)
def _defaults_again() -> Iterator[None]:
    yield
    log.configure(Plain(), quiet=False)


@pytest.fixture
def logfile(tmp_path: Path) -> Path:
    return tmp_path / "the.log"


def written(path: Path) -> list[str]:
    return path.read_text().splitlines()


def client() -> log.ConnectionLogger:
    return log.connection_logger("C", 5, "db", "user", "10.0.0.1", 4711)


def test_a_line_is_pgbouncers_line(logfile: Path) -> None:
    log.configure(Plain(logfile=str(logfile)), quiet=True)
    log.get_logger().info("process up")
    client().warning("pooler error: no such user")
    plain, connection = written(logfile)
    start = rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{{3}} \S+ \[{os.getpid()}\] "
    assert re.fullmatch(start + "LOG process up", plain)
    assert re.fullmatch(start + r"WARNING C-5: db/user@10\.0\.0\.1:4711 pooler error: no such user", connection)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("::1", "S-1: (nodb)/(nouser)@[::1]:7 "), ("unix(42)", "S-1: (nodb)/(nouser)@unix(42):7 ")],
)
def test_the_prefix_has_ipv6_in_brackets_unix_as_it_is_and_words_for_what_is_unknown(
    address: str, expected: str
) -> None:
    connection = log.connection_logger("S", 1, "", "", address, 7)
    assert connection.prefix() == expected
    connection.identify("d", "u")
    assert connection.prefix() == expected.replace("(nodb)/(nouser)", "d/u")


@pytest.mark.parametrize(
    ("verbose", "levels"),
    [
        (0, "FATAL ERROR WARNING LOG"),
        (1, "FATAL ERROR WARNING LOG DEBUG"),
        (2, "FATAL ERROR WARNING LOG DEBUG NOISE"),
        (3, "FATAL ERROR WARNING LOG DEBUG NOISE"),
    ],
)
def test_verbose_adds_levels_for_loggers_that_exist_already(logfile: Path, verbose: int, levels: str) -> None:
    both = (log.get_logger(), client())
    log.configure(Plain(verbose=verbose, logfile=str(logfile)), quiet=True)
    for logger in both:
        for method in (logger.fatal, logger.error, logger.warning, logger.info, logger.debug, logger.noise):
            method("x")
    assert [line.split("] ")[1].split(" ")[0] for line in written(logfile)] == levels.split() * 2


def test_json_has_the_same_message_and_named_fields(logfile: Path) -> None:
    log.configure(Plain(logfile=str(logfile), log_format="json"), quiet=True)
    client().info("closing because: x (age=3s)", reason="x", age_s=3, ts="not mine")
    log.get_logger().bind(worker=2).info("hello", odd=object)
    first, second = (json.loads(line) for line in written(logfile))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("ts"))
    assert first == {
        "pid": os.getpid(),
        "level": "LOG",
        "side": "C",
        "id": 5,
        "database": "db",
        "user": "user",
        "address": "10.0.0.1",
        "port": 4711,
        "message": "closing because: x (age=3s)",
        "reason": "x",
        "age_s": 3,
    }
    assert (second["worker"], second["message"]) == (2, "hello")


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_from_outside_can_forge_a_line_or_drive_a_terminal(logfile: Path, form: str) -> None:
    log.configure(Plain(logfile=str(logfile), log_format=form), quiet=True)
    evil = "".join(map(chr, range(32))) + "\x7f\x85\x9b[31m\u061c\u200b\u202e\u2028\u2029\u2066\ufeff\U000e0041\udcff"
    log.connection_logger("C", 1, evil, evil, evil, 1).info(evil)
    (line,) = logfile.read_bytes().split(b"\n")[:-1]
    text = line.decode("ascii")
    assert text.isprintable()
    assert "\\n" in text


def test_visible_text_of_any_language_stays_as_it_is() -> None:
    assert log.escape("é 数据库 naïve ключ") == "é 数据库 naïve ключ"


def test_an_exception_is_told_in_lines_that_cannot_be_mistaken_for_others(logfile: Path) -> None:
    log.configure(Plain(logfile=str(logfile)), quiet=True)
    try:
        raise RuntimeError("bad\nthing\x1b")
    except RuntimeError as exc:
        log.get_logger().error("task failed", error=exc)
    first, *rest = logfile.read_text().split("\n")[:-1]
    assert first.endswith("ERROR task failed")
    assert all(line.startswith("\t") for line in rest)
    assert "thing\\x1b" in rest[-1]


def test_quiet_says_nothing_on_stderr_but_the_file_has_it(logfile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(Plain(logfile=str(logfile)), quiet=True)
    log.get_logger().info("one")
    log.configure(Plain(logfile=str(logfile)), quiet=False)
    log.get_logger().info("two")
    assert "one" not in (err := capsys.readouterr().err)
    assert "two" in err
    assert len(written(logfile)) == 2


def test_reopen_writes_to_a_new_file_after_a_rename(logfile: Path) -> None:
    log.configure(Plain(logfile=str(logfile)), quiet=True)
    log.get_logger().info("before")
    old = logfile.rename(logfile.with_suffix(".1"))
    log.get_logger().info("between")
    log.reopen()
    log.get_logger().info("after")
    assert len(written(old)) == 2
    assert len(written(logfile)) == 1


def test_reopen_that_fails_goes_on_with_the_old_file_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "dir" / "the.log"
    path.parent.mkdir()
    log.configure(Plain(logfile=str(path)), quiet=True)
    moved = path.parent.rename(tmp_path / "other")
    log.reopen()
    assert "could not open log file" in (moved / "the.log").read_text()


def test_a_log_file_that_cannot_be_opened_is_a_config_error_and_changes_nothing(logfile: Path) -> None:
    log.configure(Plain(logfile=str(logfile)), quiet=True)
    with pytest.raises(ConfigError, match="logfile: could not open"):
        log.configure(Plain(logfile="/nowhere/at/all.log", verbose=3), quiet=True)
    log.get_logger().debug("hidden")
    log.get_logger().info("still here")
    assert len(written(logfile)) == 1


def test_a_closed_stderr_and_a_full_disk_lose_lines_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = (tmp_path / "closed").open("w")
    stream.close()
    monkeypatch.setattr("sys.stderr", stream)
    log.configure(Plain(logfile="/dev/full"), quiet=False)
    before = log.lost_lines()
    log.get_logger().info("lost")
    assert log.lost_lines() == before + 2
    monkeypatch.setattr("sys.stderr", None)
    log.get_logger().info("lost")
    assert log.lost_lines() == before + 3


def test_syslog_gets_priority_ident_and_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "devlog")
    monkeypatch.setattr(log, "SYSLOG_ADDRESS", address)
    log.configure(Plain(syslog=True, syslog_facility="local3", syslog_ident="me"), quiet=True)
    before = log.lost_lines()
    client().info("nobody listens yet")
    client().info("nor tries again at once")
    assert log.lost_lines() == before + 1
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        log.configure(Plain(syslog=True, syslog_facility="local3", syslog_ident="me"), quiet=True)
        client().info("hello")
        received = listener.recv(1000).decode()
    assert received == f"<{19 * 8 + 6}>me[{os.getpid()}]: C-5: db/user@10.0.0.1:4711 hello"
    client().info("it is gone")


def test_no_log_of_a_configuration_shows_a_password(logfile: Path) -> None:
    config = load(None, {"auth_ldap_options": "ldapbindpasswd=hunter2"}, {"DATABASE_URL": "postgres://u:hunter2@h/d"})
    entry = config.databases["d"]
    for form in ("text", "json"):
        log.configure(Plain(logfile=str(logfile), log_format=form), quiet=True)
        log.get_logger().info(
            f"{config} {config.settings} {entry}", config=config, entry=entry, settings=config.settings
        )
    assert "hunter2" not in logfile.read_text()


def test_the_settings_fit_the_log(logfile: Path) -> None:
    log.configure(Settings(logfile=str(logfile)), quiet=True)
    log.get_logger().info("x")
    assert len(written(logfile)) == 1


def test_a_connections_repr_says_which() -> None:
    assert repr(client()) == "<ConnectionLogger C-5: db/user@10.0.0.1:4711>"
