"""`pgpool-proxy` and `python -m pgpool_proxy`."""

import signal
import sys

#: those that a person may interrupt, as any Python program
FOR_PEOPLE = ("demo", "check", "passwd", "top")


def main() -> int:
    """`ping` runs every few seconds where it is a health check: it must not load all that the daemon needs."""
    if sys.argv[1:2] == ["ping"]:
        from pgpool_proxy.process import ping

        return ping.main(sys.argv[2:])
    if not sys.argv[1:] or sys.argv[1] not in FOR_PEOPLE:
        # Until the daemon handles them, once it can. As process 1 of a container it has no others: TERM would be lost.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
    from pgpool_proxy import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
