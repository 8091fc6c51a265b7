from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Verification(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERIFICATION_UNSPECIFIED: _ClassVar[Verification]
    VERIFICATION_SIZE: _ClassVar[Verification]
    VERIFICATION_CRC: _ClassVar[Verification]
    VERIFICATION_SHA256: _ClassVar[Verification]
    VERIFICATION_GIT: _ClassVar[Verification]

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_SHM: _ClassVar[Tier]
    TIER_NVME: _ClassVar[Tier]

class CopyState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COPY_STATE_UNSPECIFIED: _ClassVar[CopyState]
    COPY_STATE_SOUND: _ClassVar[CopyState]
    COPY_STATE_REPAIRED: _ClassVar[CopyState]
    COPY_STATE_LOST: _ClassVar[CopyState]
    COPY_STATE_ABSENT: _ClassVar[CopyState]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_RESOLVING: _ClassVar[Phase]
    PHASE_FETCHING: _ClassVar[Phase]
    PHASE_LOADING: _ClassVar[Phase]
    PHASE_VERIFYING: _ClassVar[Phase]

class Residency(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESIDENCY_UNSPECIFIED: _ClassVar[Residency]
    RESIDENCY_ABSENT: _ClassVar[Residency]
    RESIDENCY_FILLING: _ClassVar[Residency]
    RESIDENCY_RESIDENT: _ClassVar[Residency]
    RESIDENCY_EVICTING: _ClassVar[Residency]

class Policy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POLICY_UNSPECIFIED: _ClassVar[Policy]
    POLICY_HOT: _ClassVar[Policy]
    POLICY_WARM: _ClassVar[Policy]
    POLICY_COLD: _ClassVar[Policy]
VERIFICATION_UNSPECIFIED: Verification
VERIFICATION_SIZE: Verification
VERIFICATION_CRC: Verification
VERIFICATION_SHA256: Verification
VERIFICATION_GIT: Verification
TIER_UNSPECIFIED: Tier
TIER_SHM: Tier
TIER_NVME: Tier
COPY_STATE_UNSPECIFIED: CopyState
COPY_STATE_SOUND: CopyState
COPY_STATE_REPAIRED: CopyState
COPY_STATE_LOST: CopyState
COPY_STATE_ABSENT: CopyState
PHASE_UNSPECIFIED: Phase
PHASE_RESOLVING: Phase
PHASE_FETCHING: Phase
PHASE_LOADING: Phase
PHASE_VERIFYING: Phase
RESIDENCY_UNSPECIFIED: Residency
RESIDENCY_ABSENT: Residency
RESIDENCY_FILLING: Residency
RESIDENCY_RESIDENT: Residency
RESIDENCY_EVICTING: Residency
POLICY_UNSPECIFIED: Policy
POLICY_HOT: Policy
POLICY_WARM: Policy
POLICY_COLD: Policy

class ResolveRequest(_message.Message):
    __slots__ = ("ref",)
    REF_FIELD_NUMBER: _ClassVar[int]
    ref: str
    def __init__(self, ref: _Optional[str] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("ref", "revision", "format", "files")
    REF_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    ref: str
    revision: str
    format: str
    files: _containers.RepeatedCompositeFieldContainer[ManifestFile]
    def __init__(self, ref: _Optional[str] = ..., revision: _Optional[str] = ..., format: _Optional[str] = ..., files: _Optional[_Iterable[_Union[ManifestFile, _Mapping]]] = ...) -> None: ...

class ManifestFile(_message.Message):
    __slots__ = ("path", "size", "digest", "source")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    path: str
    size: int
    digest: str
    source: str
    def __init__(self, path: _Optional[str] = ..., size: _Optional[int] = ..., digest: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("ref", "sha256", "tier")
    REF_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    ref: str
    sha256: str
    tier: Tier
    def __init__(self, ref: _Optional[str] = ..., sha256: _Optional[str] = ..., tier: _Optional[_Union[Tier, str]] = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ("ref", "quick")
    REF_FIELD_NUMBER: _ClassVar[int]
    QUICK_FIELD_NUMBER: _ClassVar[int]
    ref: str
    quick: bool
    def __init__(self, ref: _Optional[str] = ..., quick: _Optional[bool] = ...) -> None: ...

class VerifyEvent(_message.Message):
    __slots__ = ("progress", "check")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    progress: VerifyProgress
    check: FileCheck
    def __init__(self, progress: _Optional[_Union[VerifyProgress, _Mapping]] = ..., check: _Optional[_Union[FileCheck, _Mapping]] = ...) -> None: ...

class VerifyProgress(_message.Message):
    __slots__ = ("bytes_done", "bytes_total")
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    bytes_done: int
    bytes_total: int
    def __init__(self, bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ...) -> None: ...

class FileCheck(_message.Message):
    __slots__ = ("ref", "path", "size", "digest", "verification", "nvme", "shm", "detail", "revision")
    REF_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_FIELD_NUMBER: _ClassVar[int]
    NVME_FIELD_NUMBER: _ClassVar[int]
    SHM_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ref: str
    path: str
    size: int
    digest: str
    verification: Verification
    nvme: CopyState
    shm: CopyState
    detail: str
    revision: str
    def __init__(self, ref: _Optional[str] = ..., path: _Optional[str] = ..., size: _Optional[int] = ..., digest: _Optional[str] = ..., verification: _Optional[_Union[Verification, str]] = ..., nvme: _Optional[_Union[CopyState, str]] = ..., shm: _Optional[_Union[CopyState, str]] = ..., detail: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class FetchEvent(_message.Message):
    __slots__ = ("progress", "model")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    model: Model
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class AcquireRequest(_message.Message):
    __slots__ = ("ref", "revision", "holder")
    REF_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    ref: str
    revision: str
    holder: Holder
    def __init__(self, ref: _Optional[str] = ..., revision: _Optional[str] = ..., holder: _Optional[_Union[Holder, _Mapping]] = ...) -> None: ...

class Holder(_message.Message):
    __slots__ = ("pid", "started", "command", "cgroup", "pod", "confirmed", "uid", "tenant")
    PID_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    CGROUP_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    CONFIRMED_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    pid: int
    started: int
    command: str
    cgroup: str
    pod: str
    confirmed: bool
    uid: int
    tenant: str
    def __init__(self, pid: _Optional[int] = ..., started: _Optional[int] = ..., command: _Optional[str] = ..., cgroup: _Optional[str] = ..., pod: _Optional[str] = ..., confirmed: _Optional[bool] = ..., uid: _Optional[int] = ..., tenant: _Optional[str] = ...) -> None: ...

class ListLeasesRequest(_message.Message):
    __slots__ = ("ref",)
    REF_FIELD_NUMBER: _ClassVar[int]
    ref: str
    def __init__(self, ref: _Optional[str] = ...) -> None: ...

class ListLeasesResponse(_message.Message):
    __slots__ = ("leases",)
    LEASES_FIELD_NUMBER: _ClassVar[int]
    leases: _containers.RepeatedCompositeFieldContainer[LeaseInfo]
    def __init__(self, leases: _Optional[_Iterable[_Union[LeaseInfo, _Mapping]]] = ...) -> None: ...

class LeaseInfo(_message.Message):
    __slots__ = ("ref", "revision", "since", "holder", "waiting")
    REF_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    ref: str
    revision: str
    since: float
    holder: Holder
    waiting: bool
    def __init__(self, ref: _Optional[str] = ..., revision: _Optional[str] = ..., since: _Optional[float] = ..., holder: _Optional[_Union[Holder, _Mapping]] = ..., waiting: _Optional[bool] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("ref",)
    REF_FIELD_NUMBER: _ClassVar[int]
    ref: str
    def __init__(self, ref: _Optional[str] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("ref",)
    REF_FIELD_NUMBER: _ClassVar[int]
    ref: str
    def __init__(self, ref: _Optional[str] = ...) -> None: ...

class PinResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class UnpinRequest(_message.Message):
    __slots__ = ("ref",)
    REF_FIELD_NUMBER: _ClassVar[int]
    ref: str
    def __init__(self, ref: _Optional[str] = ...) -> None: ...

class UnpinResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class EvictRequest(_message.Message):
    __slots__ = ("ref",)
    REF_FIELD_NUMBER: _ClassVar[int]
    ref: str
    def __init__(self, ref: _Optional[str] = ...) -> None: ...

class EvictResponse(_message.Message):
    __slots__ = ("freed", "draining")
    FREED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    freed: int
    draining: int
    def __init__(self, freed: _Optional[int] = ..., draining: _Optional[int] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("ref",)
    REF_FIELD_NUMBER: _ClassVar[int]
    ref: str
    def __init__(self, ref: _Optional[str] = ...) -> None: ...

class RemoveResponse(_message.Message):
    __slots__ = ("shm", "nvme")
    SHM_FIELD_NUMBER: _ClassVar[int]
    NVME_FIELD_NUMBER: _ClassVar[int]
    shm: int
    nvme: int
    def __init__(self, shm: _Optional[int] = ..., nvme: _Optional[int] = ...) -> None: ...

class AcquireEvent(_message.Message):
    __slots__ = ("progress", "handles")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    handles: Handles
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., handles: _Optional[_Union[Handles, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("phase", "bytes_done", "bytes_total", "bytes_per_second", "seconds_left", "files")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    phase: Phase
    bytes_done: int
    bytes_total: int
    bytes_per_second: float
    seconds_left: float
    files: _containers.RepeatedCompositeFieldContainer[FileProgress]
    def __init__(self, phase: _Optional[_Union[Phase, str]] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., bytes_per_second: _Optional[float] = ..., seconds_left: _Optional[float] = ..., files: _Optional[_Iterable[_Union[FileProgress, _Mapping]]] = ...) -> None: ...

class FileProgress(_message.Message):
    __slots__ = ("path", "bytes_done", "bytes_total")
    PATH_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    path: str
    bytes_done: int
    bytes_total: int
    def __init__(self, path: _Optional[str] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ...) -> None: ...

class Handles(_message.Message):
    __slots__ = ("ref", "revision", "format", "directory", "files", "segment_directory")
    REF_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    ref: str
    revision: str
    format: str
    directory: str
    files: _containers.RepeatedCompositeFieldContainer[FileHandle]
    segment_directory: str
    def __init__(self, ref: _Optional[str] = ..., revision: _Optional[str] = ..., format: _Optional[str] = ..., directory: _Optional[str] = ..., files: _Optional[_Iterable[_Union[FileHandle, _Mapping]]] = ..., segment_directory: _Optional[str] = ...) -> None: ...

class FileHandle(_message.Message):
    __slots__ = ("path", "segment", "offset", "length", "digest", "verification")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_FIELD_NUMBER: _ClassVar[int]
    path: str
    segment: str
    offset: int
    length: int
    digest: str
    verification: Verification
    def __init__(self, path: _Optional[str] = ..., segment: _Optional[str] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., digest: _Optional[str] = ..., verification: _Optional[_Union[Verification, str]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("ref", "revision")
    REF_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ref: str
    revision: str
    def __init__(self, ref: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("ref", "revision", "format", "directory", "size", "verification", "shm", "nvme", "leases", "last_used", "files", "last_verified", "old", "policy", "pinned")
    REF_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_FIELD_NUMBER: _ClassVar[int]
    SHM_FIELD_NUMBER: _ClassVar[int]
    NVME_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    LAST_VERIFIED_FIELD_NUMBER: _ClassVar[int]
    OLD_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
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
    files: _containers.RepeatedCompositeFieldContainer[ModelFile]
    last_verified: float
    old: bool
    policy: Policy
    pinned: bool
    def __init__(self, ref: _Optional[str] = ..., revision: _Optional[str] = ..., format: _Optional[str] = ..., directory: _Optional[str] = ..., size: _Optional[int] = ..., verification: _Optional[_Union[Verification, str]] = ..., shm: _Optional[_Union[Residency, str]] = ..., nvme: _Optional[_Union[Residency, str]] = ..., leases: _Optional[int] = ..., last_used: _Optional[float] = ..., files: _Optional[_Iterable[_Union[ModelFile, _Mapping]]] = ..., last_verified: _Optional[float] = ..., old: _Optional[bool] = ..., policy: _Optional[_Union[Policy, str]] = ..., pinned: _Optional[bool] = ...) -> None: ...

class ModelFile(_message.Message):
    __slots__ = ("path", "size", "digest", "verification", "shm", "nvme", "last_verified", "git_id")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_FIELD_NUMBER: _ClassVar[int]
    SHM_FIELD_NUMBER: _ClassVar[int]
    NVME_FIELD_NUMBER: _ClassVar[int]
    LAST_VERIFIED_FIELD_NUMBER: _ClassVar[int]
    GIT_ID_FIELD_NUMBER: _ClassVar[int]
    path: str
    size: int
    digest: str
    verification: Verification
    shm: Residency
    nvme: Residency
    last_verified: float
    git_id: str
    def __init__(self, path: _Optional[str] = ..., size: _Optional[int] = ..., digest: _Optional[str] = ..., verification: _Optional[_Union[Verification, str]] = ..., shm: _Optional[_Union[Residency, str]] = ..., nvme: _Optional[_Union[Residency, str]] = ..., last_verified: _Optional[float] = ..., git_id: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Event(_message.Message):
    __slots__ = ("kind", "ref", "revision", "time", "detail")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Event.Kind]
        KIND_FETCH_STARTED: _ClassVar[Event.Kind]
        KIND_FETCH_FINISHED: _ClassVar[Event.Kind]
        KIND_FETCH_FAILED: _ClassVar[Event.Kind]
        KIND_LOADED: _ClassVar[Event.Kind]
        KIND_ACQUIRED: _ClassVar[Event.Kind]
        KIND_RELEASED: _ClassVar[Event.Kind]
        KIND_DAMAGED: _ClassVar[Event.Kind]
        KIND_REPAIRED: _ClassVar[Event.Kind]
        KIND_RETIRED: _ClassVar[Event.Kind]
        KIND_EVICTED: _ClassVar[Event.Kind]
        KIND_REMOVED: _ClassVar[Event.Kind]
        KIND_ADOPTED: _ClassVar[Event.Kind]
        KIND_PINNED: _ClassVar[Event.Kind]
        KIND_UNPINNED: _ClassVar[Event.Kind]
    KIND_UNSPECIFIED: Event.Kind
    KIND_FETCH_STARTED: Event.Kind
    KIND_FETCH_FINISHED: Event.Kind
    KIND_FETCH_FAILED: Event.Kind
    KIND_LOADED: Event.Kind
    KIND_ACQUIRED: Event.Kind
    KIND_RELEASED: Event.Kind
    KIND_DAMAGED: Event.Kind
    KIND_REPAIRED: Event.Kind
    KIND_RETIRED: Event.Kind
    KIND_EVICTED: Event.Kind
    KIND_REMOVED: Event.Kind
    KIND_ADOPTED: Event.Kind
    KIND_PINNED: Event.Kind
    KIND_UNPINNED: Event.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    kind: Event.Kind
    ref: str
    revision: str
    time: float
    detail: str
    def __init__(self, kind: _Optional[_Union[Event.Kind, str]] = ..., ref: _Optional[str] = ..., revision: _Optional[str] = ..., time: _Optional[float] = ..., detail: _Optional[str] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Status(_message.Message):
    __slots__ = ("version", "pid", "state", "uptime", "state_directory", "shm", "nvme", "leases", "models", "transfers", "shm_huge_bytes", "verify", "quotas", "counters", "transfers_under_way")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    STATE_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    SHM_FIELD_NUMBER: _ClassVar[int]
    NVME_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    SHM_HUGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_UNDER_WAY_FIELD_NUMBER: _ClassVar[int]
    version: str
    pid: int
    state: str
    uptime: float
    state_directory: str
    shm: TierStatus
    nvme: TierStatus
    leases: int
    models: int
    transfers: int
    shm_huge_bytes: int
    verify: VerifyStatus
    quotas: _containers.RepeatedCompositeFieldContainer[QuotaStatus]
    counters: Counters
    transfers_under_way: _containers.RepeatedCompositeFieldContainer[TransferStatus]
    def __init__(self, version: _Optional[str] = ..., pid: _Optional[int] = ..., state: _Optional[str] = ..., uptime: _Optional[float] = ..., state_directory: _Optional[str] = ..., shm: _Optional[_Union[TierStatus, _Mapping]] = ..., nvme: _Optional[_Union[TierStatus, _Mapping]] = ..., leases: _Optional[int] = ..., models: _Optional[int] = ..., transfers: _Optional[int] = ..., shm_huge_bytes: _Optional[int] = ..., verify: _Optional[_Union[VerifyStatus, _Mapping]] = ..., quotas: _Optional[_Iterable[_Union[QuotaStatus, _Mapping]]] = ..., counters: _Optional[_Union[Counters, _Mapping]] = ..., transfers_under_way: _Optional[_Iterable[_Union[TransferStatus, _Mapping]]] = ...) -> None: ...

class Counters(_message.Message):
    __slots__ = ("bytes_fetched", "bytes_loaded", "acquires", "hits", "evictions", "adopted")
    BYTES_FETCHED_FIELD_NUMBER: _ClassVar[int]
    BYTES_LOADED_FIELD_NUMBER: _ClassVar[int]
    ACQUIRES_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    ADOPTED_FIELD_NUMBER: _ClassVar[int]
    bytes_fetched: int
    bytes_loaded: int
    acquires: int
    hits: int
    evictions: int
    adopted: int
    def __init__(self, bytes_fetched: _Optional[int] = ..., bytes_loaded: _Optional[int] = ..., acquires: _Optional[int] = ..., hits: _Optional[int] = ..., evictions: _Optional[int] = ..., adopted: _Optional[int] = ...) -> None: ...

class TransferStatus(_message.Message):
    __slots__ = ("ref", "phase", "bytes_done", "bytes_total", "bytes_per_second", "urgent")
    REF_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    URGENT_FIELD_NUMBER: _ClassVar[int]
    ref: str
    phase: Phase
    bytes_done: int
    bytes_total: int
    bytes_per_second: float
    urgent: bool
    def __init__(self, ref: _Optional[str] = ..., phase: _Optional[_Union[Phase, str]] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., bytes_per_second: _Optional[float] = ..., urgent: _Optional[bool] = ...) -> None: ...

class QuotaStatus(_message.Message):
    __slots__ = ("origin", "bucket", "requests", "left", "waits")
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    origin: str
    bucket: str
    requests: int
    left: int
    waits: int
    def __init__(self, origin: _Optional[str] = ..., bucket: _Optional[str] = ..., requests: _Optional[int] = ..., left: _Optional[int] = ..., waits: _Optional[int] = ...) -> None: ...

class VerifyStatus(_message.Message):
    __slots__ = ("every", "oldest", "damaged", "repaired", "lost")
    EVERY_FIELD_NUMBER: _ClassVar[int]
    OLDEST_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    REPAIRED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    every: float
    oldest: float
    damaged: int
    repaired: int
    lost: int
    def __init__(self, every: _Optional[float] = ..., oldest: _Optional[float] = ..., damaged: _Optional[int] = ..., repaired: _Optional[int] = ..., lost: _Optional[int] = ...) -> None: ...

class TierStatus(_message.Message):
    __slots__ = ("budget", "reserved", "resident", "free", "leased", "pinned", "draining", "kept", "total", "other")
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    LEASED_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    budget: int
    reserved: int
    resident: int
    free: int
    leased: int
    pinned: int
    draining: int
    kept: int
    total: int
    other: int
    def __init__(self, budget: _Optional[int] = ..., reserved: _Optional[int] = ..., resident: _Optional[int] = ..., free: _Optional[int] = ..., leased: _Optional[int] = ..., pinned: _Optional[int] = ..., draining: _Optional[int] = ..., kept: _Optional[int] = ..., total: _Optional[int] = ..., other: _Optional[int] = ...) -> None: ...

class ErrorDetail(_message.Message):
    __slots__ = ("kind", "message", "ref", "file", "remedy")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    ref: str
    file: str
    remedy: str
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ..., ref: _Optional[str] = ..., file: _Optional[str] = ..., remedy: _Optional[str] = ...) -> None: ...
