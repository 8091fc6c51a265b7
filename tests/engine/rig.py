"""An engine on real segments and a real directory, an origin that does what a test says, and a look at what stays."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import struct
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from weightd.core.allow import AllowList
from weightd.core.crc import Crc
from weightd.core.digest import Digest, digest_of
from weightd.core.errors import SourceNotFound, SourceUnavailable
from weightd.core.manifest import FileSpec, Manifest, Validator, make_manifest
from weightd.core.quota import Spent
from weightd.core.refs import Ref
from weightd.engine.api import NOBODY, Holder, ModelState, Tier
from weightd.engine.engine import Engine
from weightd.engine.leases import ModelLease
from weightd.engine.options import EngineOptions
from weightd.engine.patrol import PatrolOptions
from weightd.engine.transfer import TransferOptions
from weightd.storage.blobs import DirectoryBlobStore
from weightd.storage.protocols import SegmentStore
from weightd.storage.segments import ROOT, PosixSegmentStore
from weightd.storage.state import State
from weightd.storage.tenant_files import TenantFiles

MIB = 1 << 20
PART = 64 << 10
REF = "http://origin/model/"
UNRECORDED = "segments are not recorded, and will not be adopted"
"""What an engine tells of a disk that takes no more records, up to the reason."""
SECONDS = 60
"""After which something that should have ended is called hung."""


def pattern(size: int, seed: object = 0) -> bytes:
    """Bytes without a period that a misplaced part could hide in."""
    return hashlib.shake_128(str(seed).encode()).digest(size)


def sha256(data: bytes) -> Digest:
    return digest_of(hashlib.sha256(data).digest())


def safetensors(size: int, seed: object = 0) -> bytes:
    """A valid file whose only tensor has `size` bytes."""
    header = json.dumps({"t": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + pattern(size, seed)


@dataclass
class Served:
    """A file at the origin. `digest` is what the manifest says, `etag` "" names no version."""

    data: bytes
    digest: Digest | None = None
    etag: str | None = None
    ranges: bool = True
    size: int | None = None
    crc: Crc | None = None
    git_id: str = ""


Hook = Callable[[str, int, int], None]


class Origin:
    """A `Source`. `models` maps a ref to its files by path. `starts` counts each (path, offset, length) asked for.

    `on_start` and `on_read` run in the receiver's thread and may raise or block. `hold` stops every read until
    `release`, or until the reader is aborted; `reached` is set once a read is held.
    """

    def __init__(self, models: dict[str, dict[str, Served]] | None = None) -> None:
        self.models = models or {}
        self.starts: Counter[tuple[str, int, int]] = Counter()
        self.resolved = 0
        self.readers: set[_Reader] = set()
        self.distrusted: list[str] = []
        self.on_start: Hook = lambda path, offset, length: None
        self.on_read: Hook = lambda path, offset, length: None
        self._held: Callable[[str, int], bool] = lambda path, offset: False
        self._changed = threading.Condition()
        self.reached = threading.Event()
        self.closed = False

    def hold(self, which: Callable[[str, int], bool] = lambda path, offset: True) -> None:
        self._held = which

    def release(self) -> None:
        with self._changed:
            self._held = lambda path, offset: False
            self._changed.notify_all()

    async def resolve(self, ref: Ref) -> Manifest:
        self.resolved += 1
        files = self.models.get(ref.text)
        if files is None:
            raise SourceNotFound("no such model")
        kind = "safetensors" if any(p.endswith(".safetensors") for p in files) else "raw"
        return make_manifest(ref.shown, kind, [self._spec(ref, path, f) for path, f in files.items()])

    def _spec(self, ref: Ref, path: str, file: Served) -> FileSpec:
        etag = sha256(file.data) if file.etag is None else file.etag
        size = len(file.data) if file.size is None else file.size
        url, validator = ref.text + path, Validator(etag=etag)
        return FileSpec(path, size, url, file.digest, validator, file.ranges, file.crc, file.git_id)

    async def stat(self, ref: Ref, path: str, url: str, *, size: int | None, digest: Digest | None) -> FileSpec:
        raise NotImplementedError

    def reader(self, file: FileSpec, memory: object = None) -> _Reader:
        return _Reader(self, file)

    def width(self, file: FileSpec) -> int:
        return 4

    def distrust(self, file: FileSpec) -> bool:
        self.distrusted.append(file.path)
        return False

    def quotas(self) -> Sequence[Spent]:
        return ()

    async def close(self) -> None:
        self.closed = True

    def served(self, url: str) -> Served:
        for ref, files in self.models.items():
            for path, file in files.items():
                if ref + path == url:
                    return file
        raise SourceNotFound("gone")

    def wait(self, reader: _Reader, path: str, offset: int) -> None:
        with self._changed:
            while self._held(path, offset):
                self.reached.set()
                if reader.aborted:
                    raise SourceUnavailable("aborted")
                self._changed.wait()

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class _Reader:
    def __init__(self, origin: Origin, file: FileSpec) -> None:
        self._origin, self._file = origin, file
        self._offset = self._end = 0
        self.aborted = False
        origin.readers.add(self)

    def start(self, offset: int, length: int) -> None:
        assert length > 0
        assert self._file.ranges or (offset, length) == (0, self._file.size)
        self._origin.starts[self._file.path, offset, length] += 1
        self._origin.on_start(self._file.path, offset, length)
        self._data = self._origin.served(self._file.url).data
        self._offset, self._end = offset, offset + length

    def readinto(self, view: memoryview) -> int:
        length = min(len(view), self._end - self._offset)
        assert length > 0
        self._origin.wait(self, self._file.path, self._offset)
        self._origin.on_read(self._file.path, self._offset, length)
        if self.aborted:
            raise SourceUnavailable("aborted")
        piece = self._data[self._offset : self._offset + length]
        if not piece:
            raise SourceUnavailable("the body ended early")
        view[: len(piece)] = piece
        self._offset += len(piece)
        return len(piece)

    def finish(self) -> None:
        assert self._offset == self._end

    def abort(self, *, slow: bool = False) -> None:
        self.aborted = True
        self._origin.wake()

    def close(self) -> None:
        self._origin.readers.discard(self)


@dataclass
class Rig:
    """A running engine and what there is to see of it from outside."""

    engine: Engine
    origin: Origin
    root: Path
    owner: str
    threads: set[threading.Thread] = field(default_factory=set)

    @property
    def blobs(self) -> DirectoryBlobStore:
        return DirectoryBlobStore(self.root)

    def segments(self) -> list[Path]:
        return [p for p in ROOT.iterdir() if p.name.startswith(f"weightd-{self.owner}-")]

    async def fetch(self, ref: str = REF, tier: Tier = Tier.NVME, sha256: Digest | None = None) -> ModelState:
        async with asyncio.timeout(SECONDS):
            async with aclosing(self.engine.fetch(ref, tier=tier, sha256=sha256)) as events:
                async for event in events:
                    if isinstance(event, ModelState):
                        return event
        raise AssertionError("a fetch without an end")

    async def acquire(self, ref: str = REF, *, revision: str = "", holder: Holder = NOBODY) -> ModelLease:
        async with asyncio.timeout(SECONDS):
            async with aclosing(self.engine.acquire(ref, revision=revision, holder=holder)) as events:
                async for event in events:
                    if isinstance(event, ModelLease):
                        return event
        raise AssertionError("an acquire without an end")

    def content(self, model: ModelState) -> dict[str, bytes]:
        """By the model's directory, as an unmodified program reads it."""
        return {f.path: (Path(model.directory) / f.path).read_bytes() for f in model.files}

    async def check_idle(self, *, blobs: int, segments: int, kept: int = 0) -> None:
        """Nothing is under way and nothing stays but these; the budgets count exactly them. `kept` ingests may be
        resumed; fewer where too little had come to be recorded."""
        status = await self.engine.status()
        assert status.transfers == 0
        assert (status.shm.reserved, status.nvme.reserved) == (0, 0)
        left = self.blobs.kept()
        assert len(left) == len(list(self.blobs.ingests.iterdir())) <= kept
        assert self.engine._catalog.nvme.kept == sum(k.size for k in left)
        assert len(list(self.blobs.digests())) == blobs
        assert len(self.segments()) == segments
        assert status.nvme.resident == sum(_pages(self.blobs.path(d)) for d in self.blobs.digests())
        assert status.shm.resident == sum(_pages(p) for p in self.segments())
        assert self.origin.readers == set()
        async with asyncio.timeout(5):
            # A thread ends after it has told its result, and nobody is told of that.
            while moving_threads():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def _pages(path: Path) -> int:
    return -(-path.stat().st_size // 4096) * 4096


def moving_threads() -> list[str]:
    """Of transfers; the engine's own few stay until it stops."""
    idle = ("weightd-io", "weightd-state", "weightd-idle")
    return [t.name for t in threading.enumerate() if t.name.startswith("weightd-") and not t.name.startswith(idle)]


@asynccontextmanager
async def running(
    root: Path,
    origin: Origin,
    *,
    owner: str = "",
    shm: int = 256 * MIB,
    nvme: int = 256 * MIB,
    transfers: int = 2,
    patrol: PatrolOptions | None = None,
    keep: int = 1,
    allow: AllowList | None = None,
    residency: Mapping[str, object] | None = None,
    segments: SegmentStore | None = None,
    files: TenantFiles | None = None,
    **transfer: int,
) -> AsyncIterator[Rig]:
    """Stopped at the end, after which nothing may be in shared memory, unless `residency`, which are options of the
    engine, says `keep_segments`; and no thread may run."""
    owner = owner or "t" + secrets.token_hex(6)
    moving = TransferOptions(**({"part_size": PART} | transfer))
    options = EngineOptions(root, shm, nvme, moving, transfers, patrol, keep, allow or AllowList(), **(residency or {}))
    engine = Engine(
        options,
        segments=segments or PosixSegmentStore(owner),
        blobs=DirectoryBlobStore(root),
        sources=origin,
        state=State(root / "state.db"),
        files=files,
    )
    await engine.start()
    rig = Rig(engine, origin, root, owner)
    try:
        yield rig
    finally:
        origin.release()
        async with asyncio.timeout(SECONDS):
            await engine.stop()
    if not options.keep_segments:
        assert rig.segments() == []
    async with asyncio.timeout(5):
        # A thread ends after it has told its result, and nobody is told of that.
        while [t for t in threading.enumerate() if t.name.startswith("weightd-")]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def one(data: bytes, path: str = "model.bin", **options: object) -> Origin:
    """An origin with one model of one file."""
    return Origin({REF: {path: Served(data, **options)}})  # type: ignore[arg-type]
