"""Death, stops, forks and exits of workers and daemons."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_engine import REF
from tests.support.serving import DaemonProcess, run_script
from weightd import AsyncClient, Client, errors

HOLD = """
import sys
from weightd import Client
lease = Client(sys.argv[1]).acquire("demo")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(process: DaemonProcess) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lease until its input ends."""
    command = [sys.executable, "-c", HOLD, str(process.socket)]
    it = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert it.stdin is not None
    assert it.stdout is not None
    with it:
        assert it.stdout.readline() == "held\n"
        assert process.line() == "demo 1"
        yield it
        if it.poll() is None:
            it.kill()


def test_a_lease_ends_with_its_process(process: DaemonProcess, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    assert process.line() == "demo 0"


def test_a_stopped_process_keeps_its_lease(process: DaemonProcess, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED)
    with Client(process.socket) as client:
        client.acquire(REF).release()
        assert [process.line(), process.line()] == ["demo 2", "demo 1"]
        assert client.status().leases == 1
    holder.kill()
    assert process.line() == "demo 0"


def test_an_interpreter_that_ends_with_an_open_lease_is_quiet(
    process: DaemonProcess, holder: subprocess.Popen[str]
) -> None:
    assert holder.stdin is not None
    holder.stdin.close()
    assert holder.wait(20) == 0
    assert process.line() == "demo 0"


EXITS = {
    "sync": """
import sys
from weightd import Client
client = Client(sys.argv[1])
leases = [client.acquire("demo") for _ in range(3)]
watch = client.watch()
view = leases[0]["a"]
""",
    "sync, in a thread": """
import sys, threading
from weightd import Client
client = Client(sys.argv[1])
threading.Thread(target=lambda: [e for e in client.watch()], daemon=True).start()
lease = client.acquire("demo")
""",
    "async, closed by nobody": """
import asyncio, sys
from weightd import AsyncClient
async def main():
    global client, lease
    client = AsyncClient(sys.argv[1])
    lease = await client.acquire("demo")
asyncio.run(main())
assert lease["a"].sum() == 15
""",
    "async, released after its loop": """
import asyncio, sys
from weightd import AsyncClient
async def main():
    return await AsyncClient(sys.argv[1]).acquire("demo")
lease = asyncio.run(main())
lease.release()
""",
    "a client for two loops": """
import asyncio, sys
from weightd import AsyncClient
client = AsyncClient(sys.argv[1])
for _ in range(2):
    assert asyncio.run(client.status()).models == 1
""",
    "an error": """
import sys
from weightd import Client
lease = Client(sys.argv[1]).acquire("demo")
sys.exit(0 if lease.alive else 1)
""",
}


@pytest.mark.parametrize("script", EXITS.values(), ids=EXITS.keys())
def test_every_exit_is_quiet(process: DaemonProcess, script: str) -> None:
    done = run_script(script, process.socket)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_daemon_that_dies_harms_no_view(process: DaemonProcess) -> None:
    with Client(process.socket) as client:
        lease = client.acquire(REF)
        view = lease["a"]
        watch = client.watch()
        process.kill()
        with pytest.raises(errors.DaemonUnavailable, match="serve"):
            next(watch)
        with pytest.raises(errors.DaemonUnavailable):
            client.status()
        assert not lease.alive
        assert view.sum() == 15
        assert lease.torch("layer.weight").tolist() == [10, 11, 12, 13]
        lease.release()


def test_a_client_goes_on_with_the_next_daemon(process: DaemonProcess) -> None:
    with Client(process.socket) as client:
        first = client.status().pid
        for _ in range(3):
            process.kill()
            with pytest.raises(errors.DaemonUnavailable):
                client.status()
            process.restart()
            assert client.status().pid != first
        with client.acquire(REF) as lease:
            assert lease.alive


async def test_an_asynchronous_client_goes_on_as_well(process: DaemonProcess) -> None:
    async with AsyncClient(process.socket, reconnect=0) as client:
        await client.status()
        process.kill()
        with pytest.raises(errors.DaemonUnavailable):
            await client.acquire(REF)
        process.restart()
        async with client.acquire(REF) as lease:
            assert lease.alive


def test_a_drained_daemon_ends_cleanly(process: DaemonProcess) -> None:
    with Client(process.socket, reconnect=0) as client:
        lease = client.acquire(REF)
        view = lease["a"]
        watch = client.watch()
        assert process.terminate() == 0
        with pytest.raises(errors.Draining):
            list(watch)
        assert not lease.alive
        assert view.sum() == lease["a"].sum() == 15
        with pytest.raises(errors.LeaseEnded, match="gone"):  # its segment is, and nobody here has opened it
            lease.file("config.json").open()
    assert not process.socket.exists()


FORK = """
import asyncio, gc, os, signal, sys
from weightd import AsyncClient, Client, errors

