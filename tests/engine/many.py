"""Fetch a model of many files, and say how much was in use at a time.

`python -m tests.engine.many HOW DIRECTORY COUNT`

HOW is "shm", "nvme" or "export". DIRECTORY holds models.json, with the models "warm" and "many". Run by test_bounds.py
in a process of its own, whose descriptors, maps and threads are nobody else's. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from tests.engine.rig import MIB
from weightd import Client
from weightd.core.models import parse_models
from weightd.engine.api import ModelState, Tier
from weightd.engine.engine import Engine
from weightd.engine.export import fetch_to
from weightd.engine.options import EngineOptions
from weightd.engine.transfer import TransferOptions
from weightd.rpc.server import make_server
from weightd.sources.registry import SourceOptions, Sources
from weightd.storage.blobs import DirectoryBlobStore
from weightd.storage.segments import PosixSegmentStore
from weightd.storage.state import State

PART = MIB
OPTIONS = TransferOptions(part_size=PART, receivers=3, hashers=2, writers=2)
LOOK_S = 0.01
Bring = Callable[[str], Awaitable[None]]

_loop_thread = 0
_blocking: set[str] = set()


def watch_the_loop() -> None:
    """From now on, note every operation on files of this thread (PEP 578): the loop may not wait for disks."""
    global _loop_thread
    _loop_thread = threading.get_ident()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not _loop_thread or threading.get_ident() != _loop_thread:
            return
        if event.startswith(("open", "os.", "shutil.", "sqlite3.", "fcntl.", "glob.")):
            _blocking.add(f"{event} {args[:1]}")

    sys.addaudithook(hook)


def leave_the_loop_alone() -> None:
    global _loop_thread
    _loop_thread = 0


class Watch(threading.Thread):
    """Notes the most of everything until it is told to stop; `before` is what there was when it was made."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="watch")
        self._loop = loop
        self._over = threading.Event()
        self.before = self._look()
        self.most = dict(self.before)

    def _look(self) -> dict[str, int]:
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "maps": Path("/proc/self/maps").read_bytes().count(b"\n"),
            "threads": len(os.listdir("/proc/self/task")),
            "tasks": len(asyncio.all_tasks(self._loop)),
        }

    def run(self) -> None:
        while not self._over.wait(LOOK_S):
            with contextlib.suppress(RuntimeError):  # the set of tasks changed under the look
                for name, count in self._look().items():
                    self.most[name] = max(self.most[name], count)

    def stop(self) -> None:
        self._over.set()
        self.join()


def sources(directory: Path) -> Sources:
    return Sources(SourceOptions(models=parse_models((directory / "models.json").read_bytes(), "models.json")))


@asynccontextmanager
async def exporting(directory: Path) -> AsyncIterator[Bring]:
    source = sources(directory)

    async def bring(name: str) -> None:
        await fetch_to(name, directory / "out", sources=source, options=OPTIONS)

    yield bring
    await source.close()


@asynccontextmanager
async def fetching(directory: Path, tier: Tier, after: Callable[[Engine], Awaitable[None]]) -> AsyncIterator[Bring]:
    engine = Engine(
        EngineOptions(directory / "state", 4096 * MIB, 4096 * MIB, OPTIONS),
        segments=PosixSegmentStore("m" + secrets.token_hex(6)),
        blobs=DirectoryBlobStore(directory / "state"),
        sources=sources(directory),
        state=State(directory / "state" / "state.db"),
    )
    await engine.start()

    async def bring(name: str) -> None:
        async with aclosing(engine.fetch(name, tier=tier)) as events:
            async for event in events:
                if isinstance(event, ModelState):
                    assert event.residency(tier).name == "RESIDENT"

    try:
        yield bring
        await after(engine)
    finally:
        await engine.stop()


async def lease(engine: Engine, directory: Path, count: int) -> None:
    """All of it through the wire, at the limits that both peers set."""

    def call() -> None:
        with Client(directory / "s") as client:
            with client.acquire("many") as held:
                assert len(held.files) == count
                assert held.alive
                path, file = next(iter(held.files.items()))
                assert len((held.path / path).read_bytes()) == file.length
            assert len(client.model("many").files) == count
            assert {len(m.files) for m in client.models()} == {1, count}
            assert len(client.resolve("many").files) == count

    server = await make_server(engine, directory / "s")
    try:
        await asyncio.to_thread(call)
    finally:
        await server.stop()


async def main(how: str, directory: Path, count: int) -> dict[str, Any]:
    async def nothing(engine: Engine) -> None:
        pass

    after = (lambda engine: lease(engine, directory, count)) if how == "shm" else nothing
    bringing = exporting(directory) if how == "export" else fetching(directory, Tier[how.upper()], after)
    async with bringing as bring:
        await bring("warm")  # modules are loaded, connections and pools made
        watch = Watch(asyncio.get_running_loop())
        watch_the_loop()
        watch.start()
        try:
            await bring("many")
        finally:
            leave_the_loop_alone()
            await asyncio.to_thread(watch.stop)
    return {"before": watch.before, "most": watch.most, "on_the_loop": sorted(_blocking)}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))))
