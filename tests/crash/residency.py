"""What is done to an engine that dies on the way, and what its next lives find. Run in children of a nursery.

Two models share a blob. The second is leased or pinned where that is promised to outlive everything; what is done is
done to the first.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import stat
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.crash.points import arm, count
from tests.engine.rig import PART, REF, Origin, Rig, Served, moving_threads, pattern, running
from weightd.core.lifecycle import Residency
from weightd.core.policy import Rules
from weightd.engine.adopt import Adoption
from weightd.engine.api import ModelState, Tier
from weightd.engine.leases import ModelLease
from weightd.storage.pages import footprint
from weightd.storage.segments import ROOT

FIRST, SECOND = REF, "http://origin/second/"
BASE = pattern(PART // 2, "base")
FILES: dict[str, dict[str, bytes]] = {
    FIRST: {"a/a.bin": pattern(2 * PART + 100, FIRST), "base.bin": BASE},
    SECOND: {"b.bin": pattern(PART, SECOND), "base.bin": BASE, "empty": b""},
}
NEW = FILES[FIRST] | {"a/a.bin": pattern(PART + 1, "new")}
KNOWN = {hashlib.sha256(data).hexdigest(): data for files in (*FILES.values(), NEW) for data in files.values()}


def origin() -> Origin:
    return Origin({ref: {path: Served(data) for path, data in files.items()} for ref, files in FILES.items()})


def room(*models: dict[str, bytes]) -> int:
    """Bytes that these take together."""
    return sum(footprint(len(data)) for data in {d for files in models for d in files.values()})


@dataclass
class Scene:
    """An engine, and those that follow it on the same state."""

    root: Path
    owner: str
    options: dict[str, Any]
    origin: Origin = field(default_factory=origin)
    lease: ModelLease | None = None
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    rig: Rig = field(init=False)

    async def start(self, adoption: Adoption = Adoption.LAZY, **options: Any) -> None:
        residency = {"keep_segments": True, "grace": 0.0, "adoption": adoption, "rules": Rules()}
        threads = {"receivers": 2, "hashers": 1, "writers": 1, "attempts": 1}
        self.rig = await self.stack.enter_async_context(
            running(self.root, self.origin, owner=self.owner, residency=residency, **threads, **self.options, **options)
        )

    async def stop(self, *, keep: bool = True) -> None:
        await self.rig.engine.stop(keep=keep)
        await self.stack.aclose()

    async def resident(self, *refs: str) -> None:
        for ref in refs:
            (await self.rig.acquire(ref)).release()

    async def claim(self) -> None:
        """The second, as nothing may take it."""
        self.lease = await self.rig.acquire(SECOND)
        await self.rig.engine.pin(SECOND)


Act = Callable[[Scene], Awaitable[Any]]


async def _nothing(scene: Scene) -> None:
    pass


@dataclass(frozen=True)
class Operation:
    """`before` in peace, then `act`. The first model `may_go` from shared memory, or `may_end` altogether; `keeps`:
    what was leased stays there. `claimed`: the second is leased and pinned. `hurt`: something was damaged before, which
    the next life finds, if this one has not."""

    act: Act
    before: Act = _nothing
    options: dict[str, Any] = field(default_factory=dict)
    may_go: bool = True
    may_end: bool = False
    keeps: bool = True
    claimed: bool = True
    hurt: bool = False


async def _both(scene: Scene) -> None:
    await scene.resident(FIRST, SECOND)


async def _stopped(scene: Scene) -> None:
    await _both(scene)
    await scene.stop()


async def _old(scene: Scene) -> None:
    await _both(scene)
    scene.origin.models[FIRST] = {path: Served(data) for path, data in NEW.items()}


async def _damaged(scene: Scene) -> None:
    await scene.rig.engine.evict(FIRST)
    damage(scene.root, FILES[FIRST]["a/a.bin"])


async def _verify(scene: Scene) -> None:
    async for _ in scene.rig.engine.verify(FIRST):
        pass


async def _altered(scene: Scene) -> None:
    """As only the daemon's own user could."""
    await _both(scene)
    (file,) = [f for f in scene.rig.engine.model(FIRST).files if f.path == "a/a.bin"]
    path = ROOT / file.segment.removeprefix("/")
    path.chmod(0o640)
    with path.open("r+b") as segment:
        segment.write(b"x")
    path.chmod(0o440)


def damage(root: Path, data: bytes) -> None:
    """One byte of it on NVMe."""
    name = hashlib.sha256(data).hexdigest()
    path = root / "blobs/sha256" / name[:2] / name
    path.chmod(0o640)
    with path.open("r+b") as file:
        file.write(bytes([data[0] ^ 1]))
    path.chmod(0o440)


