"""How far a file's bytes were checked (promise 1)."""

from __future__ import annotations

import enum
import functools


@functools.total_ordering
class Verification(enum.Enum):
    """Ordered as they stand here: a model is verified as far as the weakest of its files. The numbers stand in
    state.db and on the wire, and are no order."""

    SIZE = 1
    """The promised number of bytes arrived; the digest was computed and recorded as first seen."""
    CRC = 2
    """As SIZE, and a full-object CRC given by the source matched. It finds damage; it is no protection from malice."""
    GIT = 4
    """As SIZE, and the id of a git blob (SHA-1) given by the source matched. Who could choose what both are can make
    two files of one id; nobody can make another of an id that is given."""
    SHA256 = 3
    """The SHA-256 given by the source, the configuration or the caller matched."""

    def __lt__(self, other: Verification) -> bool:
        order = list(Verification)
        return order.index(self) < order.index(other)
