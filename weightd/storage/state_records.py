"""What the rows of state.db say."""

from __future__ import annotations

import msgspec

from weightd.core.digest import Digest
from weightd.core.manifest import Manifest
from weightd.core.parts import ALIGN
from weightd.core.verification import Verification
from weightd.storage.protocols import SegmentIdentity


class BlobRecord(msgspec.Struct, frozen=True):
    """A committed blob. `checksums` are the xxh3-128 of its parts of `part_size` bytes, 16 bytes each, in order.

    `last_verified`: Unix time at which all of it was compared with its digest, 0 when nobody knows.
    """

    digest: Digest
    size: int
    verification: Verification
    part_size: int
    checksums: bytes
    last_verified: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether it can be what was recorded: one checksum for each part."""
        if self.part_size <= 0 or self.part_size % ALIGN or self.size < 0:
            return False
        return len(self.checksums) == 16 * -(-self.size // self.part_size)


class ModelRecord(msgspec.Struct, frozen=True):
    """A snapshot whose blobs were all committed. `ref` is what the user named, credentials and all; the manifest's is
    for people. `digests` by file path. `current`: of all snapshots of its ref, the one that it means now."""

    ref: str
    manifest: Manifest
    digests: dict[str, Digest]
    last_used: float = 0.0
    current: bool = True


class SegmentRecord(msgspec.Struct, frozen=True):
    """A segment that was SEALED with all bytes of a blob, during the boot of this id (`owners.boot_id`)."""

    digest: Digest
    name: str
    device: int
    inode: int
    boot: str

    @property
    def identity(self) -> SegmentIdentity:
        return SegmentIdentity(self.device, self.inode)
