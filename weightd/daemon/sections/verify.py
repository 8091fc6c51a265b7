"""`[verify]`"""

from __future__ import annotations

import msgspec

from weightd.core.period import parse_period
from weightd.daemon.config_reader import Reader, rate


class VerifySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[verify]` as it is written."""

    every: str = ""
    max_rate: str | int = "64MiB"


class VerifyConfig(msgspec.Struct, frozen=True):
    """In the background. `every` in seconds, 0 for never; `max_rate` in bytes per second, 0 for no limit."""

    every: float
    max_rate: int


def read_verify(reader: Reader) -> VerifyConfig:
    """Raises ConfigError."""
    section = reader.section("verify", VerifySection)
    return VerifyConfig(
        every=reader.value(("verify", "every"), parse_period, section.every),
        max_rate=reader.value(("verify", "max_rate"), rate, section.max_rate),
    )
