"""The in-memory twin of a source: bytes by URL, and hooks where faults can be put in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from weightd.core.digest import Digest
from weightd.core.errors import SourceChanged, SourceNotFound, SourceUnavailable, WeightdError
from weightd.core.manifest import FileSpec, Manifest, Validator, make_manifest
from weightd.core.refs import Ref, redact
from weightd.sources import net, urls
from weightd.sources import safetensors_repo as repo
from weightd.sources.protocols import FromOrigin, Shared

WIDTH = 4
Hook = Callable[[str, int, int], None]
"""Called with a URL, an offset and a length; may raise a WeightdError, or block."""


def nothing(url: str, offset: int, length: int) -> None:
    """The hook that does nothing."""


class MemorySource(FromOrigin):
    """Implements `weightd.sources.protocols.Source` for every URL in `files`, a dict that tests may change.

    `on_stat` is called before a file is pinned (offset and length 0), `on_start` in every `start`, `on_read` in every
    `readinto`. `ranges` False makes an origin without range support. `reads` lists each (url, offset, length).
    """

    def __init__(self, files: dict[str, bytes] | None = None, *, ranges: bool = True) -> None:
        self.files = {} if files is None else files
        self.ranges = ranges
        self.reads: list[tuple[str, int, int]] = []
        self.on_stat: Hook = nothing
        self.on_start: Hook = nothing
        self.on_read: Hook = nothing

    async def resolve(self, ref: Ref) -> Manifest:
        try:
            files = await self._files(ref)
            return make_manifest(ref.shown, repo.format_of(f.path for f in files), files)
        except WeightdError as e:
            raise e.about(ref=ref.shown) from None

    async def _files(self, ref: Ref) -> list[FileSpec]:
        kind = urls.shape(ref.text)
        folder = _Folder(self, urls.directory(ref.text))
        if kind is urls.Shape.DIRECTORY:
            return await repo.whole_directory(folder)
        file = await self.stat(ref, urls.name(ref.text), ref.text, size=None, digest=None)
        return await repo.of_index(folder, file) if kind is urls.Shape.INDEX else [file]

    async def stat(self, ref: Ref, path: str, url: str, *, size: int | None, digest: Digest | None) -> FileSpec:
        try:
            found = self.pin(path, url, digest)
            repo.check_size(found.size, size, redact(url), path)
        except WeightdError as e:
            raise e.about(ref=ref.shown, file=path) from None
        return found

    def pin(self, path: str, url: str, digest: Digest | None = None) -> FileSpec:
        """The file as it is now. Raises SourceNotFound."""
        self.on_stat(url, 0, 0)
        data = self.files.get(url)
        if data is None:
            raise SourceNotFound(f"{redact(url)}: no such file", file=path, remedy="Check the address.")
        return FileSpec(path, len(data), url, digest, Validator(etag=etag_of(data)), self.ranges)

    def reader(self, file: FileSpec, memory: Shared | None = None) -> MemoryReader:
        return MemoryReader(self, file)

    def width(self, file: FileSpec) -> int:
        return WIDTH

    async def close(self) -> None:
        pass


class MemoryReader:
    """Implements `weightd.sources.protocols.Reader`."""

    def __init__(self, source: MemorySource, file: FileSpec) -> None:
        self._source, self._file = source, file
        self._where = redact(file.url)
        self._data = b""
        self._offset = self._length = self._left = 0
        self._aborted = False

    def start(self, offset: int, length: int) -> None:
        if length <= 0 or offset < 0 or offset + length > self._file.size:
            raise ValueError(f"bytes {offset}+{length} of a file of {self._file.size}")
        self._source.on_start(self._file.url, offset, length)
        self._source.reads.append((self._file.url, offset, length))
        self._check_aborted()
        if not self._file.ranges and (offset, length) != (0, self._file.size):
            raise SourceUnavailable(f"{self._where} does not serve ranges", file=self._file.path)
        self._data = self._now()
        self._offset, self._length, self._left = offset, length, length

    def readinto(self, view: memoryview) -> int:
        if self._left <= 0:
            raise ValueError("readinto without start, or beyond the length asked for")
        self._source.on_read(self._file.url, self._offset, min(len(view), self._left))
        self._check_aborted()
        piece = self._data[self._offset : self._offset + min(len(view), self._left)]
        if not piece:
            done = self._length - self._left
            raise net.ended_early(self._where, done, self._length).about(file=self._file.path)
        view[: len(piece)] = piece
        self._offset += len(piece)
        self._left -= len(piece)
        return len(piece)

    def finish(self) -> None:
        if self._left:
            raise ValueError(f"finish with {self._left} bytes unread")

    def abort(self, *, slow: bool = False) -> None:
        self._aborted = True

    def close(self) -> None:
        self._data = b""

    def _now(self) -> bytes:
        data = self._source.files.get(self._file.url)
        if data is None:
            raise SourceNotFound(f"{self._where}: no such file", file=self._file.path, remedy="Check the address.")
        if etag_of(data) != self._file.validator.etag:
            raise SourceChanged(
                f"{self._where} changed since it was resolved", file=self._file.path, remedy="Fetch the model again."
            )
        return data

    def _check_aborted(self) -> None:
        if self._aborted:
            raise net.aborted(self._where).about(file=self._file.path)


class _Folder:
    """Implements `safetensors_repo.Folder`."""

    def __init__(self, source: MemorySource, url: str) -> None:
        self._source, self._url = source, url

    async def find(self, path: str, *, optional: bool = False) -> FileSpec | None:
        try:
            return self._source.pin(path, urls.child(self._url, path))
        except SourceNotFound:
            return None

    async def read(self, file: FileSpec) -> bytes:
        return await repo.read_in_thread(self._source.reader(file), file.size)

    def missing(self, path: str, why: str) -> WeightdError:
        return repo.not_found(redact(self._url), path, why)


def etag_of(data: bytes) -> str:
    """A strong validator."""
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'
