"""Resolve s3:// refs, and say where their objects are: presigned addresses, which the shared receive path reads.

aiobotocore has an event loop and a thread of its own (`s3_loop`), and is imported there when the first ref is asked
for. Everything of it stands in the files `s3_*`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from weightd.core import s3
from weightd.core.crc import Crc, CrcAlgorithm
from weightd.core.credentials import Credential
from weightd.core.digest import Digest
from weightd.core.errors import (
    CredentialsExpired,
    CredentialsRejected,
    ManifestError,
    NotFound,
    SourceChanged,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    WeightdError,
)
from weightd.core.manifest import FileSpec, Manifest, agreed_digest, make_manifest
from weightd.core.ranges import validator_of
from weightd.core.refs import Ref
from weightd.core.s3 import S3Object, parse_s3
from weightd.core.selection import matches, narrowed, select
from weightd.core.stated import stated
from weightd.sources import safetensors_repo as repo
from weightd.sources.protocols import FromOrigin, Reader, Shared
from weightd.sources.receiving import Receiving
from weightd.sources.routes import Minted
from weightd.sources.s3_loop import LoopThread
from weightd.sources.s3_settings import S3Options

if TYPE_CHECKING:
    from weightd.sources.s3_clients import Clients
    from weightd.sources.s3_store import Listed, Store

T = TypeVar("T")
_SUMS: Final = {f"x-amz-checksum-{a.value.lower()}": a for a in CrcAlgorithm}
_TYPE: Final = "x-amz-checksum-type"


class S3Source(FromOrigin):
    """Implements `weightd.sources.protocols.Source` for s3. `receiving` is shared; who made it closes it."""

    def __init__(
        self,
        receiving: Receiving,
        options: S3Options | None = None,
        credentials: Iterable[Credential] = (),
    ) -> None:
        self._receiving = receiving
        self._options, self._rules = options or S3Options(), tuple(credentials)
        self._thread = LoopThread("weightd-s3")
        self._made: Clients | None = None
        receiving.routes.mint("s3", self._mint)

    async def resolve(self, ref: Ref) -> Manifest:
        try:
            at = parse_s3(ref.text)
            files = await self._thread.run(self._twice(lambda: self._files(at)))
            return make_manifest(ref.shown, repo.format_of(f.path for f in files), files)
        except WeightdError as e:
            raise e.about(ref=ref.shown) from None

    async def stat(self, ref: Ref, path: str, url: str, *, size: int | None, digest: Digest | None) -> FileSpec:
        try:
            at = parse_s3(url)
            return await self._thread.run(self._twice(lambda: self._stat(path, at, size, digest)))
        except WeightdError as e:
            raise e.about(ref=ref.shown, file=path) from None

    def reader(self, file: FileSpec, memory: Shared | None = None) -> Reader:
        return self._receiving.reader(file, memory)

    def width(self, file: FileSpec) -> int:
        return self._receiving.width(file)

    async def close(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            with contextlib.suppress(SourceUnavailable):
                await self._thread.run(made.close())
        await asyncio.to_thread(self._thread.close)

    # What follows runs on the thread of its own.

    async def _twice(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Once more where credentials are refused that were good before: others may be in their place."""
        try:
            return await work()
        except (CredentialsExpired, CredentialsRejected):
            if self._made is None or not self._made.were_good():
                raise
        return await work()

    async def _files(self, at: S3Object) -> list[FileSpec]:
        if at.is_prefix:
            return await self._below(at)
        path = at.key.rpartition("/")[2]
        found = await self.find(path, at)
        if found is None:
            return await self._instead(at)
        if path.endswith(".safetensors.index.json"):
            folder = at._replace(key=at.key[: -len(path)], version="")
            return await repo.of_index(_Folder(self, folder), found)
        return [found]

    async def _instead(self, at: S3Object) -> list[FileSpec]:
        """Of a key that is no object: it may be a prefix whose "/" was left out."""
        below = at._replace(key=at.key + "/", version="")
        with contextlib.suppress(SourceDenied, NotFound):
            store = await self._store(below)
            if not at.version and await store.below(below, 1):
                return await self._below(below)
        raise await self.missing(at)

    async def _below(self, at: S3Object) -> list[FileSpec]:
        try:
            listed = await (await self._store(at)).below(at)
        except SourceDenied as denied:
            if at.include or at.exclude:
                raise
            with contextlib.suppress(SourceDenied, SourceNotFound):
                return await repo.whole_directory(_Folder(self, at))
            raise denied from None
        if not listed:
            raise SourceNotFound(
                f"there is nothing below {at.shown}", remedy="Check the prefix, and that the upload has ended."
            )
        return await self._of_listing(at, listed)

    async def _of_listing(self, at: S3Object, listed: list[Listed]) -> list[FileSpec]:
        folder = _Folder(self, at, {one.path: one for one in listed})
        chosen = select(listed, at.include, at.exclude)
        indexed: dict[str, FileSpec] = {}
        index = None if at.include or matches(repo.INDEX, at.exclude) else await folder.find(repo.INDEX)
        if index is not None:
            found = await repo.of_index(folder, index)
            indexed = {f.path: f for f in found if not matches(f.path, at.exclude)}
            chosen = narrowed(chosen, repo.INDEX, {path for path in indexed if path.endswith(".safetensors")})
        paths = {one.path for one in chosen} | set(indexed)
        if not any(path.endswith(_WEIGHTS) for path in paths) and not at.include:
            raise folder.missing(repo.SINGLE, "no file of weights is below the prefix")
        if not paths:
            raise SourceNotFound(f"nothing below {at.shown} is included", remedy="Check include and exclude.")
        if len(paths) > repo.MAX_SHARDS:
            raise ManifestError(f"{len(paths)} files of {at.shown} are too many", remedy="Name one model.")
        pinned = await repo.bounded(folder.get, sorted(paths - set(indexed)))
        return [*indexed.values(), *pinned]

    async def _stat(self, path: str, at: S3Object, size: int | None, digest: Digest | None) -> FileSpec:
        found = await self.find(path, at)
        if found is None:
            raise await self.missing(at)
        repo.check_size(found.size, size, at.shown, path)
        agreed = agreed_digest(digest, found.digest, path)
        return msgspec.structs.replace(found, digest=agreed, crc=None if agreed else found.crc)

    async def find(self, path: str, at: S3Object, etag: str = "") -> FileSpec | None:
        """The object pinned, None where there is none. `etag`: that of the listing. Raises SourceChanged."""
        store = await self._store(at)
        said = await store.head(at)
        if said is None:
            return None
        validator, length = validator_of(said), said.get("content-length", "")
        if etag and validator.etag and etag.strip('"') != validator.etag.strip('"'):
            raise SourceChanged(f"{at.shown} changed while it was listed", file=path, remedy="Fetch the model again.")
        if not length.isdecimal():
            raise ManifestError(f"the server does not tell the size of {at.shown}", file=path)
        _check_encoding(said, at, path)
        version = at.version or said.get("x-amz-version-id", "")
        pinned = at._replace(version="" if version == "null" else version)
        whole = stated(_whole(said, validator.etag), size=int(length), partial=False)
        crc = whole.crc
        if crc is None and whole.digest is None:
            crc = await self._combined(store, at, said, int(length))
        crc = None if whole.digest else crc
        piece = await self._stored_part(store, at, validator.etag, int(length))
        return FileSpec(path, int(length), pinned.url, whole.digest, validator, True, crc, stored_part=piece)

    async def _stored_part(self, store: Store, at: S3Object, etag: str, size: int) -> int:
        """Bytes of the pieces that it was uploaded in, 0 where it was not, or the server does not know."""
        if s3.stored_parts(etag) < 2:
            return 0
        first = (await store.head(at, 1) or {}).get("content-length", "")
        return int(first) if first.isdecimal() and int(first) < size else 0

    async def _combined(self, store: Store, at: S3Object, said: dict[str, str], size: int) -> Crc | None:
        """From the CRCs of the stored parts, where all that the server says is one of those."""
        for name, algorithm in _SUMS.items():
            if composite := said.get(name, ""):
                parts = await store.parts(at, algorithm)
                return s3.crc_of_parts(algorithm, composite, size, [(p.checksum, p.size) for p in parts])
        return None

    async def missing(self, at: S3Object) -> WeightdError:
        """Why an object is not there: a HEAD does not tell a missing bucket from a missing key."""
        try:
            await (await self._store(at)).check(at)
        except WeightdError as e:
            return e
        return SourceUnavailable(f"{at.shown} was not there a moment ago", remedy="Try again.")

    async def _store(self, at: S3Object) -> Store:
        if self._made is None:
            from weightd.sources.s3_clients import Clients  # Imports aiobotocore, which takes a while.

            self._made = Clients(self._options, self._rules, self._receiving)
        return await self._made.of(at)

    async def _address(self, at: S3Object, url: str) -> Minted:
        await self._store(at)
        assert self._made is not None
        return await self._made.address(at, url)

    def _mint(self, url: str, aborted: Callable[[], bool]) -> Minted | None:
        """In a receiver's thread."""
        return self._thread.wait(self._address(parse_s3(url), url), aborted)


