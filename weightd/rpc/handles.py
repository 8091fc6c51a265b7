"""Answers to acquire, as ready bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from weightd.engine.api import FileState, ModelState
from weightd.rpc.convert import handles_to_pb
from weightd.wire.gen import weightd_pb2 as pb

LIMIT = 256
"""Answers kept; the one that was used longest ago goes first."""


class _Ready(NamedTuple):
    files: tuple[FileState, ...]
    directory: str
    segment_directory: str
    answer: bytes

    def fits(self, model: ModelState) -> bool:
        return (
            self.files == model.files
            and self.directory == model.directory
            and self.segment_directory == model.segment_directory
        )


class ReadyHandles:
    """One serialized AcquireEvent per model and revision; made again when its segments or anything else differ."""

    def __init__(self) -> None:
        self._ready: OrderedDict[tuple[str, str], _Ready] = OrderedDict()

    def of(self, model: ModelState) -> bytes:
        """An AcquireEvent with the handles of a model that is resident in shared memory."""
        key = (model.ref, model.revision)
        ready = self._ready.get(key)
        if ready is None or not ready.fits(model):
            answer = pb.AcquireEvent(handles=handles_to_pb(model)).SerializeToString()
            ready = self._ready[key] = _Ready(model.files, model.directory, model.segment_directory, answer)
        self._ready.move_to_end(key)
        if len(self._ready) > LIMIT:
            self._ready.popitem(last=False)
        return ready.answer

    def __repr__(self) -> str:
        return f"<ReadyHandles of {len(self._ready)}>"
