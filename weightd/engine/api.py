"""What the engine offers to the RPC handlers, as data. The engine itself is `weightd.engine.engine.Engine`."""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator
from typing import Protocol

import msgspec

from weightd.core.digest import Digest
from weightd.core.lifecycle import DaemonState, Residency
from weightd.core.manifest import Manifest
from weightd.core.policy import Policy
from weightd.core.progress import Phase, Progress
from weightd.core.quota import Spent
from weightd.core.tenants import NOBODY as NO_TENANT
from weightd.core.tenants import Scope
from weightd.core.verification import Verification


class Tier(enum.Enum):
    """The values are those of the wire."""

    SHM = 1
    NVME = 2


class FileState(msgspec.Struct, frozen=True):
    """One file of a model that is held here. `segment` is "" unless resident in shm (or 0 bytes long).

    `last_verified`: Unix time at which the copy on NVMe was compared with its digest, 0 when nobody knows. `git_id`:
    that of its git blob, where its source names it so.
    """

    path: str
    size: int
    digest: Digest
    verification: Verification
    shm: Residency
    nvme: Residency
    segment: str = ""
    last_verified: float = 0.0
    git_id: str = ""


class ModelState(msgspec.Struct, frozen=True):
    """A snapshot of a model that is held here, as of now. `current`: what its ref means here; an old one is kept beside
    it, by policy or while it is leased. `pinned` by an operator."""

    ref: str
    revision: str
    format: str
    directory: str
    leases: int
    last_used: float
    files: tuple[FileState, ...]
    current: bool = True
    policy: Policy = Policy.WARM
    pinned: bool = False
    tenants: Scope = NO_TENANT
    """Who may see it, beside those on the daemon's own socket."""
    segment_directory: str = ""
    """Where its segments are files of; "" for POSIX shared memory."""

    @property
    def size(self) -> int:
        return sum(f.size for f in self.files)

    @property
    def verification(self) -> Verification:
        return min(f.verification for f in self.files)

    @property
    def last_verified(self) -> float:
        """Of the file for which it is longest ago."""
        return min(f.last_verified for f in self.files)

    def residency(self, tier: Tier) -> Residency:
        """RESIDENT when all files are, ABSENT when one is, else FILLING."""
        states = {f.shm if tier is Tier.SHM else f.nvme for f in self.files}
        if states == {Residency.RESIDENT}:
            return Residency.RESIDENT
        return Residency.FILLING if Residency.FILLING in states else Residency.ABSENT


class Holder(msgspec.Struct, frozen=True):
    """Who leases, as the process says of itself, for operators: nothing is decided by it. What it does not say is empty
    or 0. `started` in clock ticks after boot, `pid` in the process's own PID namespace.

    `confirmed`: the kernel says that this very process is at the other end of a connection; then `pid` is that of the
    daemon's PID namespace, and `uid` is known.

    `tenant`: by whose socket the lease was taken, "" for the daemon's own. That, nobody says of himself.
    """

    pid: int = 0
    started: int = 0
    command: str = ""
    cgroup: str = ""
    pod: str = ""
    confirmed: bool = False
    uid: int = 0
    tenant: str = ""


NOBODY = Holder()
"""A caller that says nothing of itself."""


class EventKind(enum.Enum):
    """The values are those of the wire."""

    FETCH_STARTED = 1
    FETCH_FINISHED = 2
    FETCH_FAILED = 3
    LOADED = 4
    ACQUIRED = 5
    RELEASED = 6
    DAMAGED = 7
    REPAIRED = 8
    RETIRED = 9
    EVICTED = 10
    REMOVED = 11
    ADOPTED = 12
    PINNED = 13
    UNPINNED = 14


class Event(msgspec.Struct, frozen=True):
    """Something that happened; `time` in Unix seconds."""

    kind: EventKind
    ref: str
    revision: str
    time: float
    detail: str = ""
    tenants: Scope = NO_TENANT
    """Who may see its ref."""
    holder: Holder | None = None
    """Of a lease that began or ended."""


class CopyState(enum.Enum):
    """What a verification found of one copy of a file, and left. The values are those of the wire."""

    SOUND = 1
    REPAIRED = 2
    LOST = 3
    ABSENT = 4


class FileCheck(msgspec.Struct, frozen=True):
    """One file of a model after a verification. `detail` is for people: what was wrong, or why it could not be
    repaired."""

    ref: str
    revision: str
    path: str
    size: int
    digest: Digest
    verification: Verification
    nvme: CopyState
    shm: CopyState
    detail: str = ""


class VerifyProgress(msgspec.Struct, frozen=True):
    """Bytes read of those to be read."""

    done: int
    total: int


class TierStatus(msgspec.Struct, frozen=True):
    """Bytes. Every byte of `budget` is `reserved` (filling), `resident`, `draining` (unlinked, still mapped by
    somebody), `kept` (an interrupted fetch that gives way), or can be reserved. `leased` and `pinned` are of
    `resident`, and may overlap. `total`, `free` and what is used by `other`s are of the file system below."""

    budget: int
    reserved: int
    resident: int
    free: int
    leased: int = 0
    pinned: int = 0
    draining: int = 0
    kept: int = 0
    total: int = 0
    other: int = 0


