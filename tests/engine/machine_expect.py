"""What must fit, and what cannot: the model of room in both tiers that the engine is compared with.

Where a tier may not be predicted to the byte, what is certain is: `must` fit, or `never` can.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tests.engine.machine_host import Seen
from tests.engine.machine_world import MODELS, Versions, digest_at, pages
from weightd.core.digest import Digest
from weightd.engine.api import ModelState


@dataclass(frozen=True)
class Fit:
    """Of what is asked for, beside what cannot go."""

    must: bool
    never: bool

    def and_(self, other: Fit) -> Fit:
        return Fit(self.must and other.must, self.never or other.never)


@dataclass(frozen=True)
class Tiers:
    """As they are at rest. `claimed` are snapshots (ref, revision) that stay, `mapped` names of segments that some
    process maps, `draining` bytes that are mapped and have no name; `shm_room` is what the tmpfs has for us."""

    seen: Seen
    claimed: Collection[tuple[str, str]]
    mapped: Collection[str]
    draining: int
    shm_room: int
    forgotten: Collection[Digest] = ()
    """Blobs that were dropped once: which version of a source they are is known only since they came again."""

    def current(self, ref: str) -> ModelState | None:
        return next((m for m in self.seen.models if m.ref == ref and m.current), None)

    def load(self, model: ModelState) -> Fit:
        """Of a snapshot that is on NVMe."""
        return self._shm(digests(model), digests(model))

    def fetch(self, ref: str, versions: Versions, *, shm: bool) -> Fit:
        """Of what the origin has."""
        wanted = {digest_at(versions, ref, path) for path in MODELS[ref]}
        certain = self._identified(ref, versions)
        on_nvme = self._nvme(wanted, certain)
        return on_nvme.and_(self._shm(wanted, certain)) if shm else on_nvme

    def _identified(self, ref: str, versions: Versions) -> set[Digest]:
        """What is known to be here before a byte of it has come: by its digest, or as a version that came before."""
        held = self.current(ref)
        before = digests(held) - set(self.forgotten) if held else set[Digest]()
        found = {path: digest_at(versions, ref, path) for path in MODELS[ref]}
        return {d for p, d in found.items() if d in self.seen.blobs and (MODELS[ref][p].named or d in before)}

    def _stays(self, model: ModelState) -> bool:
        return (model.ref, model.revision) in self.claimed

    def _shm(self, wanted: set[Digest], certain: set[Digest]) -> Fit:
        here = {d for d, b in self.seen.blobs.items() if b.in_shm}
        kept = {d for m in self.seen.models if self._stays(m) for d in digests(m)}
        mapped = {d for d in here if self.seen.blobs[d].segment in self.mapped}
        stuck = total(here & (kept | mapped | certain)) + self.draining + self._unknown()
        most, least = total(wanted - (here & certain)), total(wanted - here)
        # Two files of one model may be one blob that comes twice, where nobody says so.
        room = min(self.seen.status.shm.budget, self.shm_room)
        return Fit(stuck + most <= room, stuck + least > room)

    def _unknown(self) -> int:
        """In shared memory of blobs that were lost on NVMe."""
        lost = {f.digest for m in self.seen.models for f in m.files if f.segment and f.digest not in self.seen.blobs}
        return total(lost)

    def _nvme(self, wanted: set[Digest], certain: set[Digest]) -> Fit:
        here = set(self.seen.blobs)
        kept = {d for m in self.seen.models if self._stays(m) for d in digests(m)} & here
        # A snapshot goes as a whole, and none does of which something is wanted.
        near = {d for m in self.seen.models if digests(m) & certain for d in digests(m)} & here
        budget = self.seen.status.nvme.budget
        most, least = total(wanted - certain), total(wanted - here)
        return Fit(total(kept | near | certain) + most <= budget, total(kept | certain) + least > budget)


def digests(model: ModelState) -> set[Digest]:
    """Its blobs."""
    return {f.digest for f in model.files}


def total(blobs: Collection[Digest]) -> int:
    """Bytes that they take in a tier."""
    return sum(map(pages, blobs))
