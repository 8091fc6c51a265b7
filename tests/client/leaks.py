"""What processes hold, by what the kernel says.

As a program, a worker that takes and releases thousands of leases, and tells what it and the daemon hold
before and after:
`python -m tests.client.leaks Client|AsyncClient SOCKET PID`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.support.extent import LONG
from tests.support.fake_engine import REF
from weightd import AsyncClient, Client

CYCLES = 10_000 if LONG else 2_000
WARM = 2_000 if LONG else 500
TOLERANCE = 4 << 20
"""Bytes that allocators may keep: of 10,000 leases, a leak of 420 for each is found."""


class Use(NamedTuple):
    """`maps` of segments, `memory` of its own in bytes."""

    descriptors: int
    maps: int
    threads: int
    memory: int


def use(pid: int | str = "self") -> Use:
    if pid == "self":
        gc.collect()
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    return Use(
        descriptors=len(os.listdir(proc / "fd")),
        maps=sum("weightd" in line for line in (proc / "maps").read_text().splitlines()),
        threads=int(status["Threads"]),
        memory=int(status["RssAnon"].split()[0]) * 1024,
    )


def assert_no_more(after: Use, before: Use) -> None:
    assert after.descriptors <= before.descriptors, (before, after)
    assert after.maps <= before.maps, (before, after)
    assert after.threads <= before.threads, (before, after)
    assert after.memory <= before.memory + TOLERANCE, (before, after)


def assert_settles(pid: int, once: Callable[[], None]) -> None:
    """`once`, done again and again, soon takes no more: what allocators keep of the first times is no leak."""
    seen = [use(pid)]
    for _ in range(4):
        once()
        seen.append(use(pid))
        with contextlib.suppress(AssertionError):
            return assert_no_more(*reversed(seen[-2:]))
    raise AssertionError(seen)


def cycles(client: Client, count: int) -> None:
    for _ in range(count):
        with client.acquire(REF) as lease:
            assert lease["a"][1, 2] == 5


async def async_cycles(client: AsyncClient, count: int) -> None:
    for _ in range(count):
        async with client.acquire(REF) as lease:
            assert lease["a"][1, 2] == 5


def work(socket: str, daemon: str) -> list[Use]:
    with Client(socket) as client:
        cycles(client, WARM)
        before = [use(), use(daemon)]
        cycles(client, CYCLES)
        return [*before, use(), use(daemon)]


async def async_work(socket: str, daemon: str) -> list[Use]:
    async with AsyncClient(socket) as client:
        await async_cycles(client, WARM)
        before = [use(), use(daemon)]
        await async_cycles(client, CYCLES)
        return [*before, use(), use(daemon)]


if __name__ == "__main__":
    kind, *where = sys.argv[1:]
    print(json.dumps(work(*where) if kind == "Client" else asyncio.run(async_work(*where))))
