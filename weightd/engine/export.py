"""Fetch without a daemon: the same transfer, into a directory of the user's."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from weightd.core.digest import Digest
from weightd.core.errors import Corruption, SourceChanged, WeightdError
from weightd.core.manifest import FileSpec, Manifest, with_digest
from weightd.core.progress import Phase, Progress
from weightd.core.refs import parse_ref
from weightd.core.verification import Verification
from weightd.engine.buffers import SlabBuffers
from weightd.engine.checks import Found, check_format, check_whole, promise_of, verified
from weightd.engine.heads import has_head
from weightd.engine.items import LocalReader
from weightd.engine.jobs import FileJob
from weightd.engine.mend import Mender
from weightd.engine.tasks import Pending
from weightd.engine.tracker import Seen, Tracker
from weightd.engine.transfer import Transfer, TransferOptions
from weightd.sources.protocols import Source
from weightd.storage.exports import ExportDirectory
from weightd.storage.ingests import FileIngest
from weightd.threads import finish, in_own_thread

T = TypeVar("T")

KEPT = "What was received stays in {}/.weightd-*, and the same command goes on from there."
TICK = 0.1
"""Seconds between two progress messages."""


class ExportedFile(msgspec.Struct, frozen=True):
    """A file that was left in the directory; `path` is relative to it, `size` in bytes."""

    path: str
    size: int
    digest: Digest
    verification: Verification
    repaired: tuple[int, ...] = ()
    """Parts that were wrong at first, and were fetched again."""


@dataclass(slots=True, eq=False)
class _Export:
    """A file that comes; `found` once it is verified, and then it has no `job` any more."""

    file: FileSpec
    ingest: FileIngest | None = None
    job: FileJob | None = None
    found: Found | None = None
    repaired: list[int] = field(default_factory=list)

    @property
    def done(self) -> int:
        if self.found is not None:
            return self.file.size
        job = self.job
        return job.done if job else 0

    @property
    def identities(self) -> list[str]:
        """With the path: when it is published, what is kept of other versions of it is of no more use."""
        return [f"{self.file.path}\0{self.file.source_key}"] if self.file.by_parts and self.file.source_key else []


@dataclass(slots=True)
class _Plan:
    """What one fetch_to needs in its threads."""

    directory: ExportDirectory
    options: TransferOptions
    sources: Source
    exports: list[_Export] = field(default_factory=list)
    slabs: SlabBuffers | None = None

    def check(self, manifest: Manifest) -> None:
        """Whether all of it can be there. Raises PathInTheWay or DiskFull; nothing was asked for yet."""
        self.exports = [_Export(file) for file in manifest.files]
        for e in self.exports:
            self.directory.check(e.file.path)
        self.directory.check_room((e.file.size, e.identities) for e in self.exports)

    def transfer(self) -> Transfer:
        """Each file is opened when its turn comes; its ingest stays on disk, without a descriptor, to the end."""
        size_of = self.options.part_sizes(e.file for e in self.exports)
        largest = max((min(size_of(e.file), e.file.size) for e in self.exports), default=0)
        slabs = self.slabs = SlabBuffers(self.options.slabs, largest)
        by_job: dict[FileJob, _Export] = {}

        def opened(e: _Export) -> FileJob:
            job = self._open(e, slabs, size_of(e.file))
            by_job[job] = e
            return job

        def received(job: FileJob) -> None:
            _verify(by_job.pop(job), self.sources, self.options, transfer.stopping)
            transfer.closed()

        def pending(e: _Export) -> Pending:
            parts = -(-e.file.size // size_of(e.file))
            return Pending(parts, e.file.by_parts, partial(opened, e), has_head(e.file.path))

        transfer = Transfer(map(pending, self.exports), self.options, received)
        return transfer

    def _open(self, e: _Export, slabs: SlabBuffers, wanted: int) -> FileJob:
        ingest = e.ingest = self.directory.ingest(e.file.path, e.file.size, e.identities, wanted)
        part_size = ingest.part_size or wanted
        job = e.job = FileJob(
            e.file.path,
            e.file.size,
            part_size=part_size,
            reader=partial(self.sources.reader, e.file),
            width=partial(self.sources.width, e.file),
            receiver=partial(self.sources.reader, e.file, slabs.shared(part_size)),
            buffers=slabs,
            ranges=e.file.by_parts,
            write=ingest.write,
            record=ingest.record if ingest.part_size else None,
            held=ingest.held,
            local=partial(LocalReader, ingest.read),
            crc=e.file.crc_algorithm,
            git=e.file.by_git_id,
        )
        return job

    def publish(self) -> None:
        self.directory.publish({e.file.path: e.ingest for e in self.exports if e.ingest})
        paths = {e.file.path for e in self.exports}
        self.directory.drop_kept(lambda identity: identity.partition("\0")[0] in paths)

    def close(self, error: WeightdError | None = None) -> bool:
        """True when something was kept to be resumed: not of a file whose bytes are not those that were promised, and
        not in a user's directory for an error that would come again. Idempotent."""
        changed = error.file if isinstance(error, SourceChanged) else ""
        for e in self.exports:
            if e.ingest is not None:
                e.ingest.abort() if e.file.path == changed else e.ingest.keep()
        if self.slabs is not None:
            self.slabs.close()
        return self.directory.close(keep=not isinstance(error, Corruption))


