"""A worker's claim on a model, and the way to its tensors."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from weightd.client.files import Claim, FileHandle
from weightd.client.tensors import LocatedTensor, not_found, read_tables
from weightd.client.views import numpy_view, torch_view
from weightd.core.errors import FileNotInModel
from weightd.core.verification import Verification
from weightd.wire.convert import verification_from_pb
from weightd.wire.gen import weightd_pb2 as pb

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class OpenCall(Protocol):
    """The call that is the lease. Both methods return at once."""

    def is_open(self) -> bool: ...

    def end(self) -> None:
        """Idempotent; from any thread."""
        ...


class Lease:
    """A model in this process's memory, made by `Client.acquire` and `AsyncClient.acquire`.

    Ends with `release`, with its `with` block, with its client, or with this process; and when the daemon ends, which
    `alive` then tells. Views that were taken stay valid whatever happens, for as long as something refers to them.
    New ones are refused with LeaseEnded after `release`; and when the daemon has ended, of files not opened before,
    as it takes its segments with it.

    In a forked child tensors work as here; the claim remains the parent's: `alive` is False, `release` is local.
    Thread-safe.
    """

    def __init__(self, handles: pb.Handles, call: OpenCall) -> None:
        self.ref: str = handles.ref
        self.revision: str = handles.revision
        self.format: str = handles.format
        self.path = Path(handles.directory)
        """The model's directory, in which every file name resolves: for libraries that load by themselves."""
        self._handles = handles
        self._made: dict[str, FileHandle] | None = None
        self._claim = Claim()
        self._call = call
        self._pid = os.getpid()
        self._tensors: dict[str, LocatedTensor] | None = None
        self._end = weakref.finalize(self, _end_here, call, self._pid)
        self._end.atexit = False

    @property
    def alive(self) -> bool:
        """Whether the daemon holds the claim, as far as this process has heard."""
        return not self._claim.released and self._pid == os.getpid() and self._call.is_open()

    @property
    def files(self) -> Mapping[str, FileHandle]:
        """By path, relative to the model's directory."""
        return MappingProxyType(self._files())

    @property
    def verification(self) -> Verification:
        """How far the weakest of the files was verified."""
        return min((f.verification for f in self._files().values()), default=Verification.SHA256)

    def tensors(self) -> Mapping[str, LocatedTensor]:
        """All tensors by name, from the headers of the mapped files. Raises FormatError, LeaseEnded."""
        return MappingProxyType(self._table())

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        """A view of the shared pages that cannot be written. Raises TensorNotFound, TensorUnsupported, LeaseEnded."""
        info, file = self._find(name)
        return numpy_view(file.buffer, info)

    def torch(self, name: str) -> Tensor:
        """A torch tensor over the same pages; one that is written becomes this process's own copy.

        Raises as `lease[name]`, and DependencyMissing without torch.
        """
        info, file = self._find(name)
        return torch_view(file.private, info)

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor, as `torch` gives it."""
        return {name: torch_view(t.file.private, t.info) for name, t in self._table().items()}

    def file(self, path: str) -> FileHandle:
        """Raises FileNotInModel."""
        try:
            return self._files()[path]
        except KeyError:
            raise FileNotInModel(
                "the model has no such file", ref=self.ref, file=path, remedy=f"It has {', '.join(self._files())}."
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._table()

    def __iter__(self) -> Iterator[str]:
        return iter(self._table())

    def release(self) -> None:
        """End the claim. Returns at once, the daemon hears of it in a moment. Idempotent."""
        self._claim.released = True
        self._end()
        for file in (self._made or {}).values():
            file.forget()

    def _files(self) -> dict[str, FileHandle]:
        """Made when first asked for: an acquire costs the same for one file and for a hundred."""
        made = self._made
        if made is None:
            made = {f.path: _handle(f, self._claim) for f in self._handles.files}
            made = self._made = self._made or made
        return made

    def _table(self) -> dict[str, LocatedTensor]:
        tensors = self._tensors
        if tensors is None:
            tensors = self._tensors = read_tables(self._files().values())
        return tensors

    def _find(self, name: str) -> LocatedTensor:
        tensors = self._table()
        try:
            return tensors[name]
        except KeyError:
            pass
        raise not_found(name, tensors, self.ref)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    async def __aenter__(self) -> Lease:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        state = "released" if self._claim.released else "alive" if self.alive else "ended"
        return f"<Lease {self.ref} {self.revision} {len(self._handles.files)} files, {state}>"


def _end_here(call: OpenCall, pid: int) -> None:
    """In a forked child the claim is not its own to end."""
    if os.getpid() == pid:
        call.end()


def _handle(f: pb.FileHandle, claim: Claim) -> FileHandle:
    return FileHandle(
        f.path,
        claim,
        segment=f.segment,
        offset=f.offset,
        length=f.length,
        digest=f.digest,
        verification=verification_from_pb(f.verification),
    )
