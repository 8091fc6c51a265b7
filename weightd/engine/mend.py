"""All parts came, and the file is not what it should be: find the parts that are wrong, and fetch those again.

First the parts that changed here since they were received; then the origin is asked a second time, one half of the file
after the other, and what differs from the first time is replaced. It costs at most the file once more.
"""

from __future__ import annotations

import hashlib
import mmap
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import NamedTuple

import xxhash

from weightd.core.backoff import full_jitter
from weightd.core.crc import combine_parts
from weightd.core.digest import digest_of, git_blob
from weightd.core.errors import Corruption, SourceUnavailable
from weightd.core.parts import Part
from weightd.engine.checks import Found, Promise
from weightd.engine.crcs import crc_of
from weightd.engine.jobs import FileJob
from weightd.engine.transfer import Stopped, TransferOptions
from weightd.kernel import step_back
from weightd.sources.protocols import Reader
from weightd.storage.pages import footprint

Read = Callable[[int, memoryview], None]


class Mended(NamedTuple):
    """The indices of the parts that were replaced, and what the file is now."""

    parts: list[int]
    found: Found


class Mender:
    """Of one complete job: `read` and `job.write` reach its bytes on disk, `view` those in memory if there are any.

    As many parts are asked for at a time, and as often, as by a transfer. Blocking; `stopping` ends it with Stopped.
    """

    def __init__(
        self,
        job: FileJob,
        read: Read,
        view: memoryview | None,
        *,
        options: TransferOptions,
        stopping: threading.Event,
    ) -> None:
        self._job, self._read, self._view = job, read, view
        self._threads, self._attempts, self._pause = options.receivers, options.attempts, options.pause
        self._stopping = stopping
        self._over = threading.Event()
        self._readers: set[Reader] = set()
        self._lock = threading.Lock()

    def run(self, promise: Promise) -> Mended | None:
        """Replace parts until the file keeps `promise`; None when it cannot be had.

        Raises the errors of the source and of the disk.
        """
        watch = threading.Thread(target=self._abort_when_stopped, name="weightd-mend-stop")
        watch.start()
        try:
            with ThreadPoolExecutor(self._threads, "weightd-mend", step_back) as pool:
                return self._run(promise, lambda parts: [i for i in pool.map(self._again, parts) if i is not None])
        finally:
            self._over.set()
            watch.join()

    def _run(self, promise: Promise, replace: Callable[[Iterable[Part]], list[int]]) -> Mended | None:
        parts = self._job.parts
        half = (len(parts) + 1) // 2
        changed_here = [p for p in parts if not self._as_received(p)]
        mended: list[int] = []
        for some in (changed_here, parts[:half], parts[half:]):
            replaced = replace(some)
            mended.extend(replaced)
            if replaced and promise.kept_by(found := self._found()):
                return Mended(sorted(set(mended)), found)
        return None

    def _abort_when_stopped(self) -> None:
        while not self._over.wait(0.1):
            if self._stopping.is_set():
                self._job.abort()
                with self._lock:
                    readers = list(self._readers)
                for reader in readers:
                    reader.abort()

    def _as_received(self, part: Part) -> bool:
        """Whether every copy of it is what was received."""
        self._check_stop()
        wanted = self._job.checksums[part.index]
        if self._view is not None:
            with self._view[part.offset : part.offset + part.length] as view:
                if xxhash.xxh3_128_digest(view) != wanted:
                    return False
        with _memory(part.length) as view:
            try:
                self._read(part.offset, view)
            except Corruption:
                return False
            return xxhash.xxh3_128_digest(view) == wanted

    def _again(self, part: Part) -> int | None:
        """Ask for it once more; its index if what came is not what is here."""
        with _memory(part.length) as view:
            self._receive(part, view)
            checksum = xxhash.xxh3_128_digest(view)
            if checksum == self._job.checksums[part.index] and self._as_received(part):
                return None
            self._replace(part, view, checksum)
            return part.index

    def _replace(self, part: Part, view: memoryview, checksum: bytes) -> None:
        if self._job.write is not None:
            self._job.write(part.offset, view)
        if self._view is not None:
            self._view[part.offset : part.offset + part.length] = view
        self._job.checksums[part.index] = checksum
        if self._job.record is not None:
            self._job.record({part.index: checksum})

    def _receive(self, part: Part, view: memoryview) -> None:
        for attempt in range(self._attempts):
            self._check_stop()
            try:
                return self._receive_once(part, view)
            except SourceUnavailable as e:
                self._check_stop()
                if attempt == self._attempts - 1:
                    raise e.about(file=self._job.path) from None
                wait = full_jitter(attempt, random.random(), base=self._pause)
                self._stopping.wait(max(wait, e.retry_after or 0.0))
        return None

    def _receive_once(self, part: Part, view: memoryview) -> None:
        with closing(self._job.reader()) as reader:
            with self._lock:
                self._readers.add(reader)
            try:
                reader.start(part.offset, part.length)
                done = 0
                while done < part.length:
                    with view[done:] as rest:
                        done += reader.readinto(rest)
                reader.finish()
            finally:
                with self._lock:
                    self._readers.discard(reader)

    def _found(self) -> Found:
        """As it is on disk."""
        sha, crc, crcs = hashlib.sha256(), self._job.crc, list[tuple[int, int]]()
        git = git_blob(self._job.size) if self._job.frontier.git is not None else None
        for part in self._job.parts:
            self._check_stop()
            with _memory(part.length) as view:
                self._read(part.offset, view)
                sha.update(view)
                if git is not None:
                    git.update(view)
                if crc is not None:
                    crcs.append((crc_of(crc, view), part.length))
        whole = None if crc is None else combine_parts(crc, crcs)
        return Found(digest_of(sha.digest()), whole, "" if git is None else git.hexdigest())

    def _check_stop(self) -> None:
        if self._stopping.is_set():
            raise Stopped


def mended_text(path: str, mended: list[int], parts: int) -> str:
    """For people."""
    which = ", ".join(map(str, mended[:10])) + (", ..." if len(mended) > 10 else "")
    return f"{path}: {len(mended)} of {parts} parts were wrong and were fetched again: {which}"


@contextmanager
def _memory(size: int) -> Iterator[memoryview]:
    """Page-aligned."""
    with mmap.mmap(-1, footprint(size)) as memory:
        view = memoryview(memory)[:size]
        try:
            yield view
        finally:
            view.release()
