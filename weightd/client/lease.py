"""A worker's claim on a model, and the way to its tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from weightd.client.files import FileHandle
from weightd.client.hold import Hold, LeaseState
from weightd.client.tensors import LocatedTensor, not_found, read_tables
from weightd.client.views import numpy_view, torch_view
from weightd.core.errors import FileNotInModel, WeightdError
from weightd.core.verification import Verification

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from weightd.client.prefault import Prefault


class Lease:
    """A model in this process's memory, made by `Client.acquire` and `AsyncClient.acquire`.

    Ends with `release`, with its `with` block, with its client, or with this process. Views that were taken stay valid
    whatever happens, for as long as something refers to them; new ones are refused with LeaseEnded after `release`.

    When the daemon ends, by a signal, an upgrade or a crash, the client claims the same snapshot again from the next
    one, by itself and in the background, for as long as that takes (`state`):

        ALIVE ─ the call ended ─► REGAINING ─► ALIVE     the daemon has the snapshot: same revision, same digests
                                            └► LOST      it has it no more, or refuses it: `error` says why, for good
        any of them ─ release, or the client's close ─► RELEASED

    Files mapped before keep their maps. Others are mapped from the segments that the daemon names then; with `Client`,
    whoever needs one of those while its claim is being regained waits for that, up to the client's `reconnect` seconds,
    and gets LeaseEnded after that; with `AsyncClient`, at once. A LOST lease protects nothing any more: the memory goes
    with the last map of it, and files not mapped yet may be gone. Acquire anew for what the ref means now.

    In a forked child tensors work as here; the claim remains the parent's (INHERITED): `release` is local.
    Thread-safe.
    """

    def __init__(self, hold: Hold) -> None:
        handles = hold.claim.handles
        self.ref: str = handles.ref
        self.revision: str = handles.revision
        self.format: str = handles.format
        self.prefaulted: Prefault | None = None
        """What the last `prefault` took."""
        self._made: dict[str, FileHandle] | None = None
        self._claim = hold.claim
        self._hold = hold
        self._tensors: dict[str, LocatedTensor] | None = None
        self._end = weakref.finalize(self, hold.end)
        self._end.atexit = False

    @property
    def state(self) -> LeaseState:
        """As far as this process has heard. A str: "alive", "regaining", "lost", "released" or "inherited"."""
        return LeaseState.RELEASED if self._claim.released else self._hold.state

    @property
    def alive(self) -> bool:
        """Whether the daemon holds the claim, as far as this process has heard."""
        return self.state is LeaseState.ALIVE

    @property
    def error(self) -> WeightdError | None:
        """Why the claim is LOST; else None."""
        return self._hold.error

    @property
    def path(self) -> Path:
        """The model's directory, in which every file name resolves: for libraries that load by themselves. As the
        daemon sees it."""
        return Path(self._claim.handles.directory)

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

    def prefault(
        self, files: Iterable[str] | None = None, *, threads: int | None = None, private: bool = False
    ) -> Prefault:
        """Map all pages at once, of all files or of these, so that their first use meets no page fault. `private`: of
        the maps that torch tensors are on, in place of those of `lease[name]`.

        `threads`: as many as there are cores, up to 8, unless given. None of them holds the interpreter's lock.

        It costs 2 MiB of page tables for each GiB, in this process, where pages have 4 KiB (huge pages: next to
        nothing); no memory for the weights, which are in shared memory already. Measured, 4 KiB pages, Linux 6.18: 70
        to 100 ms for each GiB and thread.

        Raises FileNotInModel, LeaseEnded, InvalidArgument, Exhausted (no memory for page tables), Corruption.
        """
        from weightd.client.prefault import prefault

        chosen = self._files().values() if files is None else [self.file(path) for path in files]
        self.prefaulted = prefault([f.private if private else f.buffer for f in chosen], threads)
        return self.prefaulted

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
            made = {f.path: FileHandle(f, self._claim) for f in self._claim.handles.files}
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
        return f"<Lease {self.ref} {self.revision} {len(self._claim.handles.files)} files, {self.state}>"
