"""`[hf]`"""

from __future__ import annotations

from typing import Literal

import msgspec

from weightd.daemon.config_reader import Reader
from weightd.sources.hub_access import HubOptions, checked_endpoint


class HfSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[hf]` as it is written."""

    endpoint: str = ""
    token_file: str = ""
    cache: str = "auto"
    offline: bool | Literal["auto"] = "auto"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


def read_hf(reader: Reader) -> HubOptions:
    """Without the credentials, which stand elsewhere. Raises ConfigError."""
    table = reader.table("hf")
    if "token" in table:
        raise reader.fault(
            ("hf", "token"), "no secret may stand in this file; write it into a file of mode 0600, named as token_file"
        )
    section = reader.section("hf", HfSection)
    cache = section.cache if section.cache in ("auto", "off") else str(reader.path(section.cache) or "off")
    return HubOptions(
        endpoint=reader.value(("hf", "endpoint"), checked_endpoint, section.endpoint) if section.endpoint else "",
        token_file=str(reader.path(section.token_file) or ""),
        cache=cache,
        offline=None if section.offline == "auto" else section.offline,
        include=section.include,
        exclude=section.exclude,
    )
