"""Sizes and budgets as people write them in a configuration."""

from __future__ import annotations

import re
from typing import Final

import msgspec

UNITS: Final = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_LARGEST: Final = 1 << 60


def parse_size(value: int | str) -> int:
    """Bytes from `16777216`, "16MiB", "1.5 GB". Raises ValueError that says how to write it."""
    if isinstance(value, int):
        size = float(value)
    else:
        match = _SIZE.fullmatch(value.strip())
        if match is None or match[2].lower() not in UNITS:
            raise ValueError(f'{value!r} is not a size; write bytes, or a number and a unit such as "16MiB" or "1GB"')
        size = float(match[1]) * UNITS[match[2].lower()]
    if not 0 < size < _LARGEST:
        raise ValueError(f"{value!r} is out of range; a size is more than 0 bytes and less than 1 EiB")
    return int(size)


def parse_percent(value: str) -> float | None:
    """Of "80%"; None for what is no percentage. Raises ValueError for one out of range."""
    match = _PERCENT.fullmatch(value.strip())
    if match is None:
        return None
    percent = float(match[1])
    if not 0 < percent <= 100:
        raise ValueError(f"{value!r} is out of range; a percentage is more than 0 and at most 100")
    return percent


class BudgetSpec(msgspec.Struct, frozen=True):
    """What the configuration says; exactly one is set, none means "auto"."""

    size: int | None = None
    """Bytes."""
    percent: float | None = None
    """Of the file system's size."""

    def __str__(self) -> str:
        if self.size is not None:
            return str(self.size)
        return "auto" if self.percent is None else f"{self.percent:g}%"


def parse_budget(value: int | str) -> BudgetSpec:
    """ "auto", a percentage of the file system such as "80%", or a size. Raises ValueError."""
    if isinstance(value, str):
        if value.strip().lower() == "auto":
            return BudgetSpec()
        percent = parse_percent(value)
        if percent is not None:
            return BudgetSpec(percent=percent)
    try:
        return BudgetSpec(size=parse_size(value))
    except ValueError as e:
        raise ValueError(f'{e}, or "auto", or "80%" of the file system') from None
