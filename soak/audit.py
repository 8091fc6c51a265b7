"""A look at the whole: what the daemon says of itself, what disk and shared memory hold, what its processes use."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import time
from contextlib import closing
from pathlib import Path

from soak.actors import Kit, digest_of_file
from soak.host import CONNECTIONS, SHM, Vital
from soak.journal import Violation
from soak.world import MIB
from weightd.client.types import ModelInfo, StatusInfo
from weightd.core.lifecycle import Residency
from weightd.storage.ledger import Ledger
from weightd.storage.pages import footprint

IDLE_S = 30.0
"""How long a daemon that nobody asks anything may take to come to rest."""
PROBES = 8
"""Connections that resolving may keep, beside those of transfers."""
MORE_DESCRIPTORS, MORE_THREADS, MORE_MAPS = 8, 8, 64
"""Than at an earlier rest of the same daemon: pools that were not yet full."""
MORE_MEMORY = 48 * MIB
_INGEST = re.compile(r"[0-9a-f]{32}\.([0-9a-f]{8}-\d+-\d+-)?[0-9a-f]{16}")
_KNOWN = {"lock", "state.db", "state.db-wal", "state.db-shm", "blobs", "ingest", "models", "quarantine"}


def check_after_start(kit: Kit) -> None:
    """A daemon that nobody has asked anything yet holds what is on disk, and nothing else."""
    with kit.host.client(own=True) as client:
        status, models = client.status(), client.models()
    if status.leases or status.transfers or status.shm.reserved or status.nvme.reserved:
        raise Violation(f"a daemon begins with {status}")
    adopted = sum(footprint(p.stat().st_size) for p in kit.host.segments())
    if adopted != status.shm.resident or adopted > status.shm.budget:
        raise Violation(f"a daemon begins with segments of {adopted} bytes, and says {status.shm}")
    kit.journal.count("bytes adopted", adopted)
    _check_disk(kit, status)
    _check_models(kit, models, read=False)


def at_rest(kit: Kit) -> StatusInfo:
    """Wait until nothing is under way. Raises Violation when it does not come to that."""
    end = time.monotonic() + IDLE_S
    with kit.host.client() as client:
        while True:
            status = client.status()
            busy = (status.leases, status.transfers, status.shm.reserved, status.nvme.reserved, status.shm.draining)
            if not any(busy):
                return status
            if time.monotonic() > end:
                raise Violation(f"nobody asks anything, and {busy} leases, transfers and bytes are still claimed")
            time.sleep(0.1)


def audit(kit: Kit, port: int, before: Vital | None) -> Vital:
    """Everything, every byte. `before` is what the same daemon used at an earlier rest. Raises Violation."""
    status = at_rest(kit)
    with kit.host.client() as client:
        models = client.models()
    _check_shm(kit, status)
    _check_disk(kit, status)
    _check_blobs(kit)
    _check_models(kit, models, read=True)
    if (number := kit.host.connections(port)) > CONNECTIONS + PROBES:
        raise Violation(f"{number} connections to the origin at rest")
    now = _settled(kit, before)
    kit.journal.note("audit", f"{now}; {status}")
    return now


def _settled(kit: Kit, before: Vital | None) -> Vital:
    """Threads end after they have told their result, and nobody is told of that: looked at until it fits."""
    end = time.monotonic() + IDLE_S
    while (reason := _grown(now := kit.host.vital(), before)) and time.monotonic() < end:
        time.sleep(0.5)
    if reason:
        raise Violation(f"{reason}: {now}; earlier {before}")
    return now


def _grown(now: Vital, before: Vital | None) -> str:
    if now.mapped_segments:
        return "segments are mapped at rest"
    if before is None:
        return ""
    if now.descriptors > before.descriptors + MORE_DESCRIPTORS:
        return "descriptors leak"
    if now.threads > before.threads + MORE_THREADS:
        return "threads leak"
    if now.maps > before.maps + MORE_MAPS:
        return "maps leak"
    return "memory leaks" if now.anonymous > before.anonymous + MORE_MEMORY else ""


def _check_shm(kit: Kit, status: StatusInfo) -> None:
    segments, known, total = kit.host.segments(), kit.world.every_digest(), 0
    for path in segments:
        found = path.stat()
        total += footprint(found.st_size)
        if stat.S_IMODE(found.st_mode) != 0o440:
            raise Violation(f"{path} is at rest with mode {found.st_mode:o}")
        digest, size = digest_of_file(path)
        if digest not in known:
            raise Violation(f"{path} holds {digest}, which the origin never served")
        kit.journal.saw(size)
    if total != status.shm.resident:
        raise Violation(f"/dev/shm holds {total} bytes in {len(segments)} segments, the daemon says {status.shm}")
    if total > status.shm.budget:
        raise Violation(f"/dev/shm holds {total} bytes, over the budget: {status.shm}")
    if kit.host.private and (foreign := {p.name for p in SHM.iterdir()} - {p.name for p in segments}):
        raise Violation(f"in /dev/shm are {foreign}")


def _check_disk(kit: Kit, status: StatusInfo) -> None:
    if unknown := {p.name for p in kit.host.state.iterdir()} - _KNOWN:
        raise Violation(f"nobody knows what {unknown} are in the state directory")
    blobs = {b.name: b.stat() for b in kit.host.blobs()}
    total = sum(footprint(s.st_size) for s in blobs.values())
    if total != status.nvme.resident and not kit.host.damaged:
        raise Violation(f"the disk holds blobs of {total} bytes, the daemon says {status.nvme}")
    recorded = _recorded(kit.host.state / "state.db")
    if extra := set(blobs) - recorded:
        raise Violation(f"blobs without a record: {extra}")
    if (missing := recorded - set(blobs)) and not kit.host.damaged:
        raise Violation(f"records without a blob: {missing}")
    kept = 0
    for place in [*(kit.host.state / "ingest").iterdir(), *(kit.host.state / "quarantine").glob("*")]:
        if not _INGEST.fullmatch(place.name) or not (place / "data").is_file() or Ledger.read(place / "ledger") is None:
            raise Violation(f"{place} is at rest, and cannot be resumed")
        kept += sum(p.stat().st_blocks * 512 for p in place.iterdir())
    if total + kept > status.nvme.budget:
        raise Violation(f"the disk holds {total} + {kept} kept bytes, over the budget: {status.nvme}")


def _recorded(path: Path) -> set[str]:
    """Digests, without their prefix; read as any other process may."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
        return {digest.removeprefix("sha256:") for (digest,) in db.execute("SELECT digest FROM blobs")}


