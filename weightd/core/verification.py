"""How far a file's bytes were checked (promise 1)."""

from __future__ import annotations

import enum


class Verification(enum.IntEnum):
    """Ordered: a model is verified as far as the weakest of its files."""

    SIZE = 1
    """The promised number of bytes arrived; the digest was computed and recorded as first seen."""
    CRC = 2
    """As SIZE, and a full-object CRC given by the source matched. It finds damage; it is no protection from malice."""
    SHA256 = 3
    """The SHA-256 given by the source, the configuration or the caller matched."""
