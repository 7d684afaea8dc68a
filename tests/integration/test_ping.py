"""`pgpool-proxy ping`: a health check says yes only when the proxy serves, and leaves no trace."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

import psycopg
import pytest
from fix_clients import settle
from fix_postgres import environment
from fix_proxy import MakeProxy, Proxy, daemon_command
from fix_wait import LOOPBACK, accepts, free_port, wait_until


def ping(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [*daemon_command(), "ping", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=30, cwd="/", env={**environment(), **environ}
    )


def test_a_proxy_that_serves_answers_where_its_file_says(proxy: Proxy) -> None:
    done = ping(proxy.ini)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{LOOPBACK}:{proxy.port} serves\n", "")


def test_the_environment_says_where_it_listens_when_no_file_does(proxy: Proxy) -> None:
    done = ping(PGPOOL_PROXY_LISTEN_PORT=str(proxy.port), PGPOOL_PROXY_LISTEN_ADDR="*")
    assert (done.returncode, done.stdout) == (0, f"{LOOPBACK}:{proxy.port} serves\n")
    assert ping("--port", proxy.port).returncode == 0


def test_the_unix_socket_is_asked_when_there_is_no_other(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start=False, listen_addr="")
    proxy.launch()
    proxy.wait_log("process up")
    done = ping(proxy.ini)
    assert (done.returncode, done.stdout) == (0, f"unix:{proxy.directory}/.s.PGSQL.{proxy.port} serves\n")
    assert ping("--host", proxy.directory, "--port", proxy.port).returncode == 0


def test_nobody_there_is_no() -> None:
    port = free_port()
    done = ping("--port", port)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pgpool-proxy ping: {LOOPBACK}:{port}: Connection refused\n"
    done = ping("--host", "/nowhere", "--port", port)
    assert (done.returncode, done.stderr.count("No such file")) == (1, 1)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n"])
def test_something_else_there_is_no(answer: bytes) -> None:
    with socket.create_server((LOOPBACK, 0)) as server:

        server.settimeout(20)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(8)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        done = ping("--port", server.getsockname()[1])
        thread.join()
    assert (done.returncode, "no PostgreSQL protocol" in done.stderr) == (1, True)


def test_a_proxy_that_does_not_answer_is_no() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:  # the kernel accepts, nobody reads
        done = ping("--port", server.getsockname()[1], "--timeout", "0.3")
    assert (done.returncode, "no answer in time" in done.stderr) == (1, True)


def test_a_file_or_a_port_that_cannot_be_used_is_no() -> None:
    done = ping("/nowhere/proxy.ini")
    assert (done.returncode, "/nowhere/proxy.ini" in done.stderr) == (1, True)
    done = ping(PGPOOL_PROXY_LISTEN_PORT="x")
    assert (done.returncode, 'expected a port, got "x"' in done.stderr) == (1, True)


def test_it_needs_no_place_among_the_clients_no_password_and_no_line_in_the_log(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(auth_type="scram-sha-256", max_client_conn=1)
    with proxy.connect(user="scram_user", password="scram-secret"):
        with pytest.raises(psycopg.OperationalError, match="max_client_conn"):
            proxy.connect(user="scram_user", password="scram-secret")
        proxy.wait_log(r"closing because: no more connections allowed")
        before = proxy.log()
        assert ping(proxy.ini).returncode == 0
        settle(proxy)
        assert proxy.log() == before


def test_it_says_no_as_soon_as_the_proxy_accepts_nobody(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(unix_socket_dir="")
    client = proxy.connect()
    proxy.admin("SHUTDOWN WAIT_FOR_CLIENTS")
    wait_until(lambda: not accepts(proxy.port))
    assert ping(proxy.ini).returncode == 1
    assert proxy.is_running()
    client.close()
    assert proxy.wait_exit() == 0


def test_it_loads_nothing_heavy() -> None:
    """A health check every few seconds must not cost what the daemon costs to start."""
    script = (
        "import sys; sys.argv = ['pgpool-proxy', 'ping', '--port', '1']; from pgpool_proxy.__main__ import main; main();"
        "print(*sorted({'asyncio', 'pydantic', 'psycopg', 'ssl', 'structlog', 'uvloop'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout == "\n"