def child(way):
    signal.alarm(20)
    assert lease["a"].sum() == 15
    assert lease["layer.weight"][1] == 11  # may be opened here for the first time
    for call in (
        client.status, lambda: client.acquire("demo"), lambda: Client(sys.argv[1]).status(),
        lambda: asyncio.run(AsyncClient(sys.argv[1]).status()), lambda: next(watch), client.watch,
    ):
        try:
            call()
        except errors.ForkedClient as e:
            assert "spawn" in str(e)
        else:
            raise AssertionError("a call in a child")
    assert not lease.alive
    if way % 2:
        lease.release(); client.close(); watch.close()
    globals().update(lease=None, client=None, watch=None)
    gc.collect()

client = Client(sys.argv[1])
lease = client.acquire("demo")
watch = client.watch()
if len(sys.argv) > 2:
    assert lease["a"].sum() == 15
for way in range(20):
    pid = os.fork()
    if pid == 0:
        try:
            child(way)
        except BaseException as e:
            print(repr(e), file=sys.stderr, flush=True)
            os._exit(1)
        if way % 3:
            os._exit(0)
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0, way
assert lease.alive
assert client.status().leases == 1
assert lease["a"].sum() == 15
print("done")
"""


@pytest.mark.parametrize("opened", [[], ["before"]], ids=["opened in the child", "opened before"])
def test_forked_children_read_and_do_not_call_and_end_nothing(process: DaemonProcess, opened: list[str]) -> None:
    assert run_script(FORK, process.socket, *opened).stdout == "done\n"
    assert [process.line(), process.line()] == ["demo 1", "demo 0"]


FORK_WHILE_BUSY = """
import os, signal, sys, threading
from weightd import Client

client = Client(sys.argv[1])
lease = client.acquire("demo")
stop = threading.Event()

def noise():
    while not stop.is_set():
        Client(sys.argv[1]).acquire("demo").release()

threads = [threading.Thread(target=noise) for _ in range(2)]
for t in threads:
    t.start()
try:
    for way in range(15):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            assert lease["a"].sum() == 15
            sys.exit(0)
        status = os.waitpid(pid, 0)[1]
        assert status == 0, status
finally:
    stop.set()
    for t in threads:
        t.join()
assert lease.alive
assert "GRPC_ENABLE_FORK_SUPPORT" not in os.environ
"""


def test_forks_while_other_threads_call(process: DaemonProcess) -> None:
    assert run_script(FORK_WHILE_BUSY, process.socket).stderr == ""


FORK_FIRST = """
import multiprocessing, os, sys
from weightd import Client
client = Client(sys.argv[1])  # has not connected
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        with client.acquire("demo") as lease:
            assert lease.alive and lease["a"].sum() == 15
        assert client.status().models == 1
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
assert client.status().leases == 0
"""


def test_a_client_that_has_not_connected_works_in_a_child(process: DaemonProcess) -> None:
    run_script(FORK_FIRST, process.socket)


SPAWN = """
import multiprocessing, sys
from weightd import Client

def work(socket):
    with Client(socket).acquire("demo") as lease:
        return float(lease["a"].sum())

if __name__ == "__main__":
    with Client(sys.argv[1]) as client, client.acquire("demo"):
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            print(pool.map(work, [sys.argv[1]] * 4))
"""


def test_spawned_workers_call(process: DaemonProcess, tmp_path: Path) -> None:
    script = tmp_path / "spawn.py"
    script.write_text(SPAWN)
    done = subprocess.run(
        [sys.executable, script, process.socket], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[15.0, 15.0, 15.0, 15.0]\n"


HOLD_AND_FORK = """
import os, sys
from weightd import Client
lease = Client(sys.argv[1]).acquire("demo")
view = lease["a"]
child = os.fork()
if child:
    print("held", child, flush=True)
sys.stdin.read()
print(os.getpid(), view.sum(), flush=True)
os._exit(0)
"""


def test_a_lease_ends_with_the_process_that_took_it_though_its_children_live(process: DaemonProcess) -> None:
    """They have its descriptors, and would keep the connection open."""
    command = [sys.executable, "-c", HOLD_AND_FORK, str(process.socket)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        child = parent.stdout.readline().split()[1]
        assert process.line() == "demo 1"
        parent.kill()
        parent.wait()
        assert process.line() == "demo 0"
        parent.stdin.close()
        assert parent.stdout.readline().split() == [child, "15.0"]  # It reads on.