_WEIGHTS: Final = (".safetensors", ".gguf", ".bin", ".pt", ".pth")


class _Folder:
    """Implements `safetensors_repo.Folder`; with `listed`, of what is listed, at no cost for what is not."""

    def __init__(self, source: S3Source, at: S3Object, listed: dict[str, Listed] | None = None) -> None:
        self._source, self._at, self._listed = source, at, listed

    async def find(self, path: str, *, optional: bool = False) -> FileSpec | None:
        if self._listed is not None and path not in self._listed:
            return None
        etag = self._listed[path].etag if self._listed else ""
        try:
            return await self._source.find(path, S3Object(self._at.bucket, self._at.key + path), etag)
        except SourceDenied:
            # A missing key is refused to those who may not list the bucket.
            if optional:
                return None
            raise

    async def get(self, path: str) -> FileSpec:
        """One that is listed."""
        found = await self.find(path)
        if found is None:
            raise SourceChanged(
                f"{self._at.shown}{path} went away while it was listed", file=path, remedy="Fetch the model again."
            )
        return found

    async def read(self, file: FileSpec) -> bytes:
        """Through a Reader; once more on a fault that may pass."""
        try:
            return await repo.read_in_thread(self._source.reader(file), file.size)
        except SourceUnavailable:
            return await repo.read_in_thread(self._source.reader(file), file.size)

    def missing(self, path: str, why: str) -> WeightdError:
        return repo.not_found(self._at.shown, path, why)


def _whole(said: dict[str, str], etag: str) -> dict[str, str]:
    """Servers that do not tell the type of a checksum know it of whole objects, and, since they have uploads in parts,
    of parts' checksums; those end in "-N", as the ETags of such objects do."""
    if _TYPE in said or s3.stored_parts(etag) > 1 or not etag or "-" in etag:
        return said
    return {**said, _TYPE: "FULL_OBJECT"}


def _check_encoding(said: dict[str, str], at: S3Object, path: str) -> None:
    coding = said.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise ManifestError(
            f"{at.shown} is stored with Content-Encoding {coding[:40]!r}",
            file=path,
            remedy="Store the file as it is, without that metadata.",
        )
