"""What is held: blobs, and the snapshots of refs that are made of them. As data on the event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from weightd.core.digest import Digest
from weightd.core.lifecycle import RESIDENCY, Lifecycle, Residency
from weightd.core.manifest import FileSpec, Manifest
from weightd.core.policy import Policy, Rule
from weightd.core.refs import Ref
from weightd.core.tenants import NOBODY, Scope
from weightd.engine.api import FileState, ModelState, Tier
from weightd.storage.pages import footprint
from weightd.storage.protocols import Segment
from weightd.storage.state import BlobRecord


class Blob:
    """One committed blob and where it is resident. It is in the catalog exactly while it is on NVMe."""

    __slots__ = ("nvme", "record", "segment", "shm")

    def __init__(self, record: BlobRecord) -> None:
        self.record = record
        self.nvme = Lifecycle("nvme", RESIDENCY, Residency.ABSENT)
        self.shm = Lifecycle("shm", RESIDENCY, Residency.ABSENT)
        self.segment: Segment | None = None

    @property
    def in_shm(self) -> bool:
        return self.shm.state is Residency.RESIDENT

    @property
    def footprint(self) -> int:
        """Bytes that it takes in a tier: whole pages."""
        return footprint(self.record.size)

    def arrive_on_nvme(self) -> None:
        """It is there, as a whole."""
        self.nvme.to(Residency.FILLING)
        self.nvme.to(Residency.RESIDENT)

    def inherit(self, dropped: Blob) -> None:
        """Its segment, where there is one: the same bytes, which may be mapped."""
        if dropped.in_shm and self.shm.state is Residency.ABSENT:
            for life, state in (dropped.shm, Residency.EVICTING), (self.shm, Residency.FILLING):
                life.to(state)
            self.segment, dropped.segment = dropped.segment, None
            self.shm.to(Residency.RESIDENT)
            dropped.shm.to(Residency.ABSENT)

    def checksums(self) -> list[bytes]:
        """xxh3-128 of each part."""
        raw = self.record.checksums
        return [raw[i : i + 16] for i in range(0, len(raw), 16)]

    def __repr__(self) -> str:
        return f"<Blob {self.record.digest[:19]} nvme={self.nvme.state.name} shm={self.shm.state.name}>"


class Model:
    """A snapshot of a ref, all of its blobs committed."""

    def __init__(self, ref: Ref, manifest: Manifest, blobs: dict[str, Blob], directory: Path, used: float) -> None:
        self.ref, self.manifest, self.directory = ref, manifest, directory
        self.current = True
        """Whether it is what the ref means here; else there is a newer one, and this one goes by policy."""
        self.users = 0
        """Who needs it to stay meanwhile: loads, verifications."""
        self.linked = False
        """Whether the links in `directory` lead where its blobs are now."""
        self.leases = 0
        self.awaited = False
        """Its segments were adopted, and those who had leased it may come again."""
        self.rule = Rule()
        self.pinned = False
        self.tenants: Scope = NOBODY
        """Who may see its ref."""
        self.entitled = False
        """Whether all of its bytes are known to stand for its ref; see `engine.tenant_rights`."""
        self.segment_directory = ""
        self.last_used = used
        self._files: tuple[FileState, ...] | None = None
        self._in_shm: bool | None = None
        self.blobs = blobs

    @property
    def blobs(self) -> dict[str, Blob]:
        """By file path."""
        return self._blobs

    @blobs.setter
    def blobs(self, blobs: dict[str, Blob]) -> None:
        self._blobs, self._set = blobs, frozenset(blobs.values())
        self.moved()

    def replace(self, blob: Blob) -> None:
        """One of the same digest was dropped, and has come anew."""
        dropped = {b for b in self._set if b.record.digest == blob.record.digest and b is not blob}
        if dropped:
            blob.inherit(dropped.pop())
            self.blobs = {p: blob if b.record.digest == blob.record.digest else b for p, b in self.blobs.items()}

    def has(self, blob: Blob) -> bool:
        """Asked of every model whenever a blob moves."""
        return blob in self._set

    @property
    def in_shm(self) -> bool:
        if self._in_shm is None:
            self._in_shm = all(b.in_shm for b in self._set)
        return self._in_shm

    def resident(self, tier: Tier) -> bool:
        """Whether all of it is there; a segment may have been dropped since it was brought."""
        return tier is Tier.NVME or self.in_shm

    @property
    def ready(self) -> bool:
        """Whether it can be leased at once."""
        return self.in_shm and self.linked

    @property
    def hot(self) -> bool:
        """As the configuration says."""
        return self.rule.policy is Policy.HOT

    @property
    def claimed(self) -> bool:
        return bool(self.leases or self.users or self.awaited)

    @property
    def kept_hot(self) -> bool:
        """Pinned by an operator or by the configuration, which means what its ref means now."""
        return self.current and (self.pinned or self.hot)

    @property
    def digests(self) -> dict[str, Digest]:
        """By file path."""
        return {path: blob.record.digest for path, blob in self.blobs.items()}

    def moved(self) -> None:
        """The residency or verification of one of its blobs changed."""
        self.renew()
        self._in_shm = None
        self.linked = False

    def renew(self) -> None:
        """Something else that `state` tells of one of its blobs changed."""
        self._files = None

    def state(self) -> ModelState:
        """As data. Cheap while nothing moved: an acquire makes one."""
        if self._files is None:
            self._files = tuple(_file_state(f, self.blobs[f.path]) for f in self.manifest.files)
        return ModelState(
            ref=self.ref.shown,
            revision=self.manifest.revision,
            current=self.current,
            format=self.manifest.format,
            directory=str(self.directory),
            leases=self.leases,
            last_used=self.last_used,
            files=self._files,
            policy=self.rule.policy,
            pinned=self.pinned,
            segment_directory=self.segment_directory,
            tenants=self.tenants,
        )


def _file_state(file: FileSpec, blob: Blob) -> FileState:
    return FileState(
        path=file.path,
        size=file.size,
        digest=blob.record.digest,
        verification=blob.record.verification,
        shm=blob.shm.state,
        nvme=blob.nvme.state,
        segment=blob.segment.name if blob.in_shm and blob.segment else "",
        last_verified=blob.record.last_verified,
        git_id=file.git_id,
    )


class Snapshots:
    """Every snapshot that is held: of each ref one that is current, and old ones beside it, the oldest first."""

    def __init__(self) -> None:
        self.current: dict[str, Model] = {}
        """By the text of the ref."""
        self.old: dict[str, list[Model]] = {}

    def __iter__(self) -> Iterator[Model]:
        yield from self.current.values()
        for models in self.old.values():
            yield from models

    def __len__(self) -> int:
        return len(self.current) + sum(map(len, self.old.values()))

    def __contains__(self, model: Model) -> bool:
        return model is self.find(model.ref, model.manifest.revision)

    def of(self, ref: Ref) -> list[Model]:
        """The current one first, then the old ones, the newest first."""
        current = self.current.get(ref.text)
        return ([current] if current else []) + self.old.get(ref.text, [])[::-1]

    def find(self, ref: Ref, revision: str) -> Model | None:
        return next((m for m in self.of(ref) if m.manifest.revision == revision), None)

    def add_old(self, model: Model) -> None:
        """As the newest of the old ones."""
        model.current = False
        model.renew()
        self.old.setdefault(model.ref.text, []).append(model)

    def switch(self, model: Model) -> None:
        """Make it the current one, whether it was held before or not; the one that was is now the newest old one."""
        former = self.current.get(model.ref.text)
        if former is model:
            return
        self.remove(model)
        self.current[model.ref.text] = model
        model.current = True
        if former is not None:
            self.add_old(former)

    def remove(self, model: Model) -> Callable[[], None]:
        """Nothing else changes: a ref may have old ones alone. Returns what puts it back where it was, unless others
        of its ref have come or gone since."""
        text = model.ref.text
        current, old = self.current.get(text), self.old.get(text, [])
        if current is model:
            del self.current[text]
        self._put_old(text, [m for m in old if m is not model])

        def put_back() -> None:
            if current is model:
                self.current[text] = model
            self._put_old(text, old)
            model.moved()

        return put_back

    def _put_old(self, text: str, models: list[Model]) -> None:
        if models:
            self.old[text] = models
        else:
            self.old.pop(text, None)
