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
from weightd.engine.checks import EMPTY, Found, Promise, check_format, check_whole, verified
from weightd.engine.items import LocalReader
from weightd.engine.jobs import FileJob
from weightd.engine.mend import Mender
from weightd.engine.threads import finish, in_own_thread
from weightd.engine.tracker import Tracker
from weightd.engine.transfer import Transfer, TransferOptions
from weightd.sources.protocols import Source
from weightd.storage.exports import ExportDirectory
from weightd.storage.ingests import FileIngest

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
    file: FileSpec
    ingest: FileIngest
    job: FileJob | None = None
    found: Found = EMPTY
    part_size: int = 0
    repaired: list[int] = field(default_factory=list)

    @property
    def done(self) -> int:
        return self.job.done if self.job else self.file.size


@dataclass(slots=True)
class _Plan:
    """What one fetch_to needs in its threads."""

    directory: ExportDirectory
    options: TransferOptions
    sources: Source
    exports: list[_Export] = field(default_factory=list)
    slabs: SlabBuffers | None = None

    def allocate(self, manifest: Manifest) -> None:
        for file in manifest.files:
            identities = [file.source_key] if file.by_parts and file.source_key else []
            ingest = self.directory.ingest(file.path, file.size, identities, self.options.part_size)
            part_size = ingest.part_size or self.options.part_size
            self.exports.append(_Export(file, ingest, part_size=part_size))

    def transfer(self) -> Transfer:
        largest = max((min(e.part_size, e.file.size) for e in self.exports), default=0)
        slabs = self.slabs = SlabBuffers(self.options.slabs, largest)
        for e in self.exports:
            if e.file.size:
                e.job = FileJob(
                    e.file.path,
                    e.file.size,
                    part_size=e.part_size,
                    reader=partial(self.sources.reader, e.file),
                    receiver=partial(self.sources.reader, e.file, slabs.shared),
                    buffers=slabs,
                    ranges=e.file.by_parts,
                    write=e.ingest.write,
                    record=e.ingest.record if e.ingest.part_size else None,
                    held=e.ingest.held,
                    local=partial(LocalReader, e.ingest.read),
                    crc=e.file.crc_algorithm,
                )
        by_job = {e.job: e for e in self.exports if e.job}
        transfer = Transfer(by_job, self.options, lambda job: _verify(by_job[job], self.options, transfer.stopping))
        return transfer

    def publish(self) -> None:
        self.directory.publish({e.file.path: e.ingest for e in self.exports})

    def close(self, error: WeightdError | None = None) -> bool:
        """True when something was kept to be resumed: not of a file whose bytes are not those that were promised, and
        not in a user's directory for an error that would come again. Idempotent."""
        changed = error.file if isinstance(error, SourceChanged) else ""
        for e in self.exports:
            e.ingest.abort() if e.file.path == changed else e.ingest.keep()
        if self.slabs is not None:
            self.slabs.close()
        return self.directory.close(keep=not isinstance(error, Corruption))


def _verify(export: _Export, options: TransferOptions, stopping: threading.Event) -> None:
    """In a thread of the transfer, which its error stops."""
    promise = Promise(export.file.digest, export.file.crc)
    if export.job:
        export.found = export.job.found()
        if not promise.kept_by(export.found) and export.file.by_parts:
            mended = Mender(export.job, export.ingest.read, None, options=options, stopping=stopping).run(promise)
            if mended is not None:
                export.repaired, export.found = mended
    check_whole(export.found, promise, export.file.path)
    check_format(export.file.path, export.file.size, None, export.ingest.read)


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
    plan = _Plan(ExportDirectory(directory), options, sources)
    try:
        await _blocking(plan.directory.open)
        await _blocking(partial(plan.allocate, manifest))
        transfer = await _blocking(plan.transfer)
        tracker = Tracker(Phase.FETCHING, manifest.files, {e.file.path: e for e in plan.exports})
        ticker = asyncio.create_task(_tick(tracker, on_progress))
        try:
            await in_own_thread(transfer.run, transfer.stop, "weightd-transfer")
        finally:
            ticker.cancel()
        for export in plan.exports:
            if export.job is None:
                await _blocking(partial(_verify, export, plan.options, transfer.stopping))
        on_progress(tracker.snapshot(time.monotonic()))
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


async def _tick(tracker: Tracker, on_progress: Callable[[Progress], None]) -> None:
    while True:
        on_progress(tracker.snapshot(time.monotonic()))
        await asyncio.sleep(TICK)


def _result(export: _Export) -> ExportedFile:
    file, found = export.file, export.found
    return ExportedFile(file.path, file.size, found.digest, verified(file, found), tuple(export.repaired))
