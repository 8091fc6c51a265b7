"""Hugging Face: `hf://org/name@revision`, pinned to a commit, received from where the Hub leads, or from its cache."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import quote

import msgspec

from weightd.core.digest import Digest, digest_of, git_blob
from weightd.core.errors import (
    GitIdMismatch,
    ManifestError,
    NotInCache,
    SourceNotFound,
    SourceUnavailable,
    SourceUnsupported,
    WeightdError,
)
from weightd.core.hub_ref import HubRef, parse_hub
from weightd.core.manifest import FileSpec, Manifest, agreed_digest, make_manifest
from weightd.core.quota import Spent
from weightd.core.refs import Ref
from weightd.sources import safetensors_repo as repo_files
from weightd.sources.asker import Aborted, Asker, Told
from weightd.sources.file import WIDTH, FileReader, pinned
from weightd.sources.hub_access import Access, HubOptions
from weightd.sources.hub_api import Commit, HubApi, HubFile
from weightd.sources.hub_cache import ALLOW, HubCache
from weightd.sources.hub_choice import Choice
from weightd.sources.protocols import Reader, Shared
from weightd.sources.quota import Quotas
from weightd.sources.receiving import Receiving
from weightd.sources.routes import Minted

log = logging.getLogger("weightd.sources")

LARGEST_PLAIN = 50_000_000_000
"""Bytes. What is larger, the Hub's own client takes by Xet only (constants.MAX_HTTP_DOWNLOAD_SIZE)."""
THREADS = 8
"""Questions to Hubs at a time."""
_LISTS = 8
"""Commits whose lists are remembered: a list does not change."""
_SAME_S = 10.0
"""Within which the files of one model, asked for one by one, are of one commit."""
_MOST = 100_000

T = TypeVar("T")


