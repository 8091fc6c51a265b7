"""What the client's verbs answer. Sizes in bytes, times in seconds."""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

from weightd.core.lifecycle import DaemonState, Residency
from weightd.core.policy import Policy
from weightd.core.progress import Phase
from weightd.core.verification import Verification

Tier = Literal["shm", "nvme"]


class ModelFile(msgspec.Struct, frozen=True):
    """One file of a model that the daemon holds. `digest` is "sha256:…"; `last_verified` the Unix time at which the
    copy on NVMe was last compared with it, 0 when nobody knows; `git_id` that of its git blob on the Hugging Face Hub,
    "" for a file in LFS."""

    path: str
    size: int
    digest: str
    verification: Verification
    shm: Residency
    nvme: Residency
    last_verified: float
    git_id: str = ""


class ModelInfo(msgspec.Struct, frozen=True):
    """A snapshot of a model that the daemon holds, as of the answer.

    `current`: what its ref means on this host, and what an acquire gets; others are kept beside it while they are
    leased, and as long as the daemon's policy says.

    `size` is the sum over files, `verification` the weakest of them, `leases` those open now, `last_used` Unix time,
    and so is `last_verified`, of the file for which it is longest ago. `policy` is the configuration's, `pinned` an
    operator's word; a hot model is not evicted either.
    """

    ref: str
    revision: str
    format: str
    directory: str
    size: int
    verification: Verification
    shm: Residency
    nvme: Residency
    leases: int
    last_used: float
    files: tuple[ModelFile, ...]
    last_verified: float
    current: bool
    policy: Policy = Policy.WARM
    pinned: bool = False


class ManifestFile(msgspec.Struct, frozen=True):
    """`digest` is "" when the source gives none; `source` is a URL without credentials and query."""

    path: str
    size: int
    digest: str
    source: str


class ManifestInfo(msgspec.Struct, frozen=True):
    """What a ref means now. `format` is "safetensors" or "raw"."""

    ref: str
    revision: str
    format: str
    files: tuple[ManifestFile, ...]

    @property
    def size(self) -> int:
        """Sum over files."""
        return sum(f.size for f in self.files)


class TierInfo(msgspec.Struct, frozen=True):
    """`reserved` by fetches and loads under way, `free` on the file system below, whoever uses it, `total` its size and
    `other` what others use of it. `leased` and `pinned` are of `resident`, and may overlap. `draining`: unlinked, still
    mapped by somebody. `kept`: interrupted fetches, which give way."""

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

    @property
    def left(self) -> int:
        """Of the budget, what can still be reserved; an interrupted fetch would give way for more."""
        return max(0, self.budget - self.reserved - self.resident - self.draining - self.kept)


class VerifyInfo(msgspec.Struct, frozen=True):
    """Verifications, in the background and by command; the counts are of blobs, since the start.

    `every`: in which each blob is verified once in the background, 0 for never. `oldest`: when that one was for which
    it is longest ago, 0 when one never was or none is held. `lost` could not be repaired, and did not come back since.
    """

    every: float
    oldest: float
    damaged: int
    repaired: int
    lost: int


class QuotaInfo(msgspec.Struct, frozen=True):
    """Requests since the start that cost of a quota of an origin; `left` of them as it said last, -1 where it said
    nothing; `waits`: how often nothing was left."""

    origin: str
    bucket: str
    requests: int
    left: int
    waits: int


class CountersInfo(msgspec.Struct, frozen=True):
    """Since the daemon's start. Bytes from origins, and from NVMe into shared memory; leases given, and `hits` among
    them, given at once; snapshots that left shared memory, and those `adopted` at the start."""

    bytes_fetched: int = 0
    bytes_loaded: int = 0
    acquires: int = 0
    hits: int = 0
    evictions: int = 0
    adopted: int = 0


class TransferInfo(msgspec.Struct, frozen=True):
    """A fetch or load under way. Bytes, over all files; `rate` in bytes per second; `urgent`: a worker waits for it."""

    ref: str
    phase: Phase
    done: int
    total: int
    rate: float
    urgent: bool


class StatusInfo(msgspec.Struct, frozen=True):
    """The daemon, as of the answer. `shm_huge_bytes` are really backed by huge pages. `under_way`: the urgent first."""

    version: str
    pid: int
    state: DaemonState
    uptime: float
    state_directory: str
    shm: TierInfo
    nvme: TierInfo
    leases: int
    models: int
    transfers: int
    shm_huge_bytes: int
    verify: VerifyInfo
    quotas: tuple[QuotaInfo, ...] = ()
    counters: CountersInfo = CountersInfo()
    under_way: tuple[TransferInfo, ...] = ()


class Holder(msgspec.Struct, frozen=True):
    """A process that leases, as it says of itself; what it does not say is empty or 0. `started` in clock ticks after
    boot.

    `confirmed`: the kernel says that this process is connected to the daemon; then `pid` is that of the daemon's PID
    namespace, and `uid` is known. Else `pid` is that of the process's own namespace.

    `tenant`: of the socket that the lease was taken through, by its name in [[sockets]]; "" for the daemon's own.
    """

    pid: int
    started: int
    command: str
    cgroup: str
    pod: str
    confirmed: bool
    uid: int
    tenant: str = ""


class LeaseInfo(msgspec.Struct, frozen=True):
    """An open acquire, since Unix time `since`. `waiting`: its model is not resident yet, and `revision` ""."""

    ref: str
    revision: str
    since: float
    holder: Holder
    waiting: bool


class Evicted(msgspec.Struct, frozen=True):
    """Bytes that left shared memory, `draining` of which some process still maps (known of an eviction only), and those
    that left NVMe. What other models need stays, and is not counted."""

    shm: int = 0
    draining: int = 0
    nvme: int = 0


class CopyState(enum.Enum):
    """What a verification found of one copy of a file, and left. LOST: damaged, not repaired, and not served any
    more. The values are those of the wire; UNKNOWN is what a newer daemon says."""

    UNKNOWN = 0
    SOUND = 1
    REPAIRED = 2
    LOST = 3
    ABSENT = 4

    @classmethod
    def _missing_(cls, value: object) -> CopyState:
        return cls.UNKNOWN


class FileCheck(msgspec.Struct, frozen=True):
    """One file of a snapshot after a verification. `detail` is for people."""

    ref: str
    path: str
    size: int
    digest: str
    verification: Verification
    nvme: CopyState
    shm: CopyState
    detail: str
    revision: str


class EventKind(enum.Enum):
    """The values are those of the wire; UNKNOWN is what a newer daemon says."""

    UNKNOWN = 0
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

    @classmethod
    def _missing_(cls, value: object) -> EventKind:
        return cls.UNKNOWN


class EventInfo(msgspec.Struct, frozen=True):
    """Something that happened in the daemon, at Unix time `time`. `detail` is the error of FETCH_FAILED, what was
    DAMAGED or REPAIRED, and why it was EVICTED or REMOVED."""

    kind: EventKind
    ref: str
    revision: str
    time: float
    detail: str
