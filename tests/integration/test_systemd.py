"""The daemon as a service of systemd: what it says to NOTIFY_SOCKET, and sockets that were opened for it."""

from __future__ import annotations

import signal
import socket
import sys

from fix_clients import Database, Login, value
from fix_proxy import MakeProxy, Proxy
from fix_raw import MakeRawClient
from fix_systemd import Manager
from fix_wait import LOOPBACK, free_port, wait_until

#: opens sockets as systemd does (TCP, then the unix socket when a path is given) and becomes the daemon
OPENER = """
import os, socket, sys
port, path, *command = sys.argv[1:]
opened = [socket.create_server(("127.0.0.1", int(port)))]
if path:
    opened.append(socket.socket(socket.AF_UNIX)); opened[-1].bind(path); os.chmod(path, 0o777); opened[-1].listen()
for number, one in enumerate(opened, 3):
    os.dup2(one.fileno(), number + 20); os.set_inheritable(number + 20, True)
for number in range(3, 3 + len(opened)):
    os.dup2(number + 20, number); os.close(number + 20)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(opened)))
os.execvp(command[0], command)
"""


def test_it_says_when_it_is_ready_reloads_and_stops(make_proxy: MakeProxy, database: Database, login: Login) -> None:
    proxy = make_proxy(start=False, databases={"app": database.entry()})
    path = proxy.directory / "notify"
    manager = Manager(path)
    with manager.socket:
        proxy.environ["NOTIFY_SOCKET"] = str(path)
        proxy.start()
        assert manager.heard() == {"READY": "1", "MAINPID": str(proxy.pid), "STATUS": "Serving"}
        proxy.signal(signal.SIGHUP)
        reloading = manager.heard()
        assert reloading["RELOADING"] == "1"
        assert int(reloading["MONOTONIC_USEC"]) > 0
        assert manager.heard()["READY"] == "1"
        proxy.ini.write_text("nonsense")
        proxy.signal(signal.SIGHUP)
        assert manager.heard()["RELOADING"] == "1"
        assert manager.heard()["READY"] == "1"  # it goes on with what it had
        client = login(proxy)
        proxy.signal(signal.SIGTERM)
        assert manager.heard() == {"STOPPING": "1", "STATUS": "Waiting for clients"}
        client.close()
        assert manager.heard() == {"STOPPING": "1", "STATUS": "Exiting"}
        assert proxy.wait_exit() == 0


def test_an_abstract_notify_socket_will_do_and_a_dead_one_does_no_harm(make_proxy: MakeProxy) -> None:
    name = f"@pgpool_proxy-test-{free_port()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:])
        sock.settimeout(10)
        make_proxy(environ={"NOTIFY_SOCKET": name})
        assert b"READY=1" in sock.recv(4096)
    proxy = make_proxy(environ={"NOTIFY_SOCKET": name})
    assert proxy.sql("select 1") == [(1,)]
    assert proxy.log_contains("could not notify systemd")


def activated(proxy: Proxy, port: int, path: str = "") -> Proxy:
    """Started by its sockets."""
    command = proxy.command()
    proxy.command = lambda: [sys.executable, "-c", OPENER, str(port), path, *command]  # type: ignore[method-assign]
    return proxy


def test_sockets_from_systemd_replace_those_of_the_settings(
    make_proxy: MakeProxy, database: Database, make_raw_client: MakeRawClient
) -> None:
    port = free_port()
    proxy = make_proxy(start=False, databases={"app": database.entry()}, listen_addr=LOOPBACK)
    own = proxy.port
    path = proxy.directory / "given.socket"
    activated(proxy, port, str(path))
    proxy.port = port
    proxy.start()
    by_tcp, by_unix = make_raw_client(port), make_raw_client(path=str(path))
    for client in (by_tcp, by_unix):
        client.login()
        assert value(client, "select 1") == "1"
    with socket.socket() as nobody:
        assert nobody.connect_ex((LOOPBACK, own)) != 0
    assert not (proxy.directory / f".s.PGSQL.{own}").exists()
    proxy.stop()
    assert path.exists()  # not ours to remove


def test_an_online_restart_is_refused_under_socket_activation(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start=False, arguments=("-R",))
    assert activated(proxy, free_port()).run_to_end() == 1
    assert proxy.log_contains("sockets systemd holds")


def test_what_is_no_listening_socket_is_refused(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start=False)
    command = proxy.command()
    opener = (
        "import os, sys; os.dup2(os.open('/dev/null', os.O_RDONLY), 3); os.set_inheritable(3, True);"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); os.execvp(sys.argv[1], sys.argv[1:])"
    )
    proxy.command = lambda: [sys.executable, "-c", opener, *command]  # type: ignore[method-assign]
    assert proxy.run_to_end() == 1
    assert proxy.log_contains("descriptor 3 from systemd is no socket")


def test_descriptors_for_another_process_are_left_alone(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(environ={"LISTEN_PID": "1", "LISTEN_FDS": "2"})
    wait_until(lambda: proxy.sql("select 1") == [(1,)])


def test_lines_for_the_journal_have_a_priority_and_no_time(make_proxy: MakeProxy, login: Login) -> None:
    proxy = make_proxy(start=False)
    proxy.log_file.touch()
    found = proxy.log_file.stat()
    proxy.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
    proxy.start()
    assert proxy.log_contains(r"^<6>listening on 127\.0\.0\.1:")
    proxy.ini.write_text("nonsense")
    proxy.signal(signal.SIGHUP)
    proxy.wait_log(r"^<3>RELOAD failed")
    assert all(line.startswith("<") for line in proxy.log().splitlines())


def test_another_stderr_is_not_taken_for_the_journal(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(environ={"JOURNAL_STREAM": "8:1"})
    assert proxy.log_contains(r"^\d{4}-\d\d-\d\d .* LOG listening on")
