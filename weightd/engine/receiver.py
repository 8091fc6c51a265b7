"""One thread that receives parts: from what is held already, else from the origin, tried again until it cannot be."""

from __future__ import annotations

import random
import threading
import time
from typing import Protocol

import xxhash

from weightd.core.backoff import full_jitter
from weightd.core.errors import ChecksumMismatch, Corruption, NotFound, SourceChanged, SourceUnavailable, WeightdError
from weightd.core.parts import MIB, Part
from weightd.engine.jobs import FileJob
from weightd.engine.requests import Request, Requests
from weightd.engine.tasks import Task
from weightd.engine.throttle import Throttle
from weightd.sources.protocols import Reader

RECEIVE = 4 * MIB
"""At most so many bytes are asked for in one `readinto`, after which progress is counted and a stop is seen."""
LEAST = 8 << 10
"""So many at first: less than what comes at once on a new connection. What came of a `readinto` that fails is lost, and
what it asks for nobody takes over: where bytes come slowly, it asks for few."""
BRISK_S = 0.015
"""After one that took no longer, four times as many are asked for; after one that took three times as long, half."""


class Stopped(Exception):
    """The transfer was stopped from outside; nothing is wrong with the source."""


class Work(Protocol):
    """What a receiver gets from its transfer."""

    stopping: threading.Event
    requests: Requests
    attempts: int
    pause: float
    throttle: Throttle | None

    def next(self, *, warm: bool) -> Task | None:
        """The next task with memory reserved for its first part, or None. `warm`: there is a connection for it."""
        ...

    def deliver(self, job: FileJob, part: Part, view: memoryview, checksum: bytes, *, held: bool) -> None:
        """A part is complete in `view`; `held`: it came from what was held and proved whole."""
        ...