def _verify(export: _Export, sources: Source, options: TransferOptions, stopping: threading.Event) -> None:
    """In a thread of the transfer, which its error stops."""
    job, ingest = export.job, export.ingest
    if job is None or ingest is None:
        raise AssertionError("a file that was not received")
    promise, found = promise_of(export.file, export.file.digest), job.found()
    if not promise.kept_by(found) and export.file.by_parts:
        sources.distrust(export.file)
        mended = Mender(job, ingest.read, None, options=options, stopping=stopping).run(promise)
        if mended is not None:
            export.repaired, found = mended
    check_whole(found, promise, export.file.path)
    check_format(export.file.path, export.file.size, None, ingest.read)
    if not ingest.part_size:
        # Nobody could resume it: what makes it durable is done here, beside the others, and not one by one at the end.
        ingest.finish()
    export.found, export.job = found, None


async def fetch_to(
    ref: str,
    directory: Path,
    *,
    sources: Source,
    sha256: Digest | None = None,
    options: TransferOptions | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> list[ExportedFile]:
    """Fetch `ref` and leave its verified files in `directory`, which is made if missing.

    All files appear after all were verified, or none does. `on_progress` is called about ten times a second on the
    event loop. Memory does not grow with the files. Raises the errors of resolving and fetching, DiskFull and
    PathInTheWay. After an error or a cancellation the parts that were received and can be proven stay in a directory
    below `directory`, whose name begins with ".weightd-", and the next call goes on from there.
    """
    parsed = parse_ref(ref)
    on_progress(Progress(Phase.RESOLVING))

    async def once() -> list[ExportedFile]:
        manifest = with_digest(await sources.resolve(parsed), sha256)
        return await _fetch(manifest, directory, sources, options or TransferOptions(), on_progress)

    try:
        try:
            return await once()
        except SourceChanged:
            return await once()
    except WeightdError as e:
        raise e.about(ref=parsed.shown) from None


async def _fetch(
    manifest: Manifest,
    directory: Path,
    sources: Source,
    options: TransferOptions,
    on_progress: Callable[[Progress], None],
) -> list[ExportedFile]:
    plan = _Plan(await _blocking(partial(ExportDirectory, directory)), options, sources)
    try:
        await _blocking(plan.directory.open)
        await _blocking(partial(plan.check, manifest))
        transfer = await _blocking(plan.transfer)
        tracker = Tracker(Phase.FETCHING, manifest.files, {e.file.path: e for e in plan.exports})
        seen = Seen()
        ticker = asyncio.create_task(_tick(tracker, seen, on_progress))
        try:
            await in_own_thread(transfer.run, transfer.stop, "weightd-transfer")
        finally:
            ticker.cancel()
        on_progress(tracker.snapshot(time.monotonic(), seen))
        await _blocking(plan.publish)
        return [_result(e) for e in plan.exports]
    except WeightdError as e:
        if await _blocking(partial(plan.close, e)):
            e.remedy = f"{e.remedy} {KEPT.format(directory)}".strip()
        raise
    finally:
        await _blocking(plan.close)


async def _blocking(call: Callable[[], T]) -> T:
    return await finish(asyncio.get_running_loop().run_in_executor(None, call))


async def _tick(tracker: Tracker, seen: Seen, on_progress: Callable[[Progress], None]) -> None:
    while True:
        on_progress(tracker.snapshot(time.monotonic(), seen))
        await asyncio.sleep(TICK)


def _result(export: _Export) -> ExportedFile:
    file, found = export.file, export.found
    if found is None:
        raise AssertionError("a file that was not verified")
    return ExportedFile(file.path, file.size, found.digest, verified(file, found), tuple(export.repaired))
