"""`[sources]`"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from weightd.core.allow import EVERYTHING, AllowList
from weightd.daemon.config_reader import Reader


class SourcesSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[sources]` as it is written."""

    allow: tuple[str, ...] = (EVERYTHING,)


class SourcesConfig(msgspec.Struct, frozen=True):
    """`allow`: patterns of refs, checked; see `weightd.core.allow`."""

    allow: tuple[str, ...]

    def allow_list(self, models: Iterable[str]) -> AllowList:
        """With the names of the configured models, which are allowed in any case."""
        return AllowList(self.allow, models)


def read_sources(reader: Reader) -> SourcesConfig:
    """Raises ConfigError."""
    section = reader.section("sources", SourcesSection)
    reader.value(("sources", "allow"), AllowList, section.allow)
    return SourcesConfig(allow=section.allow)
