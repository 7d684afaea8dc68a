"""What signals do, as in PgBouncer: HUP reloads, TERM and INT end gracefully, QUIT at once, USR1 pauses, USR2 resumes."""

from __future__ import annotations

import asyncio
import signal

from pgpool_proxy import log
from pgpool_proxy.errors import ConfigError
from pgpool_proxy.process.worker import Worker


def install(worker: Worker) -> None:
    """Handle the signals of this process on its loop."""
    loop = asyncio.get_running_loop()
    logger = log.get_logger()

    def reload() -> None:
        logger.info("got SIGHUP, re-reading config")
        try:
            worker.reload()
        except ConfigError as error:
            logger.error(f"RELOAD failed, the old configuration stays: {error}")

    def terminate() -> None:
        logger.info("got SIGTERM, shutting down, waiting for all clients disconnect")
        worker.shutdown("wait_for_clients")

    def interrupt() -> None:
        logger.info("got SIGINT, shutting down, waiting for all servers connections to be released")
        worker.shutdown("wait_for_servers")

    def quit_now() -> None:
        logger.info("got SIGQUIT, immediate shutdown")
        worker.shutdown("now")

    def pause() -> None:
        logger.info("got SIGUSR1, pausing all activity")
        worker.control.pause_by_signal()

    def resume() -> None:
        if worker.closing is None:
            logger.info("got SIGUSR2, continuing from PAUSE")
            worker.control.resume_by_signal()

    loop.add_signal_handler(signal.SIGHUP, reload)
    loop.add_signal_handler(signal.SIGTERM, terminate)
    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGQUIT, quit_now)
    loop.add_signal_handler(signal.SIGUSR1, pause)
    loop.add_signal_handler(signal.SIGUSR2, resume)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
