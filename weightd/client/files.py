"""The files of a lease."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from weightd.client.mapping import Place, map_private, map_shared
from weightd.core.errors import LeaseEnded
from weightd.core.verification import Verification
from weightd.wire.convert import verification_from_pb
from weightd.wire.gen import weightd_pb2 as pb


class Claim:
    """What the files of one lease know about it: whether it was released, and where their bytes are now.

    `directory`: where segments are in this process, whatever the daemon says. `settled`: see `hold.Keeper`.
    """

    __slots__ = ("_directory", "_places", "handles", "released", "settled")

    def __init__(self, handles: pb.Handles, directory: str = "") -> None:
        self._directory = directory
        self._places: tuple[pb.Handles, dict[str, Place]] | None = None
        self.handles = handles
        """As the daemon gave them last."""
        self.released = False
        self.settled: Callable[[], bool] | None = None

    def place(self, path: str) -> Place:
        """Of a file's bytes."""
        handles, places = self.handles, self._places
        if places is None or places[0] is not handles:
            where = self._directory or handles.segment_directory
            places = self._places = (handles, {f.path: Place(f.segment, f.offset, where) for f in handles.files})
        return places[1][path]


class FileHandle:
    """One file of a leased model. Mapped when first asked for, and then for as long as anything refers to it.

    `segment` and `offset` are where it would be mapped from now; they may change when a lease is regained.

    Without a lock, so that a fork in another thread cannot leave one locked: of two maps made at the same moment, one
    is dropped.
    """

    def __init__(self, file: pb.FileHandle, claim: Claim) -> None:
        self.path: str = file.path
        self.length: int = file.length
        self.digest: str = file.digest
        self.verification: Verification = verification_from_pb(file.verification)
        self._claim = claim
        self._shared: memoryview | None = None
        self._private: memoryview | None = None

    @property
    def segment(self) -> str:
        return self._claim.place(self.path).segment

    @property
    def offset(self) -> int:
        return self._claim.place(self.path).offset

    @property
    def buffer(self) -> memoryview:
        """The file's bytes, not writable: the pages that every worker shares. Raises as `mapping.map_shared`."""
        self._check()
        view = self._shared
        if view is None:
            view = self._shared = self._map(map_shared)
        return view

    @property
    def private(self) -> memoryview:
        """The file's bytes, writable: a page that is written becomes this process's own."""
        self._check()
        view = self._private
        if view is None:
            view = self._private = self._map(map_private)
        return view

    def _map(self, how: Callable[[Place, int], memoryview]) -> memoryview:
        """A segment that is gone may be elsewhere since a restart of the daemon, or soon."""
        place = self._claim.place(self.path)
        try:
            return how(place, self.length)
        except LeaseEnded:
            settled = self._claim.settled
            if self._claim.place(self.path) == place and (settled is None or not settled()):
                raise
        return how(self._claim.place(self.path), self.length)

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
