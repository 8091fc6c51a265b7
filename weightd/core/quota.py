"""What an origin's quotas were spent on."""

from __future__ import annotations

import msgspec


class Spent(msgspec.Struct, frozen=True):
    """Of one bucket of one origin: the requests since the start, and what was told last; `left` -1 where nothing was.
    `waits`: how often nothing was left."""

    origin: str
    bucket: str
    requests: int
    left: int
    waits: int
