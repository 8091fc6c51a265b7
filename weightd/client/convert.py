"""From protobuf to what the client's verbs answer, and from their arguments to requests."""

from __future__ import annotations

from typing import Final

from weightd.client.types import (
    CopyState,
    CountersInfo,
    EventInfo,
    EventKind,
    FileCheck,
    Holder,
    LeaseInfo,
    ManifestFile,
    ManifestInfo,
    ModelFile,
    ModelInfo,
    QuotaInfo,
    StatusInfo,
    Tier,
    TierInfo,
    TransferInfo,
    VerifyInfo,
)
from weightd.core.digest import parse_digest
from weightd.core.errors import InvalidArgument, RefSyntax
from weightd.core.lifecycle import DaemonState
from weightd.core.progress import Phase
from weightd.wire.convert import policy_from_pb, residency_from_pb, verification_from_pb
from weightd.wire.gen import weightd_pb2 as pb

_TIERS: Final[dict[Tier | None, pb.Tier]] = {None: pb.TIER_UNSPECIFIED, "shm": pb.TIER_SHM, "nvme": pb.TIER_NVME}


def checked_ref(ref: str) -> str:
    """What protobuf can carry. Raises RefSyntax; all else about a ref is the daemon's to judge."""
    if not isinstance(ref, str):
        raise RefSyntax(f"a ref is a string, not {type(ref).__name__}")
    try:
        ref.encode()
    except UnicodeEncodeError:
        raise RefSyntax(f"a ref must be text: {ref!r}", remedy="Percent-encode its bytes.") from None
    return ref


def fetch_request(ref: str, sha256: str | None, tier: Tier | None) -> pb.FetchRequest:
    """Raises RefSyntax, DigestSyntax, InvalidArgument."""
    if tier not in _TIERS:
        raise InvalidArgument(f"unknown tier {tier!r}", ref=ref, remedy='Use "shm", "nvme" or None.')
    return pb.FetchRequest(
        ref=checked_ref(ref), sha256="" if sha256 is None else parse_digest(sha256), tier=_TIERS[tier]
    )


def model_info(m: pb.Model) -> ModelInfo:
    return ModelInfo(
        ref=m.ref,
        revision=m.revision,
        format=m.format,
        directory=m.directory,
        size=m.size,
        verification=verification_from_pb(m.verification),
        shm=residency_from_pb(m.shm),
        nvme=residency_from_pb(m.nvme),
        leases=m.leases,
        last_used=m.last_used,
        files=tuple(_model_file(f) for f in m.files),
        last_verified=m.last_verified,
        current=not m.old,
        policy=policy_from_pb(m.policy),
        pinned=m.pinned,
    )


def _model_file(f: pb.ModelFile) -> ModelFile:
    return ModelFile(
        path=f.path,
        size=f.size,
        digest=f.digest,
        verification=verification_from_pb(f.verification),
        shm=residency_from_pb(f.shm),
        nvme=residency_from_pb(f.nvme),
        last_verified=f.last_verified,
        git_id=f.git_id,
    )


def model_infos(answer: pb.ListModelsResponse) -> list[ModelInfo]:
    return [model_info(m) for m in answer.models]


def manifest_info(m: pb.Manifest) -> ManifestInfo:
    files = tuple(ManifestFile(f.path, f.size, f.digest, f.source) for f in m.files)
    return ManifestInfo(ref=m.ref, revision=m.revision, format=m.format, files=files)


def status_info(s: pb.Status) -> StatusInfo:
    return StatusInfo(
        version=s.version,
        pid=s.pid,
        state=DaemonState(s.state),
        uptime=s.uptime,
        state_directory=s.state_directory,
        shm=_tier_info(s.shm),
        nvme=_tier_info(s.nvme),
        leases=s.leases,
        models=s.models,
        transfers=s.transfers,
        shm_huge_bytes=s.shm_huge_bytes,
        verify=_verify_info(s.verify),
        quotas=tuple(QuotaInfo(q.origin, q.bucket, q.requests, q.left, q.waits) for q in s.quotas),
        counters=_counters_info(s.counters),
        under_way=tuple(_transfer_info(t) for t in s.transfers_under_way),
    )


def _counters_info(c: pb.Counters) -> CountersInfo:
    return CountersInfo(
        bytes_fetched=c.bytes_fetched,
        bytes_loaded=c.bytes_loaded,
        acquires=c.acquires,
        hits=c.hits,
        evictions=c.evictions,
        adopted=c.adopted,
    )


def _transfer_info(t: pb.TransferStatus) -> TransferInfo:
    return TransferInfo(
        ref=t.ref,
        phase=Phase(t.phase),
        done=t.bytes_done,
        total=t.bytes_total,
        rate=t.bytes_per_second,
        urgent=t.urgent,
    )


def _verify_info(v: pb.VerifyStatus) -> VerifyInfo:
    return VerifyInfo(every=v.every, oldest=v.oldest, damaged=v.damaged, repaired=v.repaired, lost=v.lost)


def _tier_info(t: pb.TierStatus) -> TierInfo:
    return TierInfo(
        budget=t.budget,
        reserved=t.reserved,
        resident=t.resident,
        free=t.free,
        leased=t.leased,
        pinned=t.pinned,
        draining=t.draining,
        kept=t.kept,
        total=t.total,
        other=t.other,
    )


def model_request(ref: str, revision: str) -> pb.GetModelRequest:
    """Raises RefSyntax."""
    return pb.GetModelRequest(ref=checked_ref(ref), revision=checked_ref(revision))


def verify_request(ref: str, quick: bool) -> pb.VerifyRequest:
    """`ref` "" for all models."""
    return pb.VerifyRequest(ref=checked_ref(ref) if ref else "", quick=quick)


def leases_request(ref: str) -> pb.ListLeasesRequest:
    """`ref` "" for all models."""
    return pb.ListLeasesRequest(ref=checked_ref(ref))


def lease_infos(answer: pb.ListLeasesResponse) -> list[LeaseInfo]:
    return [_lease_info(lease) for lease in answer.leases]


def _lease_info(lease: pb.LeaseInfo) -> LeaseInfo:
    return LeaseInfo(
        ref=lease.ref,
        revision=lease.revision,
        since=lease.since,
        holder=_holder(lease.holder),
        waiting=lease.waiting,
    )


def _holder(h: pb.Holder) -> Holder:
    return Holder(
        pid=h.pid,
        started=h.started,
        command=h.command,
        cgroup=h.cgroup,
        pod=h.pod,
        confirmed=h.confirmed,
        uid=h.uid,
        tenant=h.tenant,
    )


def file_check(c: pb.FileCheck) -> FileCheck:
    return FileCheck(
        ref=c.ref,
        path=c.path,
        size=c.size,
        digest=c.digest,
        verification=verification_from_pb(c.verification),
        nvme=CopyState(c.nvme),
        shm=CopyState(c.shm),
        detail=c.detail,
        revision=c.revision,
    )


def event_info(e: pb.Event) -> EventInfo:
    return EventInfo(kind=EventKind(e.kind), ref=e.ref, revision=e.revision, time=e.time, detail=e.detail)
