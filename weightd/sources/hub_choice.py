"""Which files of a commit a ref stands for: one of them, those of an index, or those of a directory."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weightd.core.errors import SourceNotFound, WeightdError
from weightd.core.hub_ref import HubRef
from weightd.core.selection import INDEX, format_of, narrowed, select
from weightd.sources import safetensors_repo as repo
from weightd.sources.hub_api import HubFile

_INDEX_ENDING = ".safetensors.index.json"


class Choice:
    """Of the files of a commit. `single` is the one file that the ref names. Else `files` are those below `folder`,
    all paths from the root; `index` is the one of them whose content says which weights there are.

    `include` and `exclude` hold where the ref has none itself. Raises SourceNotFound where there are none,
    SelectionAmbiguous.
    """

    def __init__(
        self, ref: HubRef, listed: Sequence[HubFile], include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        self._ref = ref
        self._all = {f.path: f for f in listed}
        named = self._all.get(ref.path)
        self.single = named if named is not None and not ref.path.endswith(_INDEX_ENDING) else None
        self._named = named if self.single is None else None
        self.folder = _folder_of(ref.path, is_file=named is not None)
        if ref.include or ref.exclude:
            include, exclude = ref.include, ref.exclude
        self._included = bool(include)
        self.files = [] if self.single else self._below(include, exclude)
        self.index = self._index()

    def _below(self, include: Sequence[str], exclude: Sequence[str]) -> list[HubFile]:
        cut = len(self.folder)
        there = [f for path, f in self._all.items() if path.startswith(self.folder)]
        if not there:
            raise self.missing(self._ref.path)
        relative = [msgspec.structs.replace(f, path=f.path[cut:]) for f in there]
        found = [self._all[self.folder + f.path] for f in select(relative, include, exclude)]
        if self._named is not None:
            return [self._named, *(f for f in found if not format_of(f.path) and f.path != self._named.path)]
        model = any(format_of(f.path) or f.path == self.folder + INDEX for f in found)
        if not found or not (self._included or model):
            raise self._nothing()
        return found

    def _index(self) -> HubFile | None:
        if self._named is not None:
            return self._named
        if self.single is not None or self._included:
            return None
        return next((f for f in self.files if f.path == self.folder + INDEX), None)

    def by_index(self, shards: Sequence[str]) -> list[HubFile]:
        """`files`, the weights beside the index being its `shards`. Raises SourceNotFound that names a missing one."""
        assert self.index is not None
        for shard in shards:
            if self.folder + shard not in self._all:
                where = f"hf://{self._ref.repo}@{self._ref.revision}"
                raise repo.not_found(where, self.folder + shard, f"the index {self.index.path} names it")
        if self._named is not None:
            return [*self.files, *(self._all[self.folder + shard] for shard in shards)]
        return narrowed(self.files, self.index.path, shards)

    def missing(self, path: str) -> WeightdError:
        """For a file that the commit does not have."""
        return SourceNotFound(
            f"{self._ref.repo} at {self._ref.revision!r} has no {path or 'files'}", file=path, remedy="Check the path."
        )

    def _nothing(self) -> WeightdError:
        where = f"{self._ref.repo} at {self._ref.revision!r}"
        if self._included:
            return SourceNotFound(f"no file of {where} matches", remedy="Check ?include= and ?exclude=, or hf.include.")
        names = ", ".join(sorted(self._all)[:10])
        return SourceNotFound(
            f"{where} has no weights in a format that is known: {names}",
            remedy="Say which files are wanted, as in ?include=*.onnx&include=*.json.",
        )


def _folder_of(path: str, *, is_file: bool) -> str:
    """With "/" at its end; "" for the root."""
    folder = path.rpartition("/")[0] if is_file else path.rstrip("/")
    return f"{folder}/" if folder else ""