class HubSource:
    """Implements `weightd.sources.protocols.Source` for hf. `receiving` is shared with other sources, who closes it."""

    def __init__(
        self,
        receiving: Receiving,
        options: HubOptions | None = None,
        *,
        access: Access | None = None,
        asker: Asker | None = None,
        quotas: Quotas | None = None,
    ) -> None:
        self._receiving = receiving
        self._options = options or HubOptions()
        self._access = access or Access(self._options)
        self._quotas = quotas or Quotas()
        self._asker = asker or Asker(receiving.pool, self._quotas)
        self._api = HubApi(self._access, self._asker)
        self._lists: OrderedDict[Commit, list[HubFile]] = OrderedDict()
        self._commits: dict[HubRef, tuple[float, Commit]] = {}
        self._cached: dict[str, FileSpec] = {}
        """By the file's URL."""
        self._distrusted: set[FileSpec] = set()
        self._minted: set[str] = set()
        self._threads = ThreadPoolExecutor(THREADS, "weightd-hub")
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._one_by_one: defaultdict[HubRef, asyncio.Lock] = defaultdict(asyncio.Lock)
        """For the files of one model that are asked for one by one: all but the first wait, and in no thread."""
        receiving.routes.mint("hf", self._mint)

    async def resolve(self, ref: Ref) -> Manifest:
        try:
            wanted = parse_hub(ref.text)
            commit = await self._in_thread(lambda aborted: self._commit(wanted, aborted))
            files = await self._chosen(wanted, commit)
            return make_manifest(ref.shown, repo_files.format_of(f.path for f in files), files, revision=commit.sha)
        except WeightdError as e:
            raise e.about(ref=ref.shown) from None

    async def stat(self, ref: Ref, path: str, url: str, *, size: int | None, digest: Digest | None) -> FileSpec:
        try:
            one = _of_one_file(url, path)
            async with self._one_by_one[HubRef(one.repo, one.revision)]:
                commit, listed = await self._in_thread(lambda aborted: self._known(one, aborted))
            return await self._in_thread(lambda _: self._stat(path, one, commit, listed, size, digest))
        except WeightdError as e:
            raise e.about(ref=ref.shown, file=path) from None

    def reader(self, file: FileSpec, memory: Shared | None = None) -> Reader:
        cached = self._cached.get(file.url)
        if cached is not None:
            return CacheReader(msgspec.structs.replace(cached, path=file.path), lambda: self.distrust(file))
        return self._receiving.reader(file, memory)

    def width(self, file: FileSpec) -> int:
        return WIDTH if file.url in self._cached else self._receiving.width(file)

    def distrust(self, file: FileSpec) -> bool:
        """What the cache has of it proved wrong: readers made from now on ask the Hub. False where the cache was not
        what was read."""
        with self._lock:
            found = self._cached.pop(file.url, None)
            if found is None:
                return False
            self._distrusted.add(found)
        log.warning("the Hugging Face cache has a wrong %s (%s): fetched from the Hub", file.path, found.url)
        return True

    def quotas(self) -> list[Spent]:
        return self._quotas.spent()

    async def close(self) -> None:
        """What is under way ends soon. The connections are those of `receiving`."""
        self._closed.set()
        await asyncio.to_thread(self._threads.shutdown)

    async def _in_thread(self, call: Callable[[Aborted], T]) -> T:
        """Ended when the caller is cancelled. A quota may be long in coming: the threads are nobody else's."""
        if self._closed.is_set():
            raise SourceUnavailable("the source is closed", remedy="Ask again once the daemon runs.")
        over = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, call, lambda: over.is_set() or self._closed.is_set()
            )
        except asyncio.CancelledError:
            over.set()
            raise

    def _commit(self, ref: HubRef, aborted: Aborted) -> Commit:
        if self._access.offline:
            return self._cache().commit(ref)
        commit = self._api.commit(ref, aborted)
        if commit.repo != ref.repo:
            log.info("%s is called %s now", ref.repo, commit.repo)
        return commit

    def _cache(self) -> HubCache:
        root = self._access.cache
        if root is None:
            raise NotInCache(
                "the network may not be used, and neither may the Hugging Face cache",
                remedy=f'Set hf.cache = "auto". {ALLOW}',
            )
        return HubCache(root)

    def _files(self, commit: Commit, aborted: Aborted) -> list[HubFile]:
        if self._access.offline:
            return self._cache().files(commit)  # It may have more of it later.
        with self._lock:
            if (known := self._lists.get(commit)) is not None:
                self._lists.move_to_end(commit)
                return known
        found = self._api.files(commit, aborted)
        with self._lock:
            self._lists[commit] = found
            while len(self._lists) > _LISTS:
                self._lists.popitem(last=False)
        return found

    async def _chosen(self, ref: HubRef, commit: Commit) -> list[FileSpec]:
        listed = await self._in_thread(lambda aborted: self._files(commit, aborted))
        choice = Choice(ref, listed, self._options.include, self._options.exclude)
        if choice.single is not None:
            single = await self._here(ref, commit, [choice.single])
            return await self._specs(commit, single, len(choice.folder))
        chosen = choice.files
        if choice.index is not None:
            (index,) = await self._specs(commit, [choice.index], 0)
            chosen = choice.by_index(await self._shards(index))
        return await self._specs(commit, await self._here(ref, commit, chosen), len(choice.folder))

    async def _here(self, ref: HubRef, commit: Commit, files: Sequence[HubFile]) -> Sequence[HubFile]:
        """Without the network, those that the cache has."""
        if not self._access.offline:
            return files
        whole = not ref.include and len(files) > 1
        return await asyncio.to_thread(lambda: self._cache().present(commit, files, whole=whole))

    async def _specs(self, commit: Commit, files: Sequence[HubFile], cut: int) -> list[FileSpec]:
        """`cut` characters of their paths are left out."""
        return await self._in_thread(lambda _: [self._spec(commit, f, f.path[cut:]) for f in files])

    async def _shards(self, index: FileSpec) -> list[str]:
        """Those that an index names."""
        if index.size > repo_files.MAX_INDEX:
            raise ManifestError(f"the index has {index.size} bytes, over {repo_files.MAX_INDEX}", file=index.path)
        try:
            return repo_files.parse_index(await self._read(index))
        except WeightdError as e:
            raise e.about(file=index.path) from None

    async def _read(self, file: FileSpec) -> bytes:
        """The whole of a small file, checked; where the cache has another, from the Hub."""
        data = await repo_files.read_in_thread(self.reader(file), file.size)
        if not _is(data, file) and self.distrust(file):
            data = await repo_files.read_in_thread(self.reader(file), file.size)
        if not _is(data, file):
            raise GitIdMismatch(
                f"the Hub sends other bytes of {file.path} than it lists", file=file.path, remedy="Try again later."
            )
        return data

    def _known(self, ref: HubRef, aborted: Aborted) -> tuple[Commit, list[HubFile]]:
        commit = self._same_commit(ref, aborted)
        return commit, self._files(commit, aborted)

    def _stat(
        self, path: str, ref: HubRef, commit: Commit, listed: list[HubFile], size: int | None, digest: Digest | None
    ) -> FileSpec:
        found = next((f for f in listed if f.path == ref.path), None)
        if found is None:
            raise SourceNotFound(f"{ref.repo} at {ref.revision!r} has no {ref.path}", remedy="Check the path.")
        repo_files.check_size(found.size, size, f"hf://{ref.repo}", path)
        spec = self._spec(commit, found, path)
        return msgspec.structs.replace(spec, digest=agreed_digest(digest, spec.digest, path))

    def _same_commit(self, ref: HubRef, aborted: Aborted) -> Commit:
        whole, now = HubRef(ref.repo, ref.revision), time.monotonic()
        with self._lock:
            known = self._commits.get(whole)
        if known is None or now >= known[0] + _SAME_S:
            known = now, self._commit(whole, aborted)
            with self._lock:
                self._commits[whole] = known
        return known[1]

    def _spec(self, commit: Commit, file: HubFile, path: str) -> FileSpec:
        url = HubRef(commit.repo, commit.sha, file.path).url
        self._look_in_cache(commit, file, url)
        return FileSpec(path, file.size, url, file.digest, git_id=file.git_id)

    def _look_in_cache(self, commit: Commit, file: HubFile, url: str) -> None:
        root = self._access.cache
        path = HubCache(root).find(commit, file) if root is not None and file.size else None
        if path is None:
            return
        try:
            spec = pinned(path, file.path, file.size)
        except WeightdError:
            return  # It went, or changed, just now.
        with self._lock:
            if spec not in self._distrusted:
                if len(self._cached) >= _MOST:
                    self._cached.clear()
                self._cached[url] = spec

    def _mint(self, url: str, aborted: Aborted) -> Minted | None:
        """Asks the Hub once for each file: one in LFS is then read from the signed address that this leads to."""
        ref = parse_hub(url)
        if self._access.offline:
            raise NotInCache(
                f"the Hugging Face cache has no sound {ref.path}, and the network may not be used", remedy=ALLOW
            )
        told, headers = self._api.location(ref, aborted)
        self._check_plain(ref, url, told, aborted)
        return Minted(told.leads or told.url, tuple(headers.items()))

    def _check_plain(self, ref: HubRef, url: str, told: Told, aborted: Aborted) -> None:
        """Raises SourceUnsupported for a file that only Xet brings: one so large, or whose address was refused before,
        is tried."""
        size = told.headers.get("x-linked-size", "")
        large = size.isdecimal() and int(size[:20]) > LARGEST_PLAIN
        if not told.leads or "x-xet-hash" not in told.headers:
            return
        with self._lock:
            again = url in self._minted
            if len(self._minted) >= _MOST:
                self._minted.clear()
            self._minted.add(url)
        if large or again:
            status = self._asker.get(told.leads, {"Range": "bytes=0-0"}, aborted, body=False).status
            if status in (400, 403):
                raise SourceUnsupported(
                    f"the Hub gives {ref.path}, {size or '?'} bytes, by Xet only (its CDN answers {status})",
                    remedy="Fetch it here with hf download and hf_xet: weightd takes it from the cache.",
                )


