"""Periods as people write them in a configuration."""

from __future__ import annotations

import re
from typing import Final

PERIODS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_PERIOD = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")
_LONGEST: Final = 3650 * 86400.0


def parse_period(value: str) -> float:
    """Seconds from "90s", "30m", "12h", "7d", "2w"; 0 for "", which is never. Raises ValueError that says how to
    write it."""
    if not value.strip():
        return 0.0
    match = _PERIOD.fullmatch(value.strip())
    # As they are written: "1M" is a month to some.
    if match is None or match[2] not in PERIODS:
        raise ValueError(f'{value!r} is not a period; write a number and s, m, h, d or w, such as "12h" or "7d"')
    period = float(match[1]) * PERIODS[match[2]]
    if not 1.0 <= period <= _LONGEST:
        raise ValueError(f"{value!r} is out of range; a period is from 1s to 3650d")
    return period
