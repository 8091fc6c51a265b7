"""What a source is: something that resolves refs, and lets a thread read ranges of their files.

Resolving is asked on the event loop and must not block it. Reading happens in a receiver thread, straight into the
memory where the bytes will stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from weightd.core.digest import Digest
from weightd.core.manifest import FileSpec, Manifest
from weightd.core.quota import Spent
from weightd.core.refs import Ref


class Reader(Protocol):
    """One connection to the origin of one file, used by one thread at a time.

    `start`, then `readinto` until `length` bytes came, then `finish`; then `start` again, or `close`. After any
    exception only `close` is allowed. Raises SourceUnavailable for what a retry may mend (a broken connection, a
    stall, a short body, 5xx, 429), and SourceDenied, SourceNotFound, SourceChanged or SizeMismatch for what it
    cannot.
    """

    def start(self, offset: int, length: int) -> None:
        """Ask for `length` > 0 bytes from `offset`. The answer is validated before a byte of it is believed.

        For a file without `ranges`, `offset` must be 0 and `length` the file's size.
        """
        ...

    def readinto(self, view: memoryview) -> int:
        """Fill the front of `view`, which is writable and not longer than what is left; returns the count, > 0."""
        ...

    def finish(self) -> None:
        """All bytes were read: the body must end here. Raises SizeMismatch when it goes on."""
        ...

    def abort(self, *, slow: bool = False) -> None:
        """Called from another thread: a blocked `start` or `readinto` raises soon. `slow`: because it takes too long,
        so that where it reads from is not the best place. Idempotent."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class Shared(Protocol):
    """Memory that another process can map."""

    @property
    def fd(self) -> int:
        """Open for reading and writing."""
        ...

    def offset_of(self, view: memoryview) -> int:
        """Where in it a view of it begins, in bytes. Raises ValueError for one of other memory."""
        ...


class Source(Protocol):
    """All refs of some schemes."""

    async def resolve(self, ref: Ref) -> Manifest:
        """What `ref` means now, every file pinned. Raises NotFound, AccessDenied, Unavailable or InvalidArgument."""
        ...

    async def stat(self, ref: Ref, path: str, url: str, *, size: int | None, digest: Digest | None) -> FileSpec:
        """Pin one file at `url` that will be called `path`; a given `size` must match (SizeMismatch)."""
        ...

    def reader(self, file: FileSpec, memory: Shared | None = None) -> Reader:
        """A new Reader; opens nothing before its `start`. All its views must lie in `memory`, if that is given: then
        another process may receive into it."""
        ...

    def width(self, file: FileSpec) -> int:
        """How many readers of it, and of others from where it comes, are worth their while now; at least 1. It
        changes as more of them bring more, or are refused. Any thread; does not block."""
        ...

    def distrust(self, file: FileSpec) -> bool:
        """All bytes of it came, and they are wrong. True where they came from a copy of what its origin has: readers
        made from now on ask the origin. Any thread; does not block."""
        ...

    def quotas(self) -> Sequence[Spent]:
        """What of the quotas of its origins was spent since the start. Any thread; does not block."""
        ...

    async def close(self) -> None:
        """Idempotent."""
        ...


class FromOrigin:
    """What a Source answers that has no copies of what its origins have, and whose origins tell no quotas."""

    def distrust(self, file: FileSpec) -> bool:
        return False

    def quotas(self) -> Sequence[Spent]:
        return ()
