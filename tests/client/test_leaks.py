"""Many leases, one after the other and at once: nothing is left, in the worker and in the daemon."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.client.leaks import Use, assert_no_more, use
from tests.client.twins import NAMES, TWINS
from tests.support.fake_engine import REF
from tests.support.serving import DaemonProcess, until
from weightd import Client, Lease

pytestmark = pytest.mark.alone


@pytest.fixture
def quiet(short: Path) -> Iterator[DaemonProcess]:
    it = DaemonProcess(short, "--quiet")
    yield it
    it.close()


@pytest.mark.long
@pytest.mark.parametrize("kind", NAMES)
def test_thousands_of_leases_one_after_the_other(quiet: DaemonProcess, kind: str) -> None:
    command = [sys.executable, "-m", "tests.client.leaks", kind, str(quiet.socket), str(quiet.process.pid)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    worker, daemon, worker_after, daemon_after = (Use(*found) for found in json.loads(done.stdout))
    assert_no_more(worker_after, worker)
    assert_no_more(daemon_after, daemon)


async def test_a_thousand_at_once_from_four_threads(quiet: DaemonProcess) -> None:
    with Client(quiet.socket) as client, ThreadPoolExecutor(4) as pool:
        assert client.status().leases == 0
        leases: list[Lease] = list(pool.map(lambda _: client.acquire(REF), range(1000)))
        assert all(lease.alive for lease in leases)
        assert client.status().leases == 1000
        assert sum(float(lease["a"].sum()) for lease in leases) == 15_000
        assert [t.name for t in threading.enumerate() if "weightd" in t.name] == []
        list(pool.map(lambda lease: lease.release(), leases))
        await until(lambda: client.status().leases == 0)


async def restarted(daemon: DaemonProcess, leases: list[Lease]) -> None:
    """And every lease has heard of it, and is alive again."""
    await asyncio.to_thread(daemon.kill)
    await until(lambda: not any(lease.alive for lease in leases))
    await asyncio.to_thread(daemon.start, "--quiet", "--adopt")
    await until(lambda: all(lease.alive for lease in leases))


@pytest.mark.parametrize("twin", TWINS, ids=NAMES)
async def test_a_thousand_at_once_are_regained(quiet: DaemonProcess, twin: Any) -> None:
    client = twin(quiet.socket)
    leases: list[Lease] = [await client.acquire(REF) for _ in range(1000)]
    view = leases[0]["a"]
    await restarted(quiet, leases)
    assert (await client.status()).leases == 1000
    assert view.sum() == 15
    await client.close()


@pytest.mark.parametrize("twin", TWINS, ids=NAMES)
async def test_restarts_leave_nothing_in_the_worker(quiet: DaemonProcess, twin: Any) -> None:
    client = twin(quiet.socket)
    leases: list[Lease] = [await client.acquire(REF) for _ in range(20)]
    assert all(lease["a"].sum() == 15 for lease in leases)
    seen: list[Use] = []
    for _ in range(6):
        await restarted(quiet, leases)
        await until(lambda: not [t for t in threading.enumerate() if t.name == "weightd-regain"])
        seen.append(use())
    # The channels of former connections, and gRPC's own threads, go when it comes to it.
    await until(lambda: use().descriptors <= seen[1].descriptors, f"{seen}")
    assert use().maps == seen[1].maps
    assert use().threads <= seen[1].threads + 2
    for lease in leases:
        lease.release()
    await client.close()
