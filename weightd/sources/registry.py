"""All sources behind one: the ref's scheme decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from weightd.core.credentials import Credential
from weightd.core.digest import Digest
from weightd.core.errors import RefSyntax
from weightd.core.manifest import FileSpec, Manifest
from weightd.core.models import NamedModel
from weightd.core.quota import Spent
from weightd.core.refs import Ref, redact
from weightd.sources.connection import HttpOptions
from weightd.sources.file import FileSource
from weightd.sources.http import HttpSource
from weightd.sources.hub import HubSource
from weightd.sources.hub_access import HubOptions
from weightd.sources.named import resolve_named
from weightd.sources.protocols import Reader, Shared, Source
from weightd.sources.receiving import Receiving
from weightd.sources.s3 import S3Source
from weightd.sources.s3_settings import S3Options


class SourceOptions(msgspec.Struct, frozen=True):
    """`models` are the configured names. `processes` receive over HTTP; 0: the threads that ask do."""

    http: HttpOptions = HttpOptions()
    processes: int = 0
    hub: HubOptions = HubOptions()
    models: Mapping[str, NamedModel] = {}
    s3: S3Options = S3Options()
    credentials: tuple[Credential, ...] = ()


class Sources:
    """Implements `weightd.sources.protocols.Source` by scheme; `others` adds or replaces schemes, for tests."""

    def __init__(self, options: SourceOptions | None = None, others: Mapping[str, Source] | None = None) -> None:
        self._options = options or SourceOptions()
        self._receiving = Receiving(self._options.http, self._options.processes)
        http = HttpSource(receiving=self._receiving)
        hub = HubSource(self._receiving, self._options.hub)
        s3 = S3Source(self._receiving, self._options.s3, self._options.credentials)
        known: dict[str, Source] = {"http": http, "https": http, "file": FileSource(), "hf": hub, "s3": s3}
        self._by_scheme = known | dict(others or {})
        self._owned: list[Source] = [http, s3, *self._by_scheme.values()]

    async def resolve(self, ref: Ref) -> Manifest:
        if ref.scheme == "name":
            return await resolve_named(ref, self._options.models, self)
        return await self._of(ref.text).resolve(ref)

    async def stat(self, ref: Ref, path: str, url: str, *, size: int | None, digest: Digest | None) -> FileSpec:
        return await self._of(url).stat(ref, path, url, size=size, digest=digest)

    def reader(self, file: FileSpec, memory: Shared | None = None) -> Reader:
        return self._of(file.url).reader(file, memory)

    def width(self, file: FileSpec) -> int:
        return self._of(file.url).width(file)

    def distrust(self, file: FileSpec) -> bool:
        return self._of(file.url).distrust(file)

    def quotas(self) -> Sequence[Spent]:
        return [spent for source in dict.fromkeys(self._owned) for spent in source.quotas()]

    async def close(self) -> None:
        for source in self._owned:
            await source.close()
        await self._receiving.close()

    def _of(self, url: str) -> Source:
        scheme = url.partition("://")[0].lower()
        source = self._by_scheme.get(scheme)
        if source is None:
            raise RefSyntax(f"no source reads {scheme!r}", ref=redact(url))
        return source
