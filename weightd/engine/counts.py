"""What happened since the start."""

from __future__ import annotations

from dataclasses import dataclass

from weightd.engine.api import Counters


@dataclass(slots=True)
class Counts:
    """Each thing is counted where it happens; see `api.Counters`. On the event loop."""

    bytes_fetched: int = 0
    bytes_loaded: int = 0
    acquires: int = 0
    hits: int = 0
    evictions: int = 0
    adopted: int = 0

    def counters(self) -> Counters:
        """As of now."""
        return Counters(self.bytes_fetched, self.bytes_loaded, self.acquires, self.hits, self.evictions, self.adopted)
