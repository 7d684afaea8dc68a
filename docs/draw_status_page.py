"""Draws docs/images/status_page.png: `make demo` in one terminal, `python docs/draw_status_page.py CONNINFO` in another, with
the connection string that it prints.

Needs playwright and chromium. Applications of several kinds use the demo for a minute and a half, more of them at the end than
its pool has servers, and the status page is taken while they do.
"""

from __future__ import annotations

import random
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Final

import psycopg
from playwright.sync_api import sync_playwright

PICTURE: Final = Path(__file__).with_name("images") / "status_page.png"
PAGE: Final = "http://127.0.0.1:9127/"
SECONDS: Final = 90
#: name -> clients, seconds of a query, seconds between two, when they begin
APPLICATIONS: Final = {
    "web": (12, 0.004, 0.02, 0),
    "worker": (4, 0.05, 0.2, 20),
    "nightly report": (30, 0.4, 0.3, SECONDS - 15),
}


def use(conninfo: str, name: str, query_s: float, pause_s: float, begin_s: float, over: threading.Event) -> None:
    """One client of an application."""
    if over.wait(begin_s * random.uniform(0.9, 1.1)):
        return
    with psycopg.connect(conninfo, application_name=name, autocommit=True) as connection:
        while not over.wait(random.expovariate(1 / pause_s)):
            connection.execute("select pg_sleep(%s), repeat('x', 500)", [random.expovariate(1 / query_s)])


def main(conninfo: str) -> None:
    over = threading.Event()
    clients = [
        threading.Thread(target=use, args=(conninfo, name, query_s, pause_s, begin_s, over))
        for name, (count, query_s, pause_s, begin_s) in APPLICATIONS.items()
        for _ in range(count)
    ]
    for client in clients:
        client.start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1520, "height": 360}, color_scheme="light")
        page.goto(PAGE)
        time.sleep(SECONDS)
        page.screenshot(path=PICTURE, full_page=True)
        browser.close()
    over.set()
    for client in clients:
        client.join()


if __name__ == "__main__":
    main(sys.argv[1])
