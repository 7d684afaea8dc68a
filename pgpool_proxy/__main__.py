"""`pgpool-proxy` and `python -m pgpool_proxy`."""

import sys


def main() -> int:
    """`ping` runs every few seconds where it is a health check: it must not load all that the daemon needs."""
    if sys.argv[1:2] == ["ping"]:
        from pgpool_proxy.process import ping

        return ping.main(sys.argv[2:])
    from pgpool_proxy import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
