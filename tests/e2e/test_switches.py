"""Programs that know nothing of weightd read a model's directory, while the model goes into shared memory and out of it
again and again."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.rig import REF, Origin, Rig, Served, pattern, running
from tests.support.extent import LONG
from weightd.engine.api import Tier

SWITCHES = 1000 if LONG else 200
FILES = {"config.json": pattern(700, "config"), "deep/model.bin": pattern(50_000, "model"), "empty": b""}
WANTED = {path: hashlib.sha256(data).hexdigest() for path, data in FILES.items()}

READER = """
import hashlib, json, mmap, os, select, sys

# After the engine, whose threads that move bytes step back as well.
os.nice(10)
directory, wanted = sys.argv[2], json.loads(sys.argv[3])

def told():
    return select.select([0], [], [], 0)[0]

def whole(fd):
    # Piece by piece, so that a switch comes in between.
    sha, at = hashlib.sha256(), 0
    while piece := os.pread(fd, 4096, at):
        sha.update(piece)
        at += len(piece)
    return sha.hexdigest()

def opened(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return whole(fd)
    finally:
        os.close(fd)

def listed():
    return sorted(
        os.path.relpath(os.path.join(where, name), directory)
        for where, _, names in os.walk(directory) for name in names
    )

def lists():
    assert listed() == sorted(wanted), listed()
    for path in wanted:
        assert opened(os.path.join(directory, path)) == wanted[path], path + " is not whole"

def holds(held={}):
    for path in wanted:
        if path not in held:
            held[path] = os.open(os.path.join(directory, path), os.O_RDONLY)
        assert whole(held[path]) == wanted[path], path + " changed"

def maps(held={}):
    for path in wanted:
        full = os.path.join(directory, path)
        if path not in held and os.path.getsize(full):
            with open(full, "rb") as file:
                held[path] = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        if path in held:
            assert hashlib.sha256(held[path]).hexdigest() == wanted[path], path + " changed"

read, passes = {"lists": lists, "holds": holds, "maps": maps}[sys.argv[1]], 0
while not told():
    read()
    passes += 1
    if passes == 1:
        print("read", flush=True)
"""


class Reader:
    """One that `lists` and opens everything again and again, `holds` open what it opened first, or `maps` that."""

    def __init__(self, how: str, directory: Path) -> None:
        arguments = [how, str(directory), json.dumps(WANTED)]
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", READER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def began(self) -> None:
        """Wait until it has read everything once."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "read\n", self.end()

    def end(self) -> str:
        """What it complains of."""
        _, errors = self.process.communicate("\n", timeout=60)
        return errors


@contextlib.contextmanager
def readers(*of: tuple[str, Path]) -> Iterator[list[Reader]]:
    with contextlib.ExitStack() as stack:
        found = [Reader(how, directory) for how, directory in of]
        for reader in found:
            stack.enter_context(reader.process)
            stack.callback(reader.process.kill)
        yield found


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_readers_during_many_switches(tmp_path: Path) -> None:
    served = {path: Served(data) for path, data in FILES.items()}
    async with running(tmp_path, Origin({REF: served}), receivers=1, hashers=1, writers=1) as rig:
        revision = Path((await rig.fetch(tier=Tier.SHM)).directory)
        current = revision.with_name("current")
        with readers(("lists", current), ("lists", revision), ("holds", current), ("maps", revision)) as found:
            await begun(found)
            for _ in range(SWITCHES // 2):
                await switch_twice(rig)
            for reader in found:
                assert await asyncio.to_thread(reader.end) == ""
        async with asyncio.timeout(10):
            while await rig.engine._catalog.drains.change(1):
                pass
        await rig.check_idle(blobs=len(FILES), segments=0)


async def begun(readers: list[Reader]) -> None:
    for reader in readers:
        await asyncio.to_thread(reader.began)


async def switch_twice(rig: Rig) -> None:
    """From one tier to the other; it is on NVMe alone in the end."""
    lease = await rig.acquire(REF)
    assert os.path.realpath(f"{lease.model.directory}/config.json").startswith("/dev/shm/")  # noqa: ASYNC240
    lease.release()
    assert (await rig.engine.evict(REF)).shm