class VerifyStatus(msgspec.Struct, frozen=True):
    """What verifications do, and have found since the start. `every` in seconds, 0 when nothing is verified in the
    background; `oldest`: Unix time at which that blob was verified for which it is longest ago, 0 when one never was
    or none is held. Of the `damaged` blobs some were `repaired`; `lost` could not be, and are not here now."""

    every: float = 0.0
    oldest: float = 0.0
    damaged: int = 0
    repaired: int = 0
    lost: int = 0


class Counters(msgspec.Struct, frozen=True):
    """Since the start. Bytes from origins, and from NVMe into shared memory; leases given, and `hits` among them, given
    at once of a resident model; snapshots that left shared memory, by policy or by command, and those `adopted` at the
    start."""

    bytes_fetched: int = 0
    bytes_loaded: int = 0
    acquires: int = 0
    hits: int = 0
    evictions: int = 0
    adopted: int = 0


class TransferState(msgspec.Struct, frozen=True):
    """A fetch or load under way. Bytes, over all files; `rate` in bytes per second; `urgent`: a worker waits for it."""

    ref: str
    phase: Phase
    done: int = 0
    total: int = 0
    rate: float = 0.0
    urgent: bool = False
    tenants: Scope = NO_TENANT
    """Who may see its ref."""


class EngineStatus(msgspec.Struct, frozen=True):
    """`uptime` in seconds; the counts are as of now. `under_way`: the urgent first, then in the order in which they
    began."""

    state: DaemonState
    uptime: float
    state_directory: str
    shm: TierStatus
    nvme: TierStatus
    leases: int
    models: int
    transfers: int
    shm_huge_bytes: int
    verify: VerifyStatus = VerifyStatus()
    quotas: tuple[Spent, ...] = ()
    counters: Counters = Counters()
    under_way: tuple[TransferState, ...] = ()


class LeaseState(msgspec.Struct, frozen=True):
    """An open acquire. `since`: Unix time. `waiting`: its model is not resident yet, and `revision` not known."""

    ref: str
    revision: str
    since: float
    holder: Holder
    waiting: bool = False


class Evicted(msgspec.Struct, frozen=True):
    """Bytes that left shared memory, of which some process still maps `draining`; and those that left NVMe."""

    shm: int = 0
    draining: int = 0
    nvme: int = 0


class Lease(Protocol):
    """A worker's claim; made by `Engine.acquire`."""

    @property
    def model(self) -> ModelState: ...

    def release(self) -> None:
        """Idempotent."""
        ...


class EngineApi(Protocol):
    """Called on the event loop only."""

    async def resolve(self, ref: str) -> Manifest: ...

    def fetch(
        self, ref: str, *, sha256: Digest | None = None, tier: Tier | None = None
    ) -> AsyncGenerator[Progress | ModelState, None]:
        """Progress several times a second, then the model once. Closing the iterator drops this caller's interest.
        Without `tier` the model's policy says: NVME for a cold one, else SHM."""
        ...

    def load(self, ref: str) -> AsyncGenerator[Progress | ModelState, None]:
        """What is held of it into shared memory; its origin is asked only for what proves damaged. Raises
        ModelNotFound."""
        ...

    def acquire(
        self, ref: str, *, revision: str = "", holder: Holder = NOBODY
    ) -> AsyncGenerator[Progress | Lease, None]:
        """Progress while the model is not resident, then the lease once, at which the iterator ends.

        The lease is taken before its blobs are committed, so nothing can evict what it waits for. Whoever receives
        the lease must release it; one that was made but not received is released when the iterator is closed.

        With `revision`, of a caller that has mapped that snapshot before: it is leased as it is held, also an old one;
        its origin is not asked. Raises ModelNotFound where it is no longer held.
        """
        ...

    def leases(self, ref: str = "") -> list[LeaseState]:
        """Open acquires, those that wait among them, the oldest first; of one model, or all. Raises ModelNotFound."""
        ...

    async def pin(self, ref: str) -> ModelState:
        """From now on, over restarts, no tier drops its current snapshot. Loads nothing. Raises ModelNotFound."""
        ...

    async def unpin(self, ref: str) -> ModelState:
        """Idempotent. Raises ModelNotFound, Precondition for a hot model, which the configuration pins."""
        ...

    async def evict(self, ref: str) -> Evicted:
        """All its snapshots leave shared memory. Raises ModelNotFound, and ModelLeased, ModelPinned or ModelBusy, which
        say who; then nothing changed."""
        ...

    async def remove(self, ref: str) -> Evicted:
        """All its snapshots leave the catalog. Raises as `evict`."""
        ...

    def models(self) -> list[ModelState]:
        """Every snapshot: by ref, the current one first, then the old ones, the newest first."""
        ...

    def model(self, ref: str, revision: str = "") -> ModelState:
        """The current snapshot, or the one of a revision. Raises ModelNotFound."""
        ...

    def verify(self, ref: str = "", *, quick: bool = False) -> AsyncGenerator[FileCheck | VerifyProgress, None]:
        """Check what is at rest of all snapshots of one model, or of all models; `quick` compares sizes only. What is
        damaged is repaired, or quarantined. Raises ModelNotFound. Closing the iterator stops it."""
        ...

    def watch(self) -> AsyncGenerator[Event, None]:
        """Events from now on. Raises TooSlow for a reader that falls 1,000 behind."""
        ...

    async def status(self) -> EngineStatus: ...
