"""Which byte ranges a file is moved in."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
DEFAULT_PART = 16 * MIB
"""The range size that the field uses (8-16 MB per AWS's guidance); a multiple of every page size in use."""
ALIGN = 4096
"""Offsets and lengths of O_DIRECT writes; parts begin at multiples of it."""


LEAST_PART = 2 * MIB
"""A smaller range costs more to ask for than it saves at the end of a file."""
ROUNDS = 2
"""Ranges for each of the requests that may be under way. Each costs a round trip; what is left to the slowest at the
end is taken over by the others (core.endgame)."""


@dataclass(frozen=True, slots=True)
class Part:
    """`index` counts from 0; `offset` and `length` are bytes within the file."""

    index: int
    offset: int
    length: int


def fitting_part(size: int, most: int, requests: int, stored: int = 0) -> int:
    """Bytes of a part where `size` bytes, of one file or of several, are brought by up to `requests` at a time: at most
    `most`, a multiple of ALIGN; less where there would else be too few parts to share. `stored`: how the origin keeps a
    file in pieces, 0 where nothing is known; where that can be, no part then lies across the end of a piece."""
    fair = -(-size // (ROUNDS * max(1, requests)))
    fitting = min(most, max(LEAST_PART, -(-fair // MIB) * MIB))
    return _of_stored(fitting, stored) or fitting


def _of_stored(most: int, stored: int) -> int:
    """The largest multiple of `stored`, or part of it, that is at most `most`; 0 where none is aligned, or large
    enough."""
    if 0 < stored <= most:
        return 0 if stored % ALIGN else most // stored * stored
    for pieces in range(2, stored // LEAST_PART + 1):
        if stored % (pieces * ALIGN) == 0 and stored // pieces <= most:
            return stored // pieces
    return 0


def plan_parts(size: int, part_size: int = DEFAULT_PART) -> list[Part]:
    """Contiguous parts of `part_size` bytes, the last one shorter; none for an empty file."""
    if part_size <= 0 or part_size % ALIGN:
        raise ValueError(f"part size {part_size} is not a positive multiple of {ALIGN}")
    return [Part(i, o, min(part_size, size - o)) for i, o in enumerate(range(0, size, part_size))]
