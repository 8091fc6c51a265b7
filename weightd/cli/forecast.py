"""What an eviction or a removal would do, from what the daemon lists: for --dry-run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from weightd.client.client import Client
from weightd.client.types import Evicted, LeaseInfo, ModelFile, ModelInfo
from weightd.core.errors import ModelBusy, ModelLeased, ModelNotFound, ModelPinned
from weightd.core.lifecycle import Residency
from weightd.core.policy import Policy


class Host(NamedTuple):
    """What the daemon lists, as of one moment."""

    models: list[ModelInfo]
    leases: list[LeaseInfo]


def look(client: Client) -> Host:
    return Host(client.models(), client.leases())


def forecast(host: Host, ref: str, *, remove: bool) -> Evicted:
    """What would leave shared memory and, with `remove`, NVMe: of each blob once, and without those that other models
    have. `ref` as the daemon lists it. Raises ModelNotFound, ModelLeased, ModelPinned, ModelBusy."""
    own = [m for m in host.models if m.ref == ref]
    if not own:
        raise ModelNotFound("this host does not hold the model", ref=ref, remedy="weightd ls lists what it holds.")
    _check(own, [lease for lease in host.leases if lease.ref == ref])
    others = [m for m in host.models if m.ref != ref]
    shared = {f.digest for m in others if m.shm is Residency.RESIDENT for f in m.files}
    if not remove:
        return Evicted(shm=_bytes((f for m in own for f in m.files if f.shm is Residency.RESIDENT), shared))
    kept = {f.digest for m in others for f in m.files}
    return Evicted(
        shm=_bytes((f for m in own for f in m.files if f.shm is Residency.RESIDENT), shared),
        nvme=_bytes((f for m in own for f in m.files if f.nvme is Residency.RESIDENT), kept),
    )


def _check(own: list[ModelInfo], leases: list[LeaseInfo]) -> None:
    ref = own[0].ref
    if any(m.leases for m in own) or leases:
        raise ModelLeased("the model is leased", ref=ref, remedy=f"weightd leases {ref} lists who holds it.")
    if any(m.pinned or m.policy is Policy.HOT for m in own):
        raise ModelPinned("the model is pinned, or hot by configuration", ref=ref, remedy="Unpin it first.")
    if any(Residency.FILLING in (m.shm, m.nvme) for m in own):
        raise ModelBusy("the model is being filled", ref=ref, remedy="Wait, or end the fetch.")


def _bytes(files: Iterable[ModelFile], without: set[str]) -> int:
    return sum({f.digest: f.size for f in files if f.digest not in without}.values())
