"""From the engine's types to protobuf, and the few that come the other way."""

from __future__ import annotations

from typing import cast

from weightd.core.errors import InvalidArgument
from weightd.engine.api import (
    Counters,
    EngineStatus,
    Event,
    FileCheck,
    FileState,
    ModelState,
    Tier,
    TierStatus,
    TransferState,
    VerifyProgress,
    VerifyStatus,
)
from weightd.version import __version__
from weightd.wire.convert import phase_to_pb, policy_to_pb, residency_to_pb, shown, verification_to_pb
from weightd.wire.gen import weightd_pb2 as pb


def model_to_pb(m: ModelState) -> pb.Model:
    """A model as of now."""
    return pb.Model(
        ref=shown(m.ref),
        revision=m.revision,
        format=m.format,
        directory=m.directory,
        size=m.size,
        verification=verification_to_pb(m.verification),
        shm=residency_to_pb(m.residency(Tier.SHM)),
        nvme=residency_to_pb(m.residency(Tier.NVME)),
        leases=m.leases,
        last_used=m.last_used,
        last_verified=m.last_verified,
        old=not m.current,
        policy=policy_to_pb(m.policy),
        pinned=m.pinned,
        files=[_file_to_pb(f) for f in m.files],
    )


def _file_to_pb(f: FileState) -> pb.ModelFile:
    return pb.ModelFile(
        path=f.path,
        size=f.size,
        digest=f.digest,
        verification=verification_to_pb(f.verification),
        shm=residency_to_pb(f.shm),
        nvme=residency_to_pb(f.nvme),
        last_verified=f.last_verified,
        git_id=f.git_id,
    )


def handles_to_pb(m: ModelState) -> pb.Handles:
    """Of a model that is resident in shared memory, each file in a segment of its own."""
    return pb.Handles(
        ref=shown(m.ref),
        revision=m.revision,
        format=m.format,
        directory=m.directory,
        files=[
            pb.FileHandle(
                path=f.path,
                segment=f.segment,
                length=f.size,
                digest=f.digest,
                verification=verification_to_pb(f.verification),
            )
            for f in m.files
        ],
        segment_directory=m.segment_directory,
    )


def event_to_pb(event: Event) -> pb.Event:
    """Something that happened."""
    return pb.Event(
        kind=cast("pb.Event.Kind", event.kind.value),
        ref=shown(event.ref),
        revision=event.revision,
        time=event.time,
        detail=event.detail,
    )


def verify_to_pb(found: FileCheck | VerifyProgress) -> pb.VerifyEvent:
    """One step of a verification."""
    if isinstance(found, VerifyProgress):
        return pb.VerifyEvent(progress=pb.VerifyProgress(bytes_done=found.done, bytes_total=found.total))
    check = pb.FileCheck(
        ref=shown(found.ref),
        path=found.path,
        size=found.size,
        digest=found.digest,
        verification=verification_to_pb(found.verification),
        nvme=cast("pb.CopyState", found.nvme.value),
        shm=cast("pb.CopyState", found.shm.value),
        detail=found.detail,
        revision=found.revision,
    )
    return pb.VerifyEvent(check=check)


def status_to_pb(status: EngineStatus, pid: int) -> pb.Status:
    """Of this process, whose id is `pid`."""
    return pb.Status(
        version=__version__,
        pid=pid,
        state=status.state.value,
        uptime=status.uptime,
        state_directory=status.state_directory,
        shm=_tier_to_pb(status.shm),
        nvme=_tier_to_pb(status.nvme),
        leases=status.leases,
        models=status.models,
        transfers=status.transfers,
        shm_huge_bytes=status.shm_huge_bytes,
        verify=_verify_to_pb(status.verify),
        quotas=[
            pb.QuotaStatus(origin=q.origin, bucket=q.bucket, requests=q.requests, left=q.left, waits=q.waits)
            for q in status.quotas
        ],
        counters=_counters_to_pb(status.counters),
        transfers_under_way=[_transfer_to_pb(t) for t in status.under_way],
    )


def _verify_to_pb(v: VerifyStatus) -> pb.VerifyStatus:
    return pb.VerifyStatus(every=v.every, oldest=v.oldest, damaged=v.damaged, repaired=v.repaired, lost=v.lost)


def _counters_to_pb(c: Counters) -> pb.Counters:
    return pb.Counters(
        bytes_fetched=c.bytes_fetched,
        bytes_loaded=c.bytes_loaded,
        acquires=c.acquires,
        hits=c.hits,
        evictions=c.evictions,
        adopted=c.adopted,
    )


def _transfer_to_pb(t: TransferState) -> pb.TransferStatus:
    return pb.TransferStatus(
        ref=shown(t.ref),
        phase=phase_to_pb(t.phase),
        bytes_done=t.done,
        bytes_total=t.total,
        bytes_per_second=t.rate,
        urgent=t.urgent,
    )


def _tier_to_pb(t: TierStatus) -> pb.TierStatus:
    return pb.TierStatus(
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


def tier_from_pb(value: int) -> Tier | None:
    """None for unspecified: the model's policy says. Raises InvalidArgument for a tier this version does not know."""
    if value == pb.TIER_UNSPECIFIED:
        return None
    try:
        return Tier(value)
    except ValueError:
        raise InvalidArgument(f"unknown tier {value}", remedy="Use TIER_SHM (1) or TIER_NVME (2).") from None