BOTH = room(*FILES.values())
OPERATIONS: dict[str, Operation] = {
    "load": Operation(lambda s: s.rig.acquire(FIRST)),
    "load what shares": Operation(lambda s: s.rig.acquire(FIRST), lambda s: s.resident(SECOND), claimed=False),
    "fetch into shm": Operation(lambda s: s.rig.fetch(FIRST, tier=Tier.SHM), _old, {"keep": 1}),
    "evict": Operation(lambda s: s.rig.engine.evict(FIRST), _both),
    "make room in shm": Operation(
        lambda s: s.rig.acquire(SECOND), lambda s: s.resident(FIRST), {"shm": BOTH - PART}, claimed=False
    ),
    "remove": Operation(lambda s: s.rig.engine.remove(FIRST), _both, may_end=True),
    "make room on nvme": Operation(
        lambda s: s.rig.fetch("http://origin/third/"), _both, {"nvme": BOTH + 4096}, may_end=True
    ),
    "retire": Operation(lambda s: _replaced(s), _old, {"keep": 0}),
    "pin": Operation(lambda s: s.rig.engine.pin(FIRST), _both),
    "unpin": Operation(lambda s: s.rig.engine.unpin(FIRST), lambda s: s.rig.engine.pin(FIRST)),
    "verify": Operation(_verify, _damaged, hurt=True),
    "verify a segment": Operation(_verify, _altered, hurt=True),
    "stop": Operation(lambda s: s.stop(), _both, may_go=False),
    "stop and drop": Operation(lambda s: s.stop(keep=False), _both, keeps=False),
    "adopt": Operation(lambda s: s.start(), _stopped, may_go=False),
    "adopt in full": Operation(lambda s: s.start(Adoption.FULL), _stopped, may_go=False),
    "adopt nothing": Operation(lambda s: s.start(Adoption.OFF), _stopped, keeps=False),
    "adopt what was altered": Operation(
        lambda s: s.start(Adoption.FULL), lambda s: _then_stopped(s, _altered), hurt=True
    ),
}


async def _replaced(scene: Scene) -> None:
    await scene.rig.fetch(FIRST, tier=Tier.SHM)
    await scene.rig.engine._retirer.idle()


async def _then_stopped(scene: Scene, act: Act) -> None:
    await act(scene)
    await scene.stop()


async def template(connection: Connection, root: Path) -> None:
    """Both models on NVMe."""
    scene = Scene(root, "template", {})
    await scene.start()
    for ref in FILES:
        await scene.rig.fetch(ref, tier=Tier.NVME)
    await scene.stop()
    connection.send(None)


async def victim(connection: Connection, root: Path, owner: str, name: str, point: str, number: int, when: str) -> None:
    """Sends where the second's segments are by their digests once all is prepared, and waits for a word. Then dies; or
    counts the points that it passes, where `point` is "", and sends that."""
    operation = OPERATIONS[name]
    scene = Scene(root, owner, operation.options)
    scene.origin.models["http://origin/third/"] = {"c.bin": Served(pattern(2 * PART, "third"))}
    await scene.start()
    if operation.claimed:
        await scene.claim()
    await operation.before(scene)
    await scene.rig.engine._catalog.resident.settle()
    connection.send([f.segment for f in scene.lease.model.files if f.size] if scene.lease else [])
    connection.recv()
    counted = count() if not point else arm(point, number, when)
    await operation.act(scene)
    await scene.rig.engine._catalog.resident.settle()
    connection.send(counted)
    connection.recv()


async def survivor(connection: Connection, root: Path, owner: str, name: str, leased: list[str]) -> None:
    """The next life, whose origin is down, and the one after that. Raises AssertionError; sends None."""
    operation = OPERATIONS[name]
    scene = Scene(root, owner, operation.options, origin=origin() if operation.hurt else Origin())
    await scene.start(Adoption.FULL if operation.hurt else Adoption.LAZY)
    if operation.hurt:
        await scene.rig.fetch(FIRST)
        await _verify(scene)
    found = await sound(scene.rig, operation)
    _promised(scene.rig, operation, leased)
    await serves(scene.rig)
    assert operation.hurt or not (scene.origin.resolved or scene.origin.starts), "the origin was asked"
    await scene.stop()
    await _again(root, owner, operation, found)
    connection.send(None)


