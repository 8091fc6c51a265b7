"""The files of a lease."""

from __future__ import annotations

import io
from typing import Any

from weightd.client.mapping import map_private, map_shared
from weightd.core.errors import LeaseEnded
from weightd.core.verification import Verification


class Claim:
    """What the files of one lease know about it."""

    __slots__ = ("released",)

    def __init__(self) -> None:
        self.released = False


class FileHandle:
    """One file of a leased model. Mapped when first asked for, and then for as long as anything refers to it.

    Without a lock, so that a fork in another thread cannot leave one locked: of two maps made at the same moment, one
    is dropped.
    """

    def __init__(
        self,
        path: str,
        claim: Claim,
        *,
        segment: str,
        offset: int,
        length: int,
        digest: str,
        verification: Verification,
    ) -> None:
        self.path = path
        self.segment = segment
        self.offset = offset
        self.length = length
        self.digest = digest
        self.verification = verification
        self._claim = claim
        self._shared: memoryview | None = None
        self._private: memoryview | None = None

    @property
    def buffer(self) -> memoryview:
        """The file's bytes, not writable: the pages that every worker shares. Raises as `mapping.map_shared`."""
        self._check()
        view = self._shared
        if view is None:
            view = self._shared = map_shared(self.segment, self.offset, self.length)
        return view

    @property
    def private(self) -> memoryview:
        """The file's bytes, writable: a page that is written becomes this process's own."""
        self._check()
        view = self._private
        if view is None:
            view = self._private = map_private(self.segment, self.offset, self.length)
        return view

    def _check(self) -> None:
        if self._claim.released:
            raise LeaseEnded(
                "the lease was released", file=self.path, remedy="Acquire the model again; views already taken stay."
            )

    def forget(self) -> None:
        """The maps go when the last view of them does."""
        self._shared = self._private = None

    def open(self) -> io.BufferedReader:
        """As an open binary file, over `buffer`."""
        return io.BufferedReader(_ViewReader(self.buffer))

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return f"<FileHandle {self.path} {self.length} bytes, {self.verification.name}>"


class _ViewReader(io.RawIOBase):
    """A raw file over a buffer; nothing is copied but what is read."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, target: Any, /) -> int:
        into = memoryview(target).cast("B")
        piece = self._view[self._at : self._at + len(into)]
        into[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        if start + offset < 0:
            raise ValueError(f"negative position {start + offset}")
        self._at = start + offset
        return self._at
