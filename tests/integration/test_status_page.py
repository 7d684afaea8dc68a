"""The status page in a real browser: Debian's chromium, driven by playwright. Skipped where one of them is not installed."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fix_postgres import Postgres
from fix_proxy import MakeProxy, Proxy
from fix_wait import free_port, wait_until

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")

HOST = "127.0.0.1"
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def observed(make_proxy: MakeProxy, postgres: Postgres) -> tuple[Proxy, str]:
    port = free_port()
    entry = f"host={postgres.host} port={postgres.port} dbname=postgres"
    proxy = make_proxy(
        databases={"app": entry, "*": entry},
        pool_mode="transaction",
        default_pool_size=1,
        metrics_listen_addr=HOST,
        metrics_port=port,
    )
    wait_until(lambda: proxy.log_contains("for metrics"), 10, "the HTTP side listens")
    return proxy, f"http://{HOST}:{port}/"


def opened(browser: Any, url: str, **options: Any) -> tuple[Any, list[str]]:
    """A page that shows its pools, and what went wrong in it."""
    page = browser.new_page(**options)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: problems.append(request.url) if not request.url.startswith((url, "data:")) else None)
    page.goto(url)
    return page, problems


def test_a_pool_goes_into_waiting_and_out_of_it(browser: Any, observed: tuple[Proxy, str]) -> None:
    proxy, url = observed
    page, problems = opened(browser, url)
    state = page.locator("#state")
    sync_api.expect(state).to_have_text("nobody waits", timeout=30_000)
    with proxy.connect(dbname="app") as holder:
        holder.execute("begin")
        asking = threading.Thread(target=lambda: proxy.sql("select 1", dbname="app"))
        asking.start()
        sync_api.expect(state).to_have_text("1 client waits for a server", timeout=30_000)
        sync_api.expect(page.locator("tr.waiting")).to_have_count(1)
        holder.execute("rollback")
        asking.join(10)
        sync_api.expect(state).to_have_text("nobody waits", timeout=30_000)
        sync_api.expect(page.locator("tr.waiting")).to_have_count(0)
    assert problems == []
    page.close()


def test_what_is_held_says_by_what(browser: Any, observed: tuple[Proxy, str]) -> None:
    proxy, url = observed
    proxy.sql("select 1", dbname="app")
    page, problems = opened(browser, url)
    for command, word in (("PAUSE", "paused"), ("RESUME", None), ("DISABLE app", "disabled")):
        proxy.admin(command)
        held = page.locator(f'td[data-held="{word}"]' if word else "td[data-held]")
        sync_api.expect(held).to_have_count(1 if word else 0, timeout=30_000)
    shown = page.evaluate("getComputedStyle(document.querySelector('td.name'), '::after').content")
    assert shown == '" disabled"'
    assert problems == []
    page.close()


def test_hostile_names_are_text(browser: Any, observed: tuple[Proxy, str]) -> None:
    proxy, url = observed
    with proxy.connect(dbname=HOSTILE) as client:
        client.execute("select 1")
        page, problems = opened(browser, url)
        cell = page.locator("td.name", has_text=HOSTILE).first
        sync_api.expect(cell).to_have_text(HOSTILE, timeout=30_000)
        assert page.locator("td img").count() == 0
    assert problems == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser: Any, observed: tuple[Proxy, str], scheme: str) -> None:
    proxy, url = observed
    with proxy.connect(dbname="app") as client:
        client.execute("select 1")
        page, problems = opened(browser, url, viewport={"width": 375, "height": 700}, color_scheme=scheme)
        sync_api.expect(page.locator("#pools tr")).not_to_have_count(0, timeout=30_000)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    assert problems == []
    page.close()