def _promised(rig: Rig, operation: Operation, leased: list[str]) -> None:
    second = rig.engine.model(SECOND)
    if operation.keeps and operation.claimed:
        assert sorted(f.segment for f in second.files if f.size) == sorted(leased), "what was leased is not adopted"
    assert second.pinned is operation.claimed
    if not operation.may_go:
        assert rig.engine.model(FIRST).residency(Tier.SHM) is Residency.RESIDENT, "the first is not adopted"


async def _again(root: Path, owner: str, operation: Operation, found: list[ModelState]) -> None:
    """It finds the same; and with the origin up all can be had."""
    scene = Scene(root, owner, {})
    await scene.start()
    assert held(await sound(scene.rig, operation)) == held(found), "the second start finds something else"
    assert scene.origin.resolved == 0
    for ref, files in FILES.items():
        assert scene.rig.content(await scene.rig.fetch(ref, tier=Tier.SHM)) == files
    await sound(scene.rig, operation)
    await scene.stop(keep=False)
    assert scene.rig.segments() == [], "segments stay"


def held(models: list[ModelState]) -> set[tuple[str, str, bool, bool]]:
    return {(m.ref, m.revision, m.current, m.pinned) for m in models}


async def sound(rig: Rig, operation: Operation) -> list[ModelState]:
    """What is promised is there, nothing else is, and what is said of it is so."""
    await rig.engine._retirer.idle()
    await rig.engine._catalog.resident.settle()
    models = rig.engine.models()
    by_ref = {m.ref: m for m in models if m.current}
    assert SECOND in by_ref, "the second is gone"
    assert FIRST in by_ref or operation.may_end, "the first is gone"
    for model in models:
        content = rig.content(model)
        assert content in (*FILES.values(), NEW) or model.ref.endswith("third/"), f"{model.ref} is not whole"
    await _accounts(rig)
    _blobs(rig)
    _segments(rig)
    _directories(rig, models)
    return models


async def _accounts(rig: Rig) -> None:
    status = await rig.engine.status()
    blobs, files = rig.blobs.digests(), rig.segments()
    assert (status.transfers, status.shm.reserved, status.nvme.reserved) == (0, 0, 0)
    assert status.nvme.resident == sum(footprint(rig.blobs.path(d).stat().st_size) for d in blobs)
    assert status.shm.resident == sum(footprint(p.stat().st_size) for p in files)
    kept = rig.blobs.kept()
    assert status.nvme.kept == sum(k.size for k in kept)
    assert len(list(rig.blobs.ingests.iterdir())) == len(kept), "an ingest that nobody can resume"
    async with asyncio.timeout(10):
        while moving_threads():  # noqa: ASYNC110 - nobody is told when a thread has ended
            await asyncio.sleep(0.01)


def _blobs(rig: Rig) -> None:
    """Each is what it is called, and recorded; nothing else is."""
    found = set(rig.blobs.digests())
    assert found == set(rig.engine._catalog.blobs)
    with sqlite3.connect(f"file:{rig.root / 'state.db'}?mode=ro", uri=True) as db:
        assert found == {row[0] for row in db.execute("SELECT digest FROM blobs")}, "records and blobs differ"
        names = {row[0] for row in db.execute("SELECT name FROM segments")}
    db.close()
    assert names == {f"/{p.name}" for p in rig.segments()}, "records and segments differ"


def _segments(rig: Rig) -> None:
    """Each is sealed, and some blob's; each blob has one at most."""
    seen = set[str]()
    for path in rig.segments():
        assert stat.S_IMODE(path.stat().st_mode) == 0o440, f"{path} is not sealed"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert digest not in seen, "a blob has two segments"
        seen.add(digest)
    there = {d.removeprefix("sha256:") for d, b in rig.engine._catalog.blobs.items() if b.in_shm and b.record.size}
    assert seen == there, "a segment is nobody's, or not what it should be"


def _directories(rig: Rig, models: list[ModelState]) -> None:
    root = rig.root / "models"
    directories = {p for p in root.glob("*/*") if not p.is_symlink()}
    assert directories == {Path(m.directory) for m in models}, "a directory is no model's"
    for model in models:
        current = Path(model.directory).with_name("current")
        assert not model.current or os.readlink(current) == model.revision, "current leads elsewhere"
    for model in models:
        for file in model.files:
            assert file.nvme is Residency.RESIDENT


async def serves(rig: Rig) -> None:
    """Everything that is held, one after the other."""
    for model in rig.engine.models():
        if model.current:
            lease = await rig.acquire(model.ref)
            assert rig.content(lease.model) == rig.content(model)
            for file in lease.model.files:
                if file.size:
                    data = (ROOT / file.segment.removeprefix("/")).read_bytes()
                    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == file.digest
            lease.release()
