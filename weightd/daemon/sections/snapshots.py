"""`[snapshots]`"""

from __future__ import annotations

import msgspec

from weightd.daemon.config_reader import Reader, whole


class SnapshotsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[snapshots]` as it is written."""

    keep: int = 1


class SnapshotsConfig(msgspec.Struct, frozen=True):
    """`keep`: old snapshots of a ref that stay beside its current one, though nobody leases them."""

    keep: int


def read_snapshots(reader: Reader) -> SnapshotsConfig:
    """Raises ConfigError."""
    section = reader.section("snapshots", SnapshotsSection)
    return SnapshotsConfig(keep=reader.value(("snapshots", "keep"), whole(0, 1000), section.keep))
