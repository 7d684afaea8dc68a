"""Work beside the loop: in few threads, in turn, and never in the way of the end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

from pgpool_proxy.process.threads import Threads

ENDLESS = """\
import asyncio, threading
from pgpool_proxy.process.threads import Threads

async def main():
    threads = Threads(1, "endless")
    begun = threading.Event()
    threads.run(lambda: (begun.set(), threading.Event().wait()), print)
    threads.run(lambda: "not begun", print)
    begun.wait()
    threads.close()

asyncio.run(main())
print("ended")
"""


def test_work_is_done_beside_the_loop_and_told_on_it() -> None:
    async def main() -> None:
        threads = Threads(2, "some")
        done = asyncio.Event()
        found: list[int] = []
        names: set[str] = set()

        def work(number: int) -> int:
            names.add(threading.current_thread().name)
            return number

        def told(number: int) -> None:
            assert threading.current_thread() is threading.main_thread()
            found.append(number)
            if len(found) == 20:
                done.set()

        for number in range(20):
            threads.run(lambda number=number: work(number), told)  # type: ignore[misc]
        await done.wait()
        assert sorted(found) == list(range(20))
        assert names <= {"some_1", "some_2"}
        assert repr(threads) == "<Threads some started=2 under_way=0>"
        threads.close()
        threads.run(lambda: 1, found.append)  # too late: nothing happens

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_process_ends_while_a_thread_is_at_work() -> None:
    ended = subprocess.run([sys.executable, "-c", ENDLESS], capture_output=True, text=True, timeout=60, check=True)
    assert (ended.stdout, ended.stderr) == ("ended\n", "")
