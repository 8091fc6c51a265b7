"""Forks and exits of workers whose daemon is gone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.serving import DaemonProcess

BEGIN = """
import asyncio, os, signal, sys, threading, time
from weightd import AsyncClient, Client

def until(happened):
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end, happened
        time.sleep(0.002)

def say(word):
    print(word, flush=True)

def hear():
    sys.stdin.readline()
"""


@contextmanager
def worker(process: DaemonProcess, script: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", BEGIN + script, str(process.socket)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as it:
        yield it
        if it.poll() is None:
            it.kill()


def heard(it: subprocess.Popen[str], word: str) -> None:
    assert it.stdout is not None
    assert it.stdout.readline() == f"{word}\n", it.stderr and it.stderr.read()


def tell(it: subprocess.Popen[str]) -> None:
    assert it.stdin is not None
    it.stdin.write("go on\n")
    it.stdin.flush()


def ends_quietly(it: subprocess.Popen[str]) -> None:
    out, err = it.communicate(timeout=20)
    assert (it.returncode, out, err) == (0, "", "")


EXITS = {
    "sync": """
client = Client(sys.argv[1])
leases = [client.acquire("demo") for _ in range(3)]
view = leases[0]["a"]
say("held")
hear()
until(lambda: leases[0].state == "regaining")
""",
    "sync, as it dies": """
leases = [Client(sys.argv[1]).acquire("demo") for _ in range(30)]
say("held")
hear()
""",
    "sync, with a file that is waited for": """
lease = Client(sys.argv[1]).acquire("demo")
say("held")
hear()
until(lambda: lease.state == "regaining")
os.unlink("/dev/shm" + lease.file("config.json").segment)
waiting = threading.Thread(target=lambda: lease.file("config.json").buffer, daemon=True)
waiting.start()
waiting.join(0.05)
assert waiting.is_alive()
""",
    "async": """
async def main():
    lease = await AsyncClient(sys.argv[1]).acquire("demo")
    say("held")
    await asyncio.to_thread(hear)
    while lease.state != "regaining":
        await asyncio.sleep(0.002)
    return lease
lease = asyncio.run(main())
assert lease.state == "lost" and "loop" in str(lease.error), lease
assert lease["a"].sum() == 15
""",
    "async, closed": """
async def main():
    async with AsyncClient(sys.argv[1]) as client:
        lease = await client.acquire("demo")
        say("held")
        await asyncio.to_thread(hear)
        while lease.state != "regaining":
            await asyncio.sleep(0.002)
    return lease
lease = asyncio.run(main())
assert lease.state == "released"
""",
    "async, after its loop": """
async def main():
    return await AsyncClient(sys.argv[1]).acquire("demo")
lease = asyncio.run(main())
say("held")
hear()
""",
}


@pytest.mark.parametrize("script", EXITS.values(), ids=EXITS.keys())
def test_every_exit_is_quiet_while_the_daemon_is_gone(process: DaemonProcess, script: str) -> None:
    for _ in range(3):
        with worker(process, script) as it:
            heard(it, "held")
            process.kill()
            tell(it)
            ends_quietly(it)
        process.start("--quiet")


FORK = """
client = Client(sys.argv[1])
leases = [client.acquire("demo") for _ in range(3)]
view = leases[0]["a"]

def child(way):
    signal.alarm(20)
    for lease in leases:
        assert lease.state == "inherited" and not lease.alive and lease.error is None, lease
        assert lease["a"].sum() == view.sum() == 15
    assert [t for t in threading.enumerate() if t is not threading.main_thread()] == []
    if way % 2:
        leases[0].release()
        assert leases[0].state == "released"
        client.close()

def fork(way):
    pid = os.fork()
    if pid == 0:
        child(way)
        os._exit(0) if way % 3 else sys.exit(0)
    return pid

before = [fork(n) for n in range(6)]
say("held")
hear()
until(lambda: all(lease.state == "regaining" for lease in leases))
during = [fork(n) for n in range(12)]
say("forked")
hear()
until(lambda: all(lease.alive for lease in leases))
after = [fork(n) for n in range(6)]
for pid in before + during + after:
    assert os.waitpid(pid, 0)[1] == 0
assert len(client.leases()) == 3
say("done")
"""


def test_forked_children_regain_nothing_and_hold_up_nobody(process: DaemonProcess) -> None:
    with worker(process, FORK) as it:
        heard(it, "held")
        process.kill()
        tell(it)
        heard(it, "forked")
        process.start("--quiet", "--adopt")
        tell(it)
        heard(it, "done")
        ends_quietly(it)


SURVIVOR = """
client = Client(sys.argv[1])
lease = client.acquire("demo")
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    say("held")
    hear()
    assert lease["a"].sum() == 15 and lease.state == "inherited"
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
until(lambda: lease.alive)
assert len(client.leases()) == 1
say("done")
"""


def test_a_child_that_outlives_the_daemon_reads_on(process: DaemonProcess) -> None:
    with worker(process, SURVIVOR) as it:
        heard(it, "held")
        process.restart("--quiet", "--adopt")
        tell(it)
        heard(it, "done")
        ends_quietly(it)


TWO_LOOPS = """
async def acquire():
    return await client.acquire("demo")

async def until_state(lease, state):
    while lease.state != state:
        await asyncio.sleep(0.002)

client = AsyncClient(sys.argv[1])
first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
stale = first.run_until_complete(acquire())
say("held")
hear()
first.run_until_complete(until_state(stale, "regaining"))
say("left")
hear()
lease = second.run_until_complete(acquire())
say("held")
hear()
second.run_until_complete(until_state(lease, "regaining"))
say("lost")
hear()
second.run_until_complete(until_state(lease, "alive"))
assert lease["a"].sum() == stale["a"].sum() == 15
say("done")
second.run_until_complete(client.close())
os._exit(0)
"""


def test_a_loop_that_is_left_undone_holds_up_no_other(process: DaemonProcess) -> None:
    with worker(process, TWO_LOOPS) as it:
        heard(it, "held")
        process.kill()
        tell(it)
        heard(it, "left")
        process.start("--quiet", "--adopt")
        tell(it)
        heard(it, "held")
        process.kill()
        tell(it)
        heard(it, "lost")
        process.start("--quiet", "--adopt")
        tell(it)
        heard(it, "done")
        assert it.wait(20) == 0
