"""Who leases: what a process says of itself, bounded and clean before anything keeps or shows it."""

from __future__ import annotations

from typing import Final

from weightd.engine.api import NOBODY, Holder, LeaseState
from weightd.wire.convert import shown
from weightd.wire.gen import weightd_pb2 as pb

COMMAND: Final = 200
CGROUP: Final = 400
POD: Final = 253
"""Characters that are kept. A pod's name has at most 253, as Kubernetes says."""
PID_LIMIT: Final = 1 << 22
"""No process has this id or a higher one, on any Linux (PID_MAX_LIMIT, linux/threads.h)."""


def holder_of(request: pb.AcquireRequest) -> Holder:
    """On the way of every acquire: a few microseconds. An impossible pid is 0; `confirmed`, `uid` and `tenant` are
    not the caller's to say."""
    if not request.HasField("holder"):
        return NOBODY
    said = request.holder
    pid = said.pid
    return Holder(
        pid if pid < PID_LIMIT else 0,
        said.started,
        _clean(said.command, COMMAND),
        _clean(said.cgroup, CGROUP),
        _clean(said.pod, POD),
    )


def _clean(text: str, limit: int) -> str:
    """Nothing that moves a cursor, breaks a line or turns the direction of writing, and not long."""
    if len(text) > limit:
        text = text[:limit]
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def lease_to_pb(lease: LeaseState) -> pb.LeaseInfo:
    """An open acquire."""
    return pb.LeaseInfo(
        ref=shown(lease.ref),
        revision=lease.revision,
        since=lease.since,
        holder=_holder_to_pb(lease.holder),
        waiting=lease.waiting,
    )


def _holder_to_pb(h: Holder) -> pb.Holder:
    return pb.Holder(
        pid=h.pid,
        started=h.started,
        command=h.command,
        cgroup=h.cgroup,
        pod=h.pod,
        confirmed=h.confirmed,
        uid=h.uid,
        tenant=h.tenant,
    )
