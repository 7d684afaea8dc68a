"""`pgpool-proxy top`: pools, waits and the clients that use the servers most, in a terminal, again and again.

An ordinary client of the console: POOLS, WAITS, STATS and TOP are what it shows. Text that came from outside is printed
without what a terminal would obey.
"""

from __future__ import annotations

import argparse
import getpass
import os
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row

from pgpool_proxy.errors import ConfigError
from pgpool_proxy.process import ping
from pgpool_proxy.settings.config import load

CONSOLE: Final = "pgbouncer"
TABLES: Final = ("POOLS", "WAITS", "STATS", "TOP")
CONNECT_TIMEOUT_S: Final = 5
CLEAR: Final = "\x1b[H\x1b[2J"
NARROWEST: Final = 40
LONGEST_NAME: Final = 28
UNITS: Final = ("B", "kB", "MB", "GB", "TB")
Rows = list[dict[str, Any]]


def main(arguments: Sequence[str]) -> int:
    """0 when it was shown, and interrupted; 1 when the console cannot be reached."""
    options = parser().parse_args(arguments)
    try:
        conninfo = where(options.where, options.user, os.environ)
    except (ConfigError, psycopg.ProgrammingError) as error:
        sys.stderr.write(f"pgpool-proxy top: {printable(str(error)).strip()}\n")
        return 1
    signal.signal(signal.SIGINT, _leave)
    is_once = options.once or not sys.stdout.isatty()
    return once(conninfo, options.rows) if is_once else again_and_again(conninfo, options.rows, options.seconds)


def _leave(*_: object) -> None:
    """Ctrl-C: there is nothing to tidy up, and a KeyboardInterrupt would be anybody's to handle, psycopg's for one, which first
    cancels what it is waiting for."""
    os.write(1, b"\n")
    os._exit(0)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="pgpool-proxy top", description="Pools, waits and the clients that use the servers most, from the console."
    )
    found.add_argument("-n", "--seconds", type=_positive, default=2.0, help="how often to look (2)")
    found.add_argument("-r", "--rows", type=int, default=15, help="how many clients, and how many waits (15)")
    found.add_argument("-U", "--user", help="one of admin_users or stats_users; default: the first of them, or PGUSER")
    found.add_argument("--once", action="store_true", help="look once; so it does where its output is no terminal")
    found.add_argument(
        "where", nargs="?", metavar="FILE.ini|CONNINFO",
        help="its configuration, or a connection string; default: the environment. Passwords: PGPASSWORD, ~/.pgpass",
    )  # fmt: skip
    return found


