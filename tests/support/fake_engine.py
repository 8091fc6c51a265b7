"""A small engine in memory, with real segments, for tests of the RPC service and the client.

As a program, it serves on the socket given: `python -m tests.support.fake_engine SOCKET DIRECTORY [OPTIONS]`. It prints
"ready", then one line for each lease taken or released, and drains on SIGTERM. With --gate, acquires and fetches give
progress and no answer, and the model is not in shared memory, until SIGUSR1.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import os
import signal
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import msgspec
import posix_ipc

from weightd.core.digest import Digest, digest_of
from weightd.core.errors import (
    AccessDenied,
    Draining,
    ModelLeased,
    ModelNotFound,
    ModelPinned,
    Precondition,
    WeightdError,
)
from weightd.core.lifecycle import DaemonState, Residency
from weightd.core.manifest import FileSpec, Manifest, make_manifest
from weightd.core.policy import Policy
from weightd.core.progress import FileProgress, Phase, Progress
from weightd.core.quota import Spent
from weightd.core.refs import parse_ref
from weightd.core.verification import Verification
from weightd.engine.api import (
    NOBODY,
    CopyState,
    Counters,
    EngineStatus,
    Event,
    EventKind,
    Evicted,
    FileCheck,
    FileState,
    Holder,
    Lease,
    LeaseState,
    ModelState,
    Tier,
    TierStatus,
    TransferState,
    VerifyProgress,
    VerifyStatus,
)
from weightd.rpc.server import make_server

REF = "demo"
REVISION = "0123456789abcdef"
_count = itertools.count()


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """A file in the format: 8 bytes of length, the header padded to 8 bytes, the data."""
    header: dict[str, object] = {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values())


def floats(count: int, start: float = 0.0) -> bytes:
    """float32: start, start + 1, …"""
    import struct

    return struct.pack(f"<{count}f", *(start + i for i in range(count)))


DEMO: dict[str, bytes] = {
    "model.safetensors": safetensors(
        {"a": ("F32", [2, 3], floats(6)), "layer.weight": ("F32", [4], floats(4, 10)), "empty": ("F32", [0], b"")}
    ),
    "config.json": b'{"hidden": 3}',
    "empty.txt": b"",
}


class Leases(dict[str, int]):
    """Counts by ref; called, it is `EngineApi.leases`. `states`: open acquires, by a number of their own."""

    def __init__(self, known: Callable[[str], object]) -> None:
        self._known = known
        self.states: dict[int, LeaseState] = {}

    def __call__(self, ref: str = "") -> list[LeaseState]:
        if ref:
            self._known(ref)
        return [state for state in self.states.values() if ref in ("", state.ref)]


class FakeLease:
    def __init__(self, engine: FakeEngine, ref: str, number: int = -1, holder: Holder = NOBODY) -> None:
        self._engine, self._ref, self._number = engine, ref, number
        self._held = True
        engine.leases.states[number] = LeaseState(ref, engine.model(ref).revision, 1000.0 + number, holder)
        engine.changed(ref, +1, EventKind.ACQUIRED)

    @property
    def model(self) -> ModelState:
        return self._engine.model(self._ref)

    def release(self) -> None:
        if self._held:
            self._held = False
            del self._engine.leases.states[self._number]
            self._engine.changed(self._ref, -1, EventKind.RELEASED)


class FakeEngine:
    """Implements EngineApi. `add` puts a model into real segments; `close` unlinks them.

    `fail` is raised by every call that is given a ref. `steps` is the progress before an answer; with `gate` the
    answer waits until it is set, and the model, or those of `gated`, is filling until then; `drain` ends who waits.
    `leases` counts, and lists; `wait_leases` waits for a count. `revisions`: those that acquires have named; with
    `forgetful`, as by a daemon that knows nothing of it, in vain. What `status` says is settable; `draining` is what an
    eviction leaves so. `adopt`: see `add`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fail: BaseException | None = None
        self.steps: list[Progress] = []
        self.gate: asyncio.Event | None = None
        self.leases = Leases(self._check)
        self.asked: list[tuple[str, Digest | None, Tier | None]] = []
        self.revisions: list[str] = []
        self.policies: dict[str, Policy] = {}
        self.pinned: set[str] = set()
        self.segment_directory = ""
        self.draining = 0
        self.adopt = False
        self.forgetful = False
        self.gated: set[str] = set()
        self._drained = asyncio.Event()
        self.shm = TierStatus(100, 1, 20, 79, leased=15, pinned=10, draining=4, total=200, other=3)
        self.nvme = TierStatus(1000, 0, 20, 880, kept=5, total=2000, other=100)
        self.counters = Counters(10, 20, 30, 25, 3, 1)
        self.under_way: tuple[TransferState, ...] = ()
        self.closed_iterators = 0
        self.waiting = 0
        self.on_lease: Callable[[str, int], None] = lambda ref, count: None
        self._models: dict[str, ModelState] = {}
        self._data: dict[str, dict[str, bytes]] = {}
        self._segments: list[str] = []
        self._watchers: list[asyncio.Queue[Event]] = []
        self._waiters: list[tuple[str, int, asyncio.Future[None]]] = []

    def add(self, ref: str, files: dict[str, bytes], revision: str = REVISION) -> ModelState:
        """A model that is resident; a file of 0 bytes has no segment. With `adopt`, in the segments that an earlier
        engine left, as its symlinks say."""
        directory = self.directory / parse_ref(ref).key
        directory.mkdir(parents=True, exist_ok=True)
        states = []
        for path, data in files.items():
            link = directory / path
            segment = f"/{link.resolve().name}" if self.adopt and link.is_symlink() and link.exists() else ""
            segment = segment or self._segment(data)
            link.unlink(missing_ok=True)
            if segment:
                link.symlink_to(Path(self.segment_directory or "/dev/shm") / segment[1:])
            else:
                link.touch()
            states.append(_file_state(path, data, segment))
        model = ModelState(ref, revision, "safetensors", str(directory), 0, 1.5, tuple(states))
        self._models[ref], self._data[ref] = model, files
        self.leases.setdefault(ref, 0)
        return model

    def _segment(self, data: bytes) -> str:
        if not data:
            return ""
        name = f"/weightd-test-{os.getpid()}-{next(_count)}"
        if self.segment_directory:
            fd = os.open(self.segment_directory + name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        else:
            fd = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600).fd
        self._segments.append(name)
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            os.fchmod(f.fileno(), 0o440)
        return name

    def fill(self, ref: str) -> None:
        """From now on the model is being filled."""
        files = tuple(msgspec.structs.replace(f, shm=Residency.FILLING) for f in self._models[ref].files)
        self._models[ref] = msgspec.structs.replace(self._models[ref], files=files)

    def _unlink(self, name: str) -> None:
        self._segments.remove(name)
        if self.segment_directory:
            os.unlink(self.segment_directory + name)
        else:
            posix_ipc.unlink_shared_memory(name)

    def drain(self) -> None:
        """Who waits for an answer is told."""
        self._drained.set()

    def close(self) -> None:
        """Adopted segments, and those to be adopted, stay."""
        while self._segments and not self.adopt:
            self._unlink(self._segments[-1])

    def changed(self, ref: str, by: int, kind: EventKind) -> None:
        self.leases[ref] += by
        self.emit(Event(kind, ref, self._models[ref].revision, 2.5))
        self.on_lease(ref, self.leases[ref])
        for waiting, count, future in self._waiters:
            if waiting == ref and count == self.leases[ref] and not future.done():
                future.set_result(None)

    async def wait_leases(self, count: int, ref: str = REF) -> None:
        if self.leases[ref] != count:
            waiter = (ref, count, asyncio.get_running_loop().create_future())
            self._waiters.append(waiter)
            await asyncio.wait_for(waiter[2], 20)
            self._waiters.remove(waiter)

    def emit(self, event: Event) -> None:
        for queue in self._watchers:
            queue.put_nowait(event)

    def _check(self, ref: str) -> None:
        if self.fail is not None:
            raise self.fail
        if ref not in self._models:
            raise ModelNotFound("no such model here", ref=ref, remedy="weightd ls lists what is here.")

    async def resolve(self, ref: str) -> Manifest:
        self._check(ref)
        files = [
            FileSpec(path=f.path, size=f.size, url=f"https://user:pw@host/{f.path}?token=secret", digest=f.digest)
            for f in self._models[ref].files
        ]
        return make_manifest(ref, "safetensors", files)

    async def fetch(
        self, ref: str, *, sha256: Digest | None = None, tier: Tier | None = None
    ) -> AsyncGenerator[Progress | ModelState, None]:
        self.asked.append((ref, sha256, tier))
        async for progress in self._progress(ref):
            yield progress
        yield self.model(ref)

    async def load(self, ref: str) -> AsyncGenerator[Progress | ModelState, None]:
        async for progress in self._progress(ref):
            yield progress
        if self.model(ref).residency(Tier.SHM) is not Residency.RESIDENT:
            self.add(ref, self._data[ref], self._models[ref].revision)
        yield self.model(ref)

    async def acquire(
        self, ref: str, *, revision: str = "", holder: Holder = NOBODY
    ) -> AsyncGenerator[Progress | Lease, None]:
        number = next(_count)
        self.revisions.append(revision)
        self.leases.states[number] = LeaseState(ref, "", 1000.0 + number, holder, waiting=True)
        try:
            async for progress in self._progress(ref):
                yield progress
            self.model(ref, "" if self.forgetful else revision)
        except BaseException:
            del self.leases.states[number]
            raise
        yield FakeLease(self, ref, number, holder)

    async def pin(self, ref: str) -> ModelState:
        self._check(ref)
        self.pinned.add(ref)
        self.emit(Event(EventKind.PINNED, ref, self._models[ref].revision, 2.5))
        return self.model(ref)

    async def unpin(self, ref: str) -> ModelState:
        if self.model(ref).policy is Policy.HOT:
            raise Precondition("the configuration says hot", ref=ref, remedy="Change models.json.")
        self.pinned.discard(ref)
        self.emit(Event(EventKind.UNPINNED, ref, self._models[ref].revision, 2.5))
        return self.model(ref)

    async def evict(self, ref: str) -> Evicted:
        model = self._unclaimed(ref)
        resident = [f for f in model.files if f.shm is Residency.RESIDENT]
        for name in (f.segment for f in resident if f.segment):
            self._unlink(name)
        files = tuple(msgspec.structs.replace(f, shm=Residency.ABSENT, segment="") for f in model.files)
        self._models[ref] = msgspec.structs.replace(model, files=files)
        self.emit(Event(EventKind.EVICTED, ref, model.revision, 2.5, "asked for"))
        return Evicted(shm=sum(f.size for f in resident), draining=self.draining)

    async def remove(self, ref: str) -> Evicted:
        gone = await self.evict(ref)
        model = self._models.pop(ref)
        self.emit(Event(EventKind.REMOVED, ref, model.revision, 2.5, "asked for"))
        return Evicted(shm=gone.shm, nvme=model.size)

    def _unclaimed(self, ref: str) -> ModelState:
        model = self.model(ref)
        if ref in self.pinned or model.policy is Policy.HOT:
            raise ModelPinned("the model is pinned", ref=ref, remedy=f"weightd unpin {ref}")
        if holders := self.leases(ref):
            who = ", ".join(f"process {state.holder.pid}" for state in holders)
            raise ModelLeased(f"{who} lease the model", ref=ref, remedy="End them first.")
        return model

    async def verify(self, ref: str = "", *, quick: bool = False) -> AsyncGenerator[FileCheck | VerifyProgress, None]:
        async for _ in self._progress(ref):
            yield VerifyProgress(1, 2)
        for model in [self.model(ref)] if ref else self.models():
            for f in model.files:
                yield FileCheck(
                    *(model.ref, model.revision, f.path, f.size, f.digest, f.verification),
                    *(CopyState.SOUND, CopyState.REPAIRED, f"{quick}"),
                )

    async def _progress(self, ref: str) -> AsyncGenerator[Progress, None]:
        try:
            for step in self.steps:
                yield step
            if self.gate is not None and self._waits(ref):
                self.waiting += 1
                await self._until_either(self.gate)
            self._check(ref)
        finally:
            self.closed_iterators += 1

    def _waits(self, ref: str) -> bool:
        return self.gate is not None and not self.gate.is_set() and (not self.gated or ref in self.gated)

    async def _until_either(self, gate: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (gate, self._drained)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._drained.is_set():
            raise Draining("the daemon is stopping", remedy="Try again when it has been started again.")

    def models(self) -> list[ModelState]:
        return [self.model(ref) for ref in self._models]

    def model(self, ref: str, revision: str = "") -> ModelState:
        self._check(ref)
        if revision not in ("", self._models[ref].revision):
            raise ModelNotFound("no such revision", ref=ref)
        files = self._models[ref].files
        if self._waits(ref):
            files = tuple(msgspec.structs.replace(f, shm=Residency.FILLING) for f in files)
        return msgspec.structs.replace(
            self._models[ref],
            files=files,
            leases=self.leases[ref],
            policy=self.policies.get(ref, Policy.WARM),
            pinned=ref in self.pinned,
            segment_directory=self.segment_directory,
        )

    async def watch(self) -> AsyncGenerator[Event, None]:
        if isinstance(self.fail, WeightdError):
            raise self.fail
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._watchers.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.remove(queue)

    @property
    def watchers(self) -> int:
        return len(self._watchers)

    async def status(self) -> EngineStatus:
        return EngineStatus(
            state=DaemonState.SERVING,
            uptime=1.25,
            state_directory=str(self.directory),
            shm=self.shm,
            nvme=self.nvme,
            leases=sum(self.leases.values()),
            models=len(self._models),
            transfers=0,
            shm_huge_bytes=0,
            verify=VerifyStatus(every=3600.0, oldest=2.5, damaged=3, repaired=2, lost=1),
            counters=self.counters,
            under_way=self.under_way,
            quotas=(Spent("huggingface.co", "resolvers", 7, 2993, 1), Spent("huggingface.co", "api", 2, -1, 0)),
        )


def _file_state(path: str, data: bytes, segment: str) -> FileState:
    return FileState(
        path=path,
        size=len(data),
        digest=digest_of(hashlib.sha256(data).digest()),
        verification=Verification.SHA256 if path.endswith(".safetensors") else Verification.SIZE,
        shm=Residency.RESIDENT,
        nvme=Residency.RESIDENT,
        segment=segment,
        last_verified=3.5 if path.endswith(".safetensors") else 4.5,
    )


def fetching(done: int, total: int = 100) -> Progress:
    """A step of progress over one file."""
    files = (FileProgress("model.safetensors", done, total),)
    return Progress(Phase.FETCHING, done, total, rate=50.0, seconds_left=(total - done) / 50, files=files)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--mode", default="0660")
    parser.add_argument("--adopt", action="store_true", help="segments of an earlier one, and leave them")
    parser.add_argument("--revision", default=REVISION)
    parser.add_argument("--empty", action="store_true", help="without the model")
    parser.add_argument("--denied", action="store_true", help="refuses every ref")
    parser.add_argument("--forgetful", action="store_true", help="leases what is current, whatever was asked for")
    parser.add_argument("--gate", action="store_true", help="until SIGUSR1")
    parser.add_argument("--quiet", action="store_true", help="no lines but ready")
    parser.add_argument("--segments", default="", help="a directory of segments")
    return parser.parse_args()


def _made(options: argparse.Namespace) -> FakeEngine:
    engine = FakeEngine(options.directory)
    engine.adopt, engine.segment_directory = options.adopt, options.segments
    engine.forgetful = options.forgetful
    if not options.empty:
        engine.add(REF, DEMO, options.revision)
    if options.denied:
        engine.fail = AccessDenied("not for you")
    if not options.quiet:
        engine.on_lease = lambda ref, count: print(f"{ref} {count}", flush=True)
    if options.gate:
        engine.gate = asyncio.Event()
        engine.steps = [fetching(10)]
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, engine.gate.set)
    return engine


async def _serve(options: argparse.Namespace) -> None:
    engine = _made(options)
    try:
        server = await make_server(engine, options.socket, mode=int(options.mode, 8))
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        print("ready", flush=True)
        await stop.wait()
        await server.drain()
        engine.drain()
        await server.stop(5)
    finally:
        engine.close()


if __name__ == "__main__":
    asyncio.run(_serve(_options()))