class Receiver:
    """Used by one thread, which calls `run`."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._stopping = work.stopping
        self._readers: dict[FileJob, Reader] = {}
        self._window = LEAST

    def run(self) -> None:
        """Until there are no more tasks. Raises Stopped, and the error of a task that cannot be done."""
        try:
            while (task := self._work.next(warm=bool(self._readers))) is not None:
                self._perform(task)
        finally:
            for reader in self._readers.values():
                self._close(reader)

    def _perform(self, task: Task) -> None:
        """All parts of one request, tried again from the first byte that is missing."""
        try:
            if task.landing is None:
                task.land(task.job.buffers.acquire(task.parts[0]))
            if task.parts[0].index in task.job.held:
                self._prove(task)
            attempt = 0
            while task.parts:
                attempt = self._try(task, attempt)
        except WeightdError as e:
            raise e.about(file=task.job.path) from None
        finally:
            self._leave(task)

    @staticmethod
    def _leave(task: Task) -> None:
        """It touches the memory of its part no more."""
        landing, task.landing = task.landing, None
        if landing is not None:
            view, vain = landing.leave(task.at - task.begin)
            if view is not None:
                task.job.add(-vain)
                task.job.buffers.release(view)

    def _prove(self, task: Task) -> None:
        """Take the first part from what is held, if it has its checksum there; else it stays to be received."""
        job, part = task.job, task.parts[0]
        expected = job.held.pop(part.index)
        view = task.view
        if job.local is None:
            raise AssertionError("a held part without its reader")
        self._check_stop()
        reader = job.local()
        try:
            reader.start(part.offset, part.length)
            filled = 0
            while filled < part.length:
                filled += reader.readinto(view[filled:])
        except (Corruption, NotFound):
            return
        finally:
            reader.close()
        if xxhash.xxh3_128_digest(view) == expected:
            job.add(part.length, proven=True)
            task.at = part.length
            self._deliver(task, expected, held=True)

    def _try(self, task: Task, attempt: int) -> int:
        """One request. Returns the number of attempts that failed in a row."""
        parts, at = len(task.parts), task.at
        request: Request | None = None
        try:
            reader = self._reader(task.job)
            shared = task if task.job.ranges and task.job.expected is None else None
            request = self._work.requests.begin(reader, task.left, replaceable=task.job.ranges, task=shared)
            self._request(task, reader, request)
            return 0
        except SourceUnavailable as e:
            self._drop(task.job)
            if self._stopping.is_set():
                raise Stopped from e
            if request is not None and request.replaced:
                return attempt
            # Not what came and was forgotten, as a body that does not end is: that would go on for ever.
            advanced = len(task.parts) < parts or task.at - at >= MIB
            attempt = 0 if advanced else attempt + 1
            if attempt >= self._work.attempts:
                raise
            wait = max(full_jitter(attempt, random.random(), base=self._work.pause), e.retry_after or 0.0)
            if self._stopping.wait(wait):
                raise Stopped from e
            return attempt
        finally:
            if request is not None:
                self._work.requests.end(request)

    def _request(self, task: Task, reader: Reader, request: Request) -> None:
        job, left = task.job, task.parts
        # A stream without ranges starts over: what is here is read again, and must be the same.
        at = left[0].offset + (task.at if task.landing else 0)
        skip = 0 if job.ranges else at
        asked = task.left
        end = task.at + asked
        self._window = LEAST if job.expected is None else RECEIVE  # A disk is not to be felt for.
        reader.start(at - skip, asked + skip)
        if skip:
            self._skip(task, reader)
        while left:
            if task.landing is None:
                if not job.buffers.reserve(self._stopping):
                    raise Stopped
                task.land(job.buffers.acquire(left[0]))
            self._fill(task, reader, request, task.view)
            if len(left) == 1:
                # What follows the last part may publish the file: the body has to end here.
                self._finish(task, reader, cut=job.ranges and task.end < end)
            self._arrived(task)

    def _finish(self, task: Task, reader: Reader, *, cut: bool) -> None:
        """A body that did not end as it should is not believed: its last part comes again."""
        if cut:  # The rest of it is another's affair.
            self._drop(task.job)
            return
        try:
            reader.finish()
        except BaseException:
            task.job.add(-task.forget())
            raise

    def _arrived(self, task: Task) -> None:
        """All of the first part that is this task's affair is here; who is the last delivers it."""
        if task.landing is None or not task.landing.arrived():
            task.parts.popleft()
            return
        checksum = xxhash.xxh3_128_digest(task.view)
        self._check(task.job, task.parts[0], checksum)
        self._deliver(task, checksum, held=False)

    def _fill(self, task: Task, reader: Reader, request: Request, view: memoryview) -> None:
        throttle = self._work.throttle
        most = throttle.window(RECEIVE) if throttle else RECEIVE
        while asked := task.ask(min(most, self._window)):
            self._check_stop()
            with view[task.at : task.at + asked] as window:
                if throttle:
                    throttle.pass_(len(window), self._stopping)
                began = time.monotonic()
                count = reader.readinto(window)
            self._adapt(time.monotonic() - began)
            task.at += count
            self._work.requests.came(request, count)
            task.job.add(count)

    def _adapt(self, took: float) -> None:
        if took < BRISK_S:
            self._window = min(RECEIVE, self._window * 4)
        elif took > 3 * BRISK_S:
            self._window = max(LEAST, self._window // 2)

    @staticmethod
    def _check(job: FileJob, part: Part, checksum: bytes) -> None:
        if job.expected is not None and checksum != job.expected[part.index]:
            raise ChecksumMismatch(
                f"part {part.index} (bytes {part.offset} to {part.offset + part.length}) differs from its checksum",
                remedy="The damaged part is fetched again from its origin.",
            )

    def _deliver(self, task: Task, checksum: bytes, *, held: bool) -> None:
        landing = task.landing
        if landing is None:
            raise AssertionError("a part without its memory")
        task.job.take_crc(task.parts[0], landing.view)
        view = landing.deliver()
        self._leave(task)
        self._work.deliver(task.job, task.parts.popleft(), view, checksum, held=held)

    def _check_stop(self) -> None:
        if self._stopping.is_set():
            raise Stopped

    def _reader(self, job: FileJob) -> Reader:
        self._check_stop()
        reader = self._readers.get(job)
        if reader is None:
            # A receiver works on few files at a time: connections to those behind are not kept.
            while len(self._readers) >= 2:
                self._close(self._readers.pop(next(iter(self._readers))))
            # A stream that is begun again is read into memory that is nobody else's: not in another process.
            reader = self._readers[job] = job.receiver() if job.ranges else job.reader()
            self._work.requests.opened(reader)
        return reader

    def _drop(self, job: FileJob) -> None:
        reader = self._readers.pop(job, None)
        if reader is not None:
            self._close(reader)

    def _close(self, reader: Reader) -> None:
        self._work.requests.closed(reader)
        reader.close()

    def _skip(self, task: Task, reader: Reader) -> None:
        """Read again what came before. Raises SourceChanged where it is not what it was: no part of another version may
        follow it, and such an origin may name none."""
        job = task.job
        for part in job.parts[: task.parts[0].index]:
            if self._again(reader, part.length).digest() != job.checksums[part.index]:
                raise self._changed(job)
        if task.landing and task.at:
            with task.view[: task.at] as here:
                if self._again(reader, task.at).digest() != xxhash.xxh3_128_digest(here):
                    raise self._changed(job)

    def _again(self, reader: Reader, count: int) -> xxhash.xxh3_128:
        found, scratch = xxhash.xxh3_128(), memoryview(bytearray(min(count, MIB)))
        while count:
            self._check_stop()
            got = reader.readinto(scratch[: min(count, len(scratch))])
            found.update(scratch[:got])
            count -= got
        return found

    @staticmethod
    def _changed(job: FileJob) -> SourceChanged:
        return SourceChanged(
            "the origin sent other bytes at a second reading", file=job.path, remedy="Fetch the model again."
        )