def _check_blobs(kit: Kit) -> None:
    known = kit.world.every_digest()
    for blob in kit.host.blobs():
        if stat.S_IMODE(blob.stat().st_mode) != 0o440:
            raise Violation(f"{blob} has mode {blob.stat().st_mode:o}")
        if f"sha256:{blob.name}" not in known:
            raise Violation(f"{blob} is a blob that the origin never served")
        digest, size = digest_of_file(blob)
        if digest != f"sha256:{blob.name}" and not kit.host.damaged:
            raise Violation(f"{blob} holds {digest}")
        kit.journal.saw(size)


def _check_models(kit: Kit, models: list[ModelInfo], *, read: bool) -> None:
    """Each name in each directory resolves, unless verification has said that the file is lost."""
    for model in models:
        key = kit.world.key_of(model.ref)
        for file in model.files:
            kit.check(key, file.path, file.digest, "a listed file")
            path = Path(model.directory) / file.path
            lost = file.nvme is not Residency.RESIDENT and file.shm is not Residency.RESIDENT
            if kit.host.damaged or lost:
                continue
            if not path.is_file() or path.stat().st_size != file.size:
                raise Violation(f"{path} -> {os.path.realpath(path)} does not resolve to {file}")
            if read and digest_of_file(path)[0] != file.digest:
                raise Violation(f"{path} is not {file.digest}")