class CacheReader(FileReader):
    """Of a file in the cache. Whatever is wrong with it, `distrust` is told, and the next reader asks the Hub."""

    def __init__(self, cached: FileSpec, distrust: Callable[[], object]) -> None:
        super().__init__(cached)
        self._distrust = distrust

    def start(self, offset: int, length: int) -> None:
        with self._watched():
            super().start(offset, length)

    def readinto(self, view: memoryview) -> int:
        with self._watched():
            return super().readinto(view)

    def finish(self) -> None:
        with self._watched():
            super().finish()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except WeightdError as e:
            if self._aborted:
                raise
            self._distrust()
            raise SourceUnavailable(f"the Hugging Face cache: {e.message}", file=e.file) from None


def _of_one_file(url: str, path: str) -> HubRef:
    """`url` is that of a file, perhaps made of a repository's, whose name may be one word, and `path`."""
    suffix = f"/{quote(path)}"
    if not url.endswith(suffix):
        return parse_hub(url)
    below = parse_hub(url.removesuffix(suffix))
    return below._replace(path=f"{below.path.rstrip('/')}/{path}".lstrip("/"))


def _is(data: bytes, file: FileSpec) -> bool:
    if file.digest is not None:
        return digest_of(hashlib.sha256(data).digest()) == file.digest
    blob = git_blob(len(data))
    blob.update(data)
    return file.git_id in ("", blob.hexdigest())
