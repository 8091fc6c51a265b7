"""An engine in a process of its own that can be killed, and does what the state machine says.

Each order is `(method, arguments)`; the answer is what it returned, a WeightdError, or a `Bug`.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.crash.points import arm
from tests.engine.machine_world import CONTENT, MODELS, RULES, File, Versions
from tests.engine.rig import PART, Origin, Rig, Served, _Reader, moving_threads, running, sha256
from weightd.core.digest import Digest
from weightd.core.errors import SourceChanged, SourceUnavailable, WeightdError
from weightd.core.manifest import FileSpec, Manifest
from weightd.core.refs import Ref
from weightd.engine.adopt import Adoption
from weightd.engine.api import EngineStatus, FileCheck, LeaseState, ModelState, Tier
from weightd.engine.leases import ModelLease
from weightd.storage.protocols import SegmentStore
from weightd.storage.segment_files import DirectorySegmentStore
from weightd.storage.segments import ROOT, PosixSegmentStore

HELD_S = 0.1
"""After which an order that waits for an origin which is held, or for another that does, is left to wait."""

FOR_ORIGIN = {"acquire", "fetch", "load", "verify"}
"""Orders that may wait for an origin. All others end, whatever waits."""


@dataclass(frozen=True)
class Setup:
    """One life of the engine. `shm` and `nvme` are budgets in bytes, `mount` the tmpfs, "" for /dev/shm."""

    root: Path
    mount: str
    owner: str
    shm: int
    nvme: int
    keep: int
    adoption: Adoption
    grace: float
    versions: Versions
    down: bool


@dataclass(frozen=True)
class Bug:
    """An error without a type of ours."""

    text: str


class Left(WeightdError):
    """The caller vanished."""


@dataclass(frozen=True)
class HeldBlob:
    """As the catalog has it: `segment` is "" where none is in shared memory."""

    in_shm: bool
    segment: str


@dataclass(frozen=True)
class Seen:
    """All that there is to see. `asked`: how often the origin was asked for anything; `kept` bytes of ingests that
    wait; `complaints` of the loop; `moving` threads and `readers` of transfers."""

    models: list[ModelState]
    status: EngineStatus
    leases: list[LeaseState]
    blobs: dict[Digest, HeldBlob]
    asked: int
    kept: int
    complaints: list[str]
    moving: list[str]
    readers: int
    waiting: list[int]


class ChangingOrigin(Origin):
    """Of `MODELS`, in `versions`, or `down`. What is asked for of another version is refused, as by If-Match."""

    def __init__(self, versions: Versions, *, down: bool) -> None:
        super().__init__()
        self.down = down
        self.put(versions)

    def put(self, versions: Versions) -> None:
        self.models = {
            ref: {path: served(file, versions.get((ref, path), 0)) for path, file in files.items()}
            for ref, files in MODELS.items()
        }

    def reach(self) -> None:
        if self.down:
            raise SourceUnavailable("nobody answers", remedy="Try again later.")

    async def resolve(self, ref: Ref) -> Manifest:
        self.reach()
        return await super().resolve(ref)

    def reader(self, file: FileSpec, memory: object = None) -> _Reader:
        return _ChangedReader(self, file)


def served(file: File, version: int) -> Served:
    data = CONTENT[file.content, version]
    return Served(data, sha256(data) if file.named else None)


class _ChangedReader(_Reader):
    def __init__(self, origin: ChangingOrigin, file: FileSpec) -> None:
        super().__init__(origin, file)
        self._changing = origin

    def start(self, offset: int, length: int) -> None:
        self._changing.reach()
        if sha256(self._changing.served(self._file.url).data) != self._file.validator.etag:
            raise SourceChanged("it has another ETag now", file=self._file.path)
        super().start(offset, length)


@dataclass
class Host:
    """Orders, by method. Those of `asking` may take long, and go on when they are left to wait under their number."""

    rig: Rig
    origin: ChangingOrigin
    leases: dict[int, ModelLease] = field(default_factory=dict)
    waiting: dict[int, asyncio.Task[Any]] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    held: bool = False
    stopping: bool | None = None

    async def begin(self, number: int, method: str, *arguments: Any) -> Any:
        """Its outcome; None where it waits."""
        self.origin.reached.clear()
        task = self.waiting[number] = asyncio.ensure_future(
            self._outcome(getattr(self, f"_{method}"), number, arguments)
        )
        deadline = time.monotonic() + HELD_S
        may_wait = self.held and method in FOR_ORIGIN
        while not task.done():
            await asyncio.wait([task], timeout=0.005 if may_wait else None)
            if may_wait and (self.origin.reached.is_set() or time.monotonic() > deadline):
                return None
        return self._ended(number)

    async def _outcome(self, call: Callable[..., Awaitable[Any]], number: int, arguments: tuple[Any, ...]) -> Any:
        try:
            return await call(number, *arguments)
        except WeightdError as e:
            return e
        except asyncio.CancelledError:
            return Left("the caller vanished")
        except BaseException:  # noqa: BLE001 - told
            return Bug(traceback.format_exc())

    def _ended(self, number: int) -> Any:
        return self.waiting.pop(number).result()

    async def poll(self) -> dict[int, Any]:
        """Of those that waited and do no longer."""
        return {n: self._ended(n) for n, task in list(self.waiting.items()) if task.done()}

    async def hold(self) -> None:
        self.held = True
        self.origin.hold()

    async def let_go(self) -> dict[int, Any]:
        """Every outcome of those that wait."""
        self.held = False
        self.origin.release()
        if self.waiting:
            await asyncio.wait(self.waiting.values())
        return await self.poll()

    async def vanish(self, number: int) -> Any:
        """The caller of one that waits."""
        self.waiting[number].cancel()
        await asyncio.wait([self.waiting[number]])
        return self._ended(number)

    async def _acquire(self, number: int, ref: str, revision: str = "") -> ModelState:
        async with aclosing(self.rig.engine.acquire(ref, revision=revision)) as steps:
            async for step in steps:
                if isinstance(step, ModelLease):
                    self.leases[number] = step
                    return step.model
        raise AssertionError("an acquire without an end")

    async def _fetch(self, number: int, ref: str, tier: Tier | None) -> ModelState:
        return await _last(self.rig.engine.fetch(ref, tier=tier))

    async def _load(self, number: int, ref: str) -> ModelState:
        return await _last(self.rig.engine.load(ref))

    async def _evict(self, number: int, ref: str) -> Any:
        return await self.rig.engine.evict(ref)

    async def _remove(self, number: int, ref: str) -> Any:
        return await self.rig.engine.remove(ref)

    async def _pin(self, number: int, ref: str) -> ModelState:
        return await self.rig.engine.pin(ref)

    async def _unpin(self, number: int, ref: str) -> ModelState:
        return await self.rig.engine.unpin(ref)

    async def _verify(self, number: int, ref: str, quick: bool) -> list[FileCheck]:
        async with aclosing(self.rig.engine.verify(ref, quick=quick)) as checks:
            return [check async for check in checks if isinstance(check, FileCheck)]

    async def release(self, number: int) -> None:
        self.leases.pop(number).release()

    async def sweep(self, later: float) -> None:
        """As if it was `later` seconds after now."""
        await self.rig.engine._evictor._drop_idle(time.time() + later)

    async def end_grace(self) -> None:
        for model in self.rig.engine._catalog.snapshots:
            model.awaited = False
        self.rig.engine._catalog.settled()

    async def compare(self) -> None:
        """What was adopted and is not compared yet."""
        await self.rig.engine._adopter.read_on()

    async def set_origin(self, versions: Versions, down: bool) -> None:
        self.origin.down = down
        self.origin.put(versions)

    async def arm(self, point: str, number: int, when: str) -> None:
        arm(point, number, when)

    async def stop(self, keep: bool) -> dict[int, Any]:
        """The last order. Outcomes of those that waited."""
        self.stopping = keep
        self.origin.release()
        await self.rig.engine.stop(keep=keep)
        if self.waiting:
            await asyncio.wait(self.waiting.values())
        return await self.poll()

    async def look(self) -> Seen:
        """After what goes on in the background has ended, but for what waits."""
        engine = self.rig.engine
        if not self.waiting:
            await self._settle()
        catalog = engine._catalog
        return Seen(
            models=engine.models(),
            status=await engine.status(),
            leases=engine.leases(),
            blobs={d: HeldBlob(b.in_shm, b.segment.name if b.segment else "") for d, b in catalog.blobs.items()},
            asked=self.origin.resolved + sum(self.origin.starts.values()),
            kept=sum(k.size for k in self.rig.blobs.kept()),
            complaints=self.complaints,
            moving=moving_threads(),
            readers=len(self.origin.readers),
            waiting=sorted(self.waiting),
        )

    async def _settle(self) -> None:
        engine = self.rig.engine
        while tasks := engine._fetcher._flights._tasks:
            await asyncio.wait(list(tasks))
        await engine._retirer.idle()
        await engine._catalog.resident.settle()
        while moving_threads():  # noqa: ASYNC110 - a thread ends after it has told its result, and nobody tells
            await asyncio.sleep(0.001)


async def _last(steps: Any) -> ModelState:
    async with aclosing(steps) as events:
        async for event in events:
            if isinstance(event, ModelState):
                return event
    raise AssertionError("a fetch without an end")


async def serve(connection: Connection, setup: Setup) -> None:
    """Until `stop`, or until nobody orders any more."""
    origin = ChangingOrigin(setup.versions, down=setup.down)
    store: SegmentStore = (
        DirectorySegmentStore(Path(setup.mount), setup.owner)
        if setup.mount != str(ROOT)
        else PosixSegmentStore(setup.owner)
    )
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(repr(context)))
    residency = {"rules": RULES, "keep_segments": True, "adoption": setup.adoption, "grace": setup.grace}
    try:
        async with running(
            setup.root, origin, owner=setup.owner, shm=setup.shm, nvme=setup.nvme, keep=setup.keep, segments=store,
            residency=residency, receivers=2, hashers=1, writers=1, attempts=2, pause=0, part_size=PART,
        ) as rig:  # fmt: skip
            await _obey(connection, Host(rig, origin, complaints=complaints))
    except WeightdError as e:
        connection.send(e)


async def _obey(connection: Connection, host: Host) -> None:
    connection.send(await host.look())
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection.fileno(), ready.set)
    while host.stopping is None:
        await ready.wait()
        while connection.poll():
            method, arguments = connection.recv()
            connection.send(await _answer(getattr(host, method), arguments))
        ready.clear()
    loop.remove_reader(connection.fileno())


async def _answer(call: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...]) -> Any:
    try:
        return await call(*arguments)
    except WeightdError as e:
        return e
    except Exception:  # noqa: BLE001 - told
        return Bug(traceback.format_exc())
