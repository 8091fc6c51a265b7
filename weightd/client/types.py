"""What the client's verbs answer. Sizes in bytes, times in seconds."""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

from weightd.core.lifecycle import DaemonState, Residency
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
    and so is `last_verified`, of the file for which it is longest ago.
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
    """`reserved` by fetches and loads under way, `free` on the file system below, whoever uses it."""

    budget: int
    reserved: int
    resident: int
    free: int


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


class StatusInfo(msgspec.Struct, frozen=True):
    """The daemon, as of the answer. `shm_huge_bytes` are really backed by huge pages."""

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

    @classmethod
    def _missing_(cls, value: object) -> EventKind:
        return cls.UNKNOWN


class EventInfo(msgspec.Struct, frozen=True):
    """Something that happened in the daemon, at Unix time `time`. `detail` is the error of
    FETCH_FAILED, and what was DAMAGED or REPAIRED."""

    kind: EventKind
    ref: str
    revision: str
    time: float
    detail: str
