"""The daemon's answers, for people and for programs."""

from __future__ import annotations

import msgspec

from weightd.client.client import Client
from weightd.client.types import LeaseInfo, ModelInfo, StatusInfo, TransferInfo


def connect(socket: str | None) -> Client:
    """Opens nothing yet. A command says at once that its daemon ended: who waits for another one calls again."""
    return Client(socket, reconnect=0)


def model_fields(model: ModelInfo) -> dict[str, object]:
    """For JSON: words in lower case, sizes in bytes."""
    return {
        "ref": model.ref,
        "revision": model.revision,
        "current": model.current,
        "format": model.format,
        "directory": model.directory,
        "size": model.size,
        "verification": model.verification.name.lower(),
        "shm": model.shm.name.lower(),
        "nvme": model.nvme.name.lower(),
        "policy": model.policy.value,
        "pinned": model.pinned,
        "leases": model.leases,
        "last_used": model.last_used,
        "last_verified": model.last_verified,
        "files": [
            {
                "path": f.path,
                "size": f.size,
                "digest": f.digest,
                "verification": f.verification.name.lower(),
                "shm": f.shm.name.lower(),
                "nvme": f.nvme.name.lower(),
                "last_verified": f.last_verified,
                "git_id": f.git_id,
            }
            for f in model.files
        ],
    }


def status_fields(status: StatusInfo, socket: str) -> dict[str, object]:
    """For JSON."""
    return {
        "version": status.version,
        "pid": status.pid,
        "state": status.state.value,
        "uptime": status.uptime,
        "socket": socket,
        "state_directory": status.state_directory,
        "shm": msgspec.structs.asdict(status.shm),
        "nvme": msgspec.structs.asdict(status.nvme),
        "leases": status.leases,
        "models": status.models,
        "transfers": status.transfers,
        "shm_huge_bytes": status.shm_huge_bytes,
        "verify": {
            "every": status.verify.every,
            "oldest": status.verify.oldest,
            "damaged": status.verify.damaged,
            "repaired": status.verify.repaired,
            "lost": status.verify.lost,
        },
        "quotas": [msgspec.structs.asdict(quota) for quota in status.quotas],
        "counters": msgspec.structs.asdict(status.counters),
        "transfers_under_way": [_transfer_fields(t) for t in status.under_way],
    }


def _transfer_fields(transfer: TransferInfo) -> dict[str, object]:
    return {
        "ref": transfer.ref,
        "phase": transfer.phase.name.lower(),
        "bytes_done": transfer.done,
        "bytes_total": transfer.total,
        "bytes_per_second": round(transfer.rate),
        "urgent": transfer.urgent,
    }


def lease_fields(lease: LeaseInfo) -> dict[str, object]:
    """For JSON; `uid` is null where the kernel does not say it."""
    holder = lease.holder
    return {
        "ref": lease.ref,
        "revision": lease.revision,
        "since": lease.since,
        "waiting": lease.waiting,
        "pid": holder.pid,
        "started": holder.started,
        "command": holder.command,
        "cgroup": holder.cgroup,
        "pod": holder.pod,
        "confirmed": holder.confirmed,
        "uid": holder.uid if holder.confirmed else None,
        "tenant": holder.tenant,
    }