def _positive(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError("expected seconds from 0.1 to 3600")
    return value


def where(given: str | None, user: str | None, environ: Mapping[str, str]) -> str:
    """The console's connection string. Raises ConfigError or ProgrammingError for a file or string that cannot be used."""
    keywords: dict[str, Any] = {"dbname": CONSOLE, "connect_timeout": CONNECT_TIMEOUT_S, "application_name": "pgpool-proxy top"}
    operator = user or environ.get("PGUSER")
    if given is not None and ("://" in given or "=" in given):
        keywords |= {key: value for key, value in conninfo_to_dict(given).items() if value is not None}
    else:
        keywords["host"], keywords["port"] = ping.where(given, None, None, environ)
        if operator is None:
            settings = load(given, {}, environ).settings
            names = f"{settings.stats_users},{settings.admin_users}".split(",")
            operator = next((name.strip() for name in names if name.strip()), None)
    if user is not None:
        keywords["user"] = user
    keywords.setdefault("user", operator or getpass.getuser())
    return make_conninfo(**keywords)


# --- looking ----------------------------------------------------------------------------------------------------------------
def once(conninfo: str, rows: int) -> int:
    try:
        with connected(conninfo) as connection:
            lines = screen(look(connection), _place(connection), rows)
    except psycopg.Error as error:
        sys.stderr.write(f"pgpool-proxy top: {_said(error)}\n")
        return 1
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def again_and_again(conninfo: str, rows: int, seconds: float) -> int:
    """Until it is interrupted. A daemon that goes away is waited for, once it has been there."""
    connection: psycopg.Connection[Any] | None = None
    was_there = False
    while True:
        try:
            if connection is None:
                connection = connected(conninfo)
            lines = screen(look(connection), _place(connection), rows)
            was_there = True
        except psycopg.Error as error:
            if not was_there:
                sys.stderr.write(f"pgpool-proxy top: {_said(error)}\n")
                return 1
            lines = ["trying again:", *textwrap.wrap(_said(error), max(shutil.get_terminal_size().columns, NARROWEST))]
            if connection is not None:
                connection.close()
                connection = None
        width, height = shutil.get_terminal_size()
        sys.stdout.write(CLEAR + "\n".join(line[: max(width, NARROWEST)] for line in lines[: height - 1]) + "\n")
        sys.stdout.flush()
        time.sleep(seconds)


def connected(conninfo: str) -> psycopg.Connection[Any]:
    """The console knows the simple protocol best, and no transactions."""
    return psycopg.connect(conninfo, autocommit=True, prepare_threshold=None, cursor_factory=psycopg.ClientCursor)


def look(connection: psycopg.Connection[Any]) -> dict[str, Rows]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return {table: cursor.execute(f"SHOW {table}".encode()).fetchall() for table in TABLES}


def _place(connection: psycopg.Connection[Any]) -> str:
    info = connection.info
    return f"unix:{ping.socket_path(info.host, info.port)}" if ping.is_unix(info.host) else f"{info.host}:{info.port}"


def _said(error: psycopg.Error) -> str:
    return printable(" ".join(str(error).split()))


# --- showing ----------------------------------------------------------------------------------------------------------------
def screen(found: Mapping[str, Rows], place: str, rows: int) -> list[str]:
    """Everything, as lines."""
    pools = [row for row in found["POOLS"] if row["database"] != CONSOLE]
    waits, top = found["WAITS"][:rows], found["TOP"][:rows]
    lines = [f"pgpool_proxy {place}  {time.strftime('%H:%M:%S')}", *_summary(pools, found["STATS"]), ""]
    lines += table(
        [
            ("POOL", "<", [_pool(row) for row in pools]),
            ("CL ACTIVE", ">", [str(row["cl_active"]) for row in pools]),
            ("WAITING", ">", [str(row["cl_waiting"]) for row in pools]),
            ("SV ACTIVE", ">", [str(row["sv_active"]) for row in pools]),
            ("IDLE", ">", [str(row["sv_idle"] + row["sv_used"] + row["sv_tested"]) for row in pools]),
            ("LOGIN", ">", [str(row["sv_login"]) for row in pools]),
            ("MAXWAIT", ">", [seconds(row["maxwait"] * 1_000_000 + row["maxwait_us"]) for row in pools]),
            ("MODE", "<", [row["pool_mode"] for row in pools]),
        ]
    )
    if waits:
        lines += ["", f"waiting for a server: {len(found['WAITS'])}"]
        lines += table(
            [
                ("ID", ">", [str(row["id"]) for row in waits]),
                ("POOL", "<", [_pool(row) for row in waits]),
                ("FROM", "<", [_address(row) for row in waits]),
                ("WAIT", ">", [seconds(row["wait"] * 1_000_000 + row["wait_us"]) for row in waits]),
                ("WHAT FOR", "<", [row["reason"] for row in waits]),
            ]
        )
    lines += ["", "clients by server time, of late"]
    lines += table(
        [
            ("ID", ">", [str(row["id"]) for row in top]),
            ("POOL", "<", [_pool(row) for row in top]),
            ("STATE", "<", [row["state"] for row in top]),
            ("TIME", ">", [seconds(row["server_time"]) for row in top]),
            ("QUERIES", ">", [f"{row['query_count']:,}" for row in top]),
            ("XACTS", ">", [f"{row['xact_count']:,}" for row in top]),
            ("IN", ">", [size(row["bytes_received"]) for row in top]),
            ("OUT", ">", [size(row["bytes_sent"]) for row in top]),
            ("FROM", "<", [_address(row) for row in top]),
            ("APPLICATION", "<", [row["application_name"] for row in top]),
        ]
    )
    return lines


def _summary(pools: Rows, stats: Rows) -> Iterator[str]:
    def total(*columns: str) -> int:
        return sum(row[column] for row in pools for column in columns)

    longest = max((row["maxwait"] * 1_000_000 + row["maxwait_us"] for row in pools), default=0)
    yield (
        f"clients {total('cl_active', 'cl_waiting')}, {total('cl_waiting')} waiting"
        f"{f' for up to {seconds(longest)}' if longest else ''};"
        f" servers {total('sv_active', 'sv_idle', 'sv_used', 'sv_tested', 'sv_login')}, {total('sv_active')} active"
    )

    def rate(name: str) -> Decimal:
        return sum((row[f"avg_{name}"] for row in stats), Decimal(0))

    yield (
        f"queries {rate('query_count'):,}/s, transactions {rate('xact_count'):,}/s,"
        f" in {size(rate('recv'))}/s, out {size(rate('sent'))}/s"
    )


def _pool(row: Mapping[str, Any]) -> str:
    return shortened(f"{row['database']}/{row['user']}")


def shortened(name: str) -> str:
    """So that what stands behind it has a place in 80 columns."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _address(row: Mapping[str, Any]) -> str:
    return f"{row['addr']}:{row['port']}" if row["addr"] != "unix" else "unix"


def table(columns: Sequence[tuple[str, str, Sequence[str]]]) -> list[str]:
    """Heads, alignments and cells as lines; a column is as wide as its widest cell."""
    padded: list[list[str]] = []
    for head, align, cells in columns:
        texts = [printable(text) for text in (head, *cells)]
        width = max(len(text) for text in texts)
        padded.append([f"{text:{align}{width}}" for text in texts])
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]


def printable(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def seconds(micros: int | Decimal) -> str:
    value = float(micros) / 1_000_000
    return f"{value:.3f} s" if value < 10 else f"{value:,.1f} s"


def size(number: int | Decimal) -> str:
    """Bytes, to three digits."""
    value = float(number)
    for unit in UNITS[:-1]:
        if value < 999.5:  # else it would be rounded to 1000
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.0f} {UNITS[-1]}"
