"""`[fetch]`"""

from __future__ import annotations

import msgspec

from weightd.core.parts import ALIGN
from weightd.daemon.config_reader import Reader, between, rate, whole
from weightd.daemon.sizes import parse_size


class FetchSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[fetch]` as it is written."""

    part_size: str | int = "16MiB"
    receivers: int = 16
    processes: int = 0
    transfers: int = 2
    hash_threads: int = 2
    write_threads: int = 2
    stall_timeout_s: float = 30.0
    retries: int = 4
    max_rate: str | int = 0


class FetchConfig(msgspec.Struct, frozen=True):
    """Of one transfer, but for `transfers`: how many may run at once. `part_size` in bytes, `retries` per part."""

    part_size: int
    receivers: int
    processes: int
    """In which all transfers receive over HTTP; 0: in the receivers' threads."""
    transfers: int
    hash_threads: int
    write_threads: int
    stall_timeout_s: float
    retries: int
    max_rate: int
    """Bytes per second of all transfers together, 0 for no limit."""


def read_fetch(reader: Reader) -> FetchConfig:
    """Raises ConfigError."""
    section = reader.section("fetch", FetchSection)

    def number(key: str, low: int, high: int) -> int:
        return reader.value(("fetch", key), whole(low, high), getattr(section, key))

    return FetchConfig(
        part_size=reader.value(("fetch", "part_size"), _part_size, section.part_size),
        receivers=number("receivers", 1, 256),
        processes=number("processes", 0, 64),
        transfers=number("transfers", 1, 64),
        hash_threads=number("hash_threads", 1, 64),
        write_threads=number("write_threads", 1, 64),
        stall_timeout_s=reader.value(("fetch", "stall_timeout_s"), between(0.1, 3600.0), section.stall_timeout_s),
        retries=number("retries", 0, 100),
        max_rate=reader.value(("fetch", "max_rate"), rate, section.max_rate),
    )


def _part_size(value: int | str) -> int:
    size = parse_size(value)
    if size % ALIGN or not (1 << 20) <= size <= (1 << 30):
        raise ValueError(f"{value!r}: a part is a multiple of {ALIGN} bytes, from 1MiB to 1GiB")
    return size
