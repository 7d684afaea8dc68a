"""What signals do, as in PgBouncer: HUP reloads, TERM and INT end gracefully, QUIT at once, USR1 pauses, USR2 resumes.

Beyond it, SIGRTMIN replaces the workers where there are several (RESTART).
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Final

from pgpool_proxy import log
from pgpool_proxy.errors import ConfigError, Report
from pgpool_proxy.process.worker import Worker

if TYPE_CHECKING:
    from pgpool_proxy.process.supervisor import Supervisor


MODES: Final = {
    signal.SIGTERM: "wait_for_clients",
    signal.SIGINT: "wait_for_servers",
    signal.SIGQUIT: "now",
}
AWAITED: Final = {
    "wait_for_clients": "all clients disconnect",
    "wait_for_servers": "all servers connections to be released",
}


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

    def end(number: signal.Signals, mode: str) -> None:
        logger.info(_said(number, worker.is_shutting_down))
        worker.shutdown(mode)

    def pause() -> None:
        logger.info("got SIGUSR1, pausing all activity")
        worker.control.pause_by_signal()

    def resume() -> None:
        if worker.closing is None:
            logger.info("got SIGUSR2, continuing from PAUSE")
            worker.control.resume_by_signal()

    loop.add_signal_handler(signal.SIGHUP, reload)
    for number, mode in MODES.items():
        loop.add_signal_handler(number, end, number, mode)
    loop.add_signal_handler(signal.SIGUSR1, pause)
    loop.add_signal_handler(signal.SIGUSR2, resume)
    loop.add_signal_handler(signal.SIGRTMIN, lambda: logger.warning("got SIGRTMIN, but there are no workers to replace"))
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def install_for_all(supervisor: Supervisor) -> None:
    """The same where several workers serve: what is said to this process, all are told."""
    loop = asyncio.get_running_loop()
    logger = log.get_logger()

    def answered(report: Report | None) -> None:
        if report is not None and report.severity != "NOTICE":
            logger.error(f"{report.message}: {report.detail}" if report.detail else report.message)

    def is_said(report: Report | None) -> None:
        """The log has it already."""

    def order(name: str, said: str, *arguments: object) -> None:
        logger.info(said)
        supervisor.orders.give(name, list(arguments), is_said if name == "reload" else answered)

    loop.add_signal_handler(signal.SIGHUP, order, "reload", "got SIGHUP, re-reading config")
    loop.add_signal_handler(signal.SIGUSR1, order, "pause", "got SIGUSR1, pausing all activity", None, 0.0)
    loop.add_signal_handler(signal.SIGUSR2, order, "resume", "got SIGUSR2, continuing from PAUSE", None)
    loop.add_signal_handler(signal.SIGRTMIN, order, "restart", "got SIGRTMIN, replacing the workers")
    for number, mode in MODES.items():
        loop.add_signal_handler(number, _shutdown, supervisor, number, mode)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # pidfds tell of workers' ends; nobody stays behind as a zombie


def _shutdown(supervisor: Supervisor, number: signal.Signals, mode: str) -> None:
    log.get_logger().info(_said(number, bool(supervisor.closing)))
    supervisor.shutdown(mode)


def _said(number: signal.Signals, is_shutting_down: bool) -> str:
    """What PgBouncer's log says of a signal to end."""
    if number == signal.SIGQUIT:
        return "got SIGQUIT, fast exit"
    if is_shutting_down:
        return f"got {number.name} while shutting down, fast exit"
    return f"got {number.name}, shutting down, waiting for {AWAITED[MODES[number]]}"
