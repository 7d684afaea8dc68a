"""The port of /metrics, the health checks and the status page, and who may read from it. What they say is made elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pgpool_proxy import log
from pgpool_proxy.metrics.http import HttpServer
from pgpool_proxy.metrics.snapshot import HistoryRow, Readiness, Snapshot
from pgpool_proxy.settings import config as configuration
from pgpool_proxy.settings.config import Config
from pgpool_proxy.settings.model import Settings

RETRY_S: Final = 5.0  # until the port is tried again


class MetricsPort:
    """The `Source` of metrics/snapshot.py, as far as it is about the port."""

    def __init__(self) -> None:
        self._token = ""
        self._http: HttpServer | None = None

    def configure(self, config: Config) -> None:
        """The token may have changed. A file that cannot be read lets nobody in."""
        settings = config.settings
        self._token = settings.metrics_auth_token
        if settings.metrics_auth_token_file:
            path = configuration.beside(config, settings.metrics_auth_token_file)
            try:
                self._token = Path(path).read_text(encoding="utf-8").strip() or "\0"
            except (OSError, UnicodeDecodeError) as error:
                log.get_logger().error(f"could not read metrics_auth_token_file {path}: {error}")
                self._token = "\0"  # no header can carry it

    async def listen(self, settings: Settings) -> None:
        """Until the port can be had: a pooler serves without its metrics rather than not at all."""
        addresses = [address.strip() for address in settings.metrics_listen_addr.split(",") if address.strip()]
        if not addresses or not settings.metrics_port:
            return
        warned = False
        while True:
            http = HttpServer(self)
            try:
                await http.open(addresses, settings.metrics_port)
            except OSError as error:
                if not warned:
                    warned = True
                    log.get_logger().warning(
                        f"cannot listen on {settings.metrics_listen_addr}:{settings.metrics_port} for metrics: "
                        f"{error.strerror or error}, trying again every {RETRY_S:g} s"
                    )
                await asyncio.sleep(RETRY_S)
            else:
                self._http = http
                log.get_logger().info(f"listening on {settings.metrics_listen_addr}:{settings.metrics_port} for metrics")
                return

    def close(self) -> None:
        if self._http is not None:
            self._http.close()

    # --- Source -----------------------------------------------------------------------------------------------------------
    def token(self) -> str:
        return self._token

    def snapshot(self, done: Callable[[Callable[[], Snapshot]], None]) -> None:
        raise NotImplementedError

    def history(self, done: Callable[[list[HistoryRow]], None]) -> None:
        raise NotImplementedError

    def readiness(self, done: Callable[[Readiness], None]) -> None:
        raise NotImplementedError
