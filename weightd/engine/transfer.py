"""Threads that move bytes: receive, check, hash and write the parts of some files.

Receivers take parts in order, read them straight into the memory where they stay, take their xxh3-128, and hand them
to a hasher (SHA-256 along the file's front) and a writer (O_DIRECT). The first error stops all; `run` returns when
every thread it started has ended.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import xxhash

from weightd.core.backoff import full_jitter
from weightd.core.errors import ChecksumMismatch, SourceUnavailable, WeightdError
from weightd.core.parts import DEFAULT_PART, MIB, Part
from weightd.engine.jobs import FileJob, Received
from weightd.engine.threads import step_back
from weightd.sources.protocols import Reader

RECEIVE = 4 * MIB
"""Bytes asked for in one `readinto`, after which progress is counted and a stop is seen."""


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """Threads of one transfer. `attempts` per part, the first one included; `part_size` in bytes."""

    part_size: int = DEFAULT_PART
    receivers: int = 4
    hashers: int = 2
    writers: int = 2
    attempts: int = 5

    @property
    def slabs(self) -> int:
        """Enough that receivers, hashers and writers of an NVMe-only transfer each have work."""
        return self.receivers * 2 + self.hashers + self.writers


@dataclass(slots=True)
class _Task:
    """Parts of one request: one, or all of them where the origin has no ranges."""

    job: FileJob
    parts: deque[Part]
    view: memoryview | None = None
    """Of the first part that is left; kept while it is tried again, because parts behind it wait for it with theirs."""


class Stopped(Exception):
    """The transfer was stopped from outside; nothing is wrong with the source."""


class Transfer:
    """Run once. `on_done(job)` is called from some thread as each file is received, hashed and written."""

    def __init__(self, jobs: Iterable[FileJob], options: TransferOptions, on_done: Callable[[FileJob], None]) -> None:
        self.jobs = list(jobs)
        self._options = options
        self._on_done = on_done
        self._tasks = _order(self.jobs, options.hashers)
        self._left = len(self.jobs)
        self._lock = threading.Lock()
        self._taking = threading.Lock()
        self._stop = threading.Event()
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._readers: set[Reader] = set()
        self._hashers = ThreadPoolExecutor(options.hashers, "weightd-hash", step_back)
        self._writers = ThreadPoolExecutor(options.writers, "weightd-write", step_back)

    def run(self) -> None:
        """Blocks until all files are done, or raises the first error; Stopped after `stop`."""
        count = min(self._options.receivers, max(1, len(self._tasks)))
        receivers = [threading.Thread(target=self._receive, name=f"weightd-receive-{i}") for i in range(count)]
        for thread in receivers:
            thread.start()
        if self.jobs:
            self._over.wait()
        self._stop.set()
        for thread in receivers:
            thread.join()
        # Hashing may be far behind: what waits for it when the transfer was stopped is not hashed any more.
        for job in self.jobs:
            job.frontier.abandon()
        self._writers.shutdown()
        self._hashers.shutdown()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """From any thread: `run` ends soon. Idempotent."""
        self._fail(Stopped())

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._over.is_set():
                return
            self._error = error
            self._stop.set()
            self._over.set()
            readers = list(self._readers)
        for reader in readers:
            reader.abort()

    def _receive(self) -> None:
        readers: dict[int, Reader] = {}
        try:
            step_back()
            while (task := self._next()) is not None:
                self._perform(task, readers)
        except Stopped:
            pass
        except BaseException as e:  # noqa: BLE001 - `run` raises it
            self._fail(e)
        finally:
            for reader in readers.values():
                self._drop(reader)

    def _next(self) -> _Task | None:
        """In order, each with its memory reserved: no part waits for memory that parts behind it hold."""
        with self._taking:
            if self._stop.is_set() or not self._tasks:
                return None
            self._reserve(self._tasks[0].job)
            return self._tasks.popleft()

    def _reserve(self, job: FileJob) -> None:
        if not job.buffers.reserve(self._stop):
            raise Stopped

    def _perform(self, task: _Task, readers: dict[int, Reader]) -> None:
        """All parts of one request, tried again from the first part that is missing."""
        attempt = 0
        try:
            task.view = task.job.buffers.acquire(task.parts[0])
            while task.parts:
                before = len(task.parts)
                try:
                    self._request(task, readers)
                except SourceUnavailable as e:
                    self._drop(readers.pop(id(task.job), None))
                    attempt = 0 if len(task.parts) < before else attempt + 1
                    if attempt >= self._options.attempts:
                        raise
                    if self._stop.wait(full_jitter(attempt, random.random())):
                        raise Stopped from e
        except WeightdError as e:
            raise e.about(file=task.job.path) from None
        finally:
            if task.view is not None:
                task.job.buffers.release(task.view)

    def _request(self, task: _Task, readers: dict[int, Reader]) -> None:
        job, left = task.job, task.parts
        # A stream without ranges starts over: parts that are complete are read again and dropped.
        skip = 0 if job.ranges else left[0].offset
        reader = self._reader(job, readers)
        reader.start(left[0].offset - skip, sum(p.length for p in left) + skip)
        self._skip(reader, skip)
        while left:
            if task.view is None:
                self._reserve(job)
                task.view = job.buffers.acquire(left[0])
            checksum = self._fill(job, reader, left[0], task.view, last=len(left) == 1)
            view, task.view = task.view, None
            self._deliver(job, left.popleft(), view, checksum)

    def _reader(self, job: FileJob, readers: dict[int, Reader]) -> Reader:
        reader = readers.get(id(job))
        if reader is None:
            # A receiver works on few files at a time: connections to those behind are not kept.
            while len(readers) >= 2:
                self._drop(readers.pop(next(iter(readers))))
            reader = readers[id(job)] = job.reader()
            with self._lock:
                self._readers.add(reader)
        if self._stop.is_set():
            raise Stopped
        return reader

    def _drop(self, reader: Reader | None) -> None:
        if reader is not None:
            with self._lock:
                self._readers.discard(reader)
            reader.close()

    def _skip(self, reader: Reader, count: int) -> None:
        scratch = memoryview(bytearray(min(count, MIB)))
        while count:
            count -= reader.readinto(scratch[: min(count, len(scratch))])

    def _fill(self, job: FileJob, reader: Reader, part: Part, view: memoryview, *, last: bool) -> bytes:
        """Receive a part; returns its checksum.

        The body's end is checked before the `last` part is delivered: what follows may publish the file.
        """
        done = 0
        try:
            while done < part.length:
                if self._stop.is_set():
                    raise Stopped
                with view[done : done + RECEIVE] as window:
                    count = reader.readinto(window)
                done += count
                job.add(count)
            if last:
                reader.finish()
            checksum = xxhash.xxh3_128_digest(view)
            if job.expected is not None and checksum != job.expected[part.index]:
                raise ChecksumMismatch(
                    f"part {part.index} (bytes {part.offset} to {part.offset + part.length}) differs from its checksum",
                    remedy="The damaged copy is dropped and fetched again from its origin.",
                )
        except BaseException:
            job.add(-done)
            raise
        return checksum

    def _deliver(self, job: FileJob, part: Part, view: memoryview, checksum: bytes) -> None:
        job.checksums[part.index] = checksum
        received = Received(job, part, view, 2 if job.write else 1)
        if job.write:
            self._writers.submit(self._write, received)
        if job.frontier.offer(received):
            self._hashers.submit(self._hash, job)

    def _write(self, received: Received) -> None:
        job = received.job
        try:
            if job.write and not self._stop.is_set():
                job.write(received.part.offset, received.view)
        except BaseException as e:  # noqa: BLE001 - `run` raises it
            self._fail(e)
        finally:
            self._stepped(received)

    def _hash(self, job: FileJob) -> None:
        try:
            job.frontier.drain(self._stepped)
        except BaseException as e:  # noqa: BLE001 - `run` raises it
            self._fail(e)

    def _stepped(self, received: Received) -> None:
        received.release()
        if not received.job.step() or self._stop.is_set():
            return
        try:
            self._on_done(received.job)
        except BaseException as e:  # noqa: BLE001 - `run` raises it
            self._fail(e)
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._over.set()


def _order(jobs: list[FileJob], width: int) -> deque[_Task]:
    """Small files first; then `width` large files side by side, so that each of as many hashers has a file."""
    tasks: deque[_Task] = deque()
    large: list[deque[_Task]] = []
    for job in sorted(jobs, key=lambda j: len(j.parts)):
        if job.ranges and len(job.parts) > 1:
            large.append(deque(_Task(job, deque([p])) for p in job.parts))
        else:
            tasks.append(_Task(job, deque(job.parts)))
    while large:
        turn, large = large[:width], large[width:]
        while turn:
            for queue in turn:
                tasks.append(queue.popleft())
            if any(not q for q in turn):
                turn = [q for q in turn if q]
                while large and len(turn) < width:
                    turn.append(large.pop(0))
    return tasks
