"""What holds after every step, whatever it was: the promises, as the file systems and the worker's maps show them."""

from __future__ import annotations

import os
from pathlib import Path

from tests.engine.machine_driver import Driver
from tests.engine.machine_expect import digests, total
from tests.engine.machine_world import BY_DIGEST, CONTENT, MODELS
from weightd.core.lifecycle import Residency
from weightd.engine.api import ModelState, Tier
from weightd.storage.segments import ROOT


def check(d: Driver) -> None:
    """All of it; what is under way makes room for some."""
    maps(d)
    leases(d)
    pins(d)
    budgets(d)
    snapshots(d)
    if d.quiet:
        at_rest(d)
        shared_memory(d)
        disk(d)
        directories(d)
    assert not d.seen.complaints, d.seen.complaints


def maps(d: Driver) -> None:
    """Promise 3: what is mapped never changes. What is leased has its name."""
    for one in d.maps():
        assert one.view[:] == one.expected
    for lease in d.leases.values():
        assert all(one.named for one in lease.maps), f"a segment of {lease.ref} is gone that is leased"


def leases(d: Driver) -> None:
    """Those that are listed are those that are held or waited for."""
    granted = sorted((s.ref, s.revision) for s in d.seen.leases if not s.waiting)
    waiting = sorted(s.ref for s in d.seen.leases if s.waiting)
    held = [(lease.ref, lease.revision) for lease in d.leases.values()]
    asked = [ref for method, ref in d.waiting.values() if method == "acquire"]
    assert granted == sorted(held)
    assert waiting == sorted(asked)
    assert d.seen.status.leases == len(held)
    by_model = {(m.ref, m.revision): m for m in d.seen.models}
    for key in set(held):
        model = by_model[key]
        assert model.leases == held.count(key)
        assert model.residency(Tier.SHM) is Residency.RESIDENT or digests(model) & d.hurt or not d.intact(model)


def pins(d: Driver) -> None:
    """No tier drops what is pinned."""
    for model in d.seen.models:
        assert model.ref in d.unsure_pins or model.pinned == (model.ref in d.pins)
    d.pins |= {m.ref for m in d.seen.models if m.pinned and m.ref in d.unsure_pins}
    d.unsure_pins -= {m.ref for m in d.seen.models}
    pinned = {(m.ref, m.revision): m for m in d.seen.models if m.pinned and m.current and d.intact(m)}
    resident = {key: {f.segment for f in m.files if f.segment} for key, m in pinned.items()}
    for key, segments in d.pinned.items():
        assert segments <= resident.get(key, segments), f"a segment of {key} is gone that is pinned"
    d.pinned = resident


def budgets(d: Driver) -> None:
    """Promise 6."""
    for tier in (d.seen.status.shm, d.seen.status.nvme):
        assert tier.reserved + tier.resident + tier.draining + tier.kept <= tier.budget, tier
        assert max(tier.leased, tier.pinned) <= tier.resident


def snapshots(d: Driver) -> None:
    """One of a name never changes, and has only what its origin had."""
    for model in d.seen.models:
        files = {f.path: f.digest for f in model.files}
        assert d.revisions.setdefault((model.ref, model.revision), files) == files
        d.directories[Path(model.directory)] = digests(model)
        for path, digest in files.items():
            assert BY_DIGEST[digest] in [CONTENT[MODELS[model.ref][path].content, v] for v in (0, 1)]
    assert len({(m.ref, m.current) for m in d.seen.models if m.current}) == sum(m.current for m in d.seen.models)


def at_rest(d: Driver) -> None:
    """Nothing is under way, and nobody left anything."""
    status = d.seen.status
    assert (status.transfers, status.shm.reserved, status.nvme.reserved) == (0, 0, 0)
    assert (d.seen.moving, d.seen.readers, d.seen.waiting, status.under_way) == ([], 0, [], ())


def shared_memory(d: Driver) -> None:
    """Each blob once, no segment without an owner, and every byte accounted for, to the page."""
    shm = d.seen.status.shm
    named = {b.segment for b in d.seen.blobs.values() if b.segment}
    named |= {f.segment for m in d.seen.models for f in m.files if f.segment}
    files = d.segments()
    assert {"/" + p.name for p in files} == named
    assert shm.resident == sum(-(-p.stat().st_size // 4096) * 4096 for p in files)
    assert shm.draining >= d.unnamed()
    if d.mount != ROOT:
        space = os.statvfs(d.mount)
        used = (space.f_blocks - space.f_bfree) * space.f_frsize
        # Somebody else's are counted as such, and what was unmapped just now is not yet.
        assert shm.resident + d.unnamed() + d.foreign() <= used <= shm.resident + shm.draining + d.foreign()


def disk(d: Driver) -> None:
    """The same of NVMe."""
    nvme = d.seen.status.nvme
    assert nvme.resident == total(set(d.seen.blobs))
    assert nvme.kept == d.seen.kept
    there = {p.name for p in (d.place / "blobs/sha256").glob("??/*")}
    known = {digest.removeprefix("sha256:") for digest in d.seen.blobs}
    hurt = {digest.removeprefix("sha256:") for digest in d.hurt}
    assert there - known == set()
    assert known - there <= hurt


def directories(d: Driver) -> None:
    """Promise 7: every name resolves, to a whole file; and no others are there."""
    root = d.place / "models"
    expected = {Path(m.directory) for m in d.seen.models}
    found = {p for p in root.glob("*/*") if p.is_dir() and not p.is_symlink()}
    assert expected <= found
    # A start leaves that of a snapshot that misses a blob, for whoever fetches it again.
    assert found - expected <= {directory for directory, blobs in d.directories.items() if blobs & d.ever_hurt}
    for model in d.seen.models:
        files(d, model)
        current = Path(model.directory).with_name("current")
        if model.current:
            assert os.readlink(current) == model.revision


def files(d: Driver, model: ModelState) -> None:
    directory = Path(model.directory)
    assert sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if not p.is_dir()) == sorted(
        f.path for f in model.files
    ) or not d.intact(model)
    for file in model.files:
        path = directory / file.path
        there = path.resolve()
        segment = d.mount / (file.segment or file.path).removeprefix("/")
        # What another model brought into shared memory is where it was for this one, until somebody leases it.
        assert there in (segment, d.blob(file.digest)), there
        assert there == segment or not (model.leases and file.segment)
        if there != segment and (file.digest in d.hurt or file.digest not in d.seen.blobs):
            continue
        assert path.read_bytes() == BY_DIGEST[file.digest], path


def alone(d: Driver) -> bool:
    """Whether the tmpfs is ours to fill."""
    return d.mount != ROOT
