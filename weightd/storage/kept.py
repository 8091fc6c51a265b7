"""What waits to be resumed: whose it is, how much room it takes, and when it was last used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weightd.storage.pages import footprint

LEDGER: Final = "ledger"
"""The file that says which parts of an ingest's directory can be proven."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An ingest that waits to be resumed: `size` in bytes on disk, `used` seconds since the epoch."""

    name: str
    size: int
    used: float

    @property
    def stem(self) -> str:
        """What `name_of` gives of its identity."""
        return self.name.partition(".")[0]


def name_of(identity: str) -> str:
    """The directory name of an identity, which may be long and hold anything."""
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def by_stem(kept: Iterable[Kept]) -> dict[str, int]:
    """Bytes on disk of what is kept."""
    sizes: dict[str, int] = {}
    for k in kept:
        sizes[k.stem] = sizes.get(k.stem, 0) + k.size
    return sizes


def missing(size: int, identities: Iterable[str], kept: Mapping[str, int]) -> int:
    """Bytes that an ingest of `size` bytes still takes on disk; `kept` as `by_stem` returns it."""
    here = sum(kept.get(stem, 0) for stem in set(map(name_of, identities))) if kept else 0
    return max(0, footprint(size) - here)


def used(path: Path) -> float:
    """When a part was last recorded."""
    for place in (path / LEDGER, path):
        try:
            return place.stat(follow_symlinks=False).st_mtime
        except OSError:
            continue
    return 0.0


def _allocated(path: Path) -> int:
    try:
        return path.stat(follow_symlinks=False).st_blocks * 512
    except OSError:
        return 0


def allocated_below(place: Path) -> int:
    """0 for a directory that is resumed, and so renamed, at this moment."""
    try:
        return sum(map(_allocated, place.iterdir()))
    except FileNotFoundError:
        return 0
