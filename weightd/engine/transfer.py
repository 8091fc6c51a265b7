"""Threads that move bytes: receive, check, hash, write and record the parts of some files.

Receivers take parts in order, read them straight into the memory where they stay, take their xxh3-128, and hand them
to a hasher (SHA-256 along the file's front) and a writer (O_DIRECT); a recorder notes in the ledger what was written.
The first error stops all; `run` returns when every thread it started has ended.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from weightd.core.backoff import BASE_S
from weightd.core.errors import Exhausted, Unavailable
from weightd.core.manifest import FileSpec
from weightd.core.parts import DEFAULT_PART, Part, fitting_part
from weightd.engine.jobs import FIRST, FileJob, Received
from weightd.engine.receiver import Receiver, Stopped
from weightd.engine.requests import WATCH_S, Requests
from weightd.engine.tasks import Pending, Places, Task, order
from weightd.engine.throttle import Throttle
from weightd.kernel import step_back

RAMP_S = 0.01
"""How soon more receivers follow when an origin turns out to reward more requests."""
IDLE_S = 0.02
"""How soon a receiver without work sees that it may take over some of another's."""
PAUSE_S = 0.1
"""How soon a transfer that pauses sees that it was stopped."""
GRACE_S = 0.5
"""For how long a transfer that was stopped, or failed, still writes what it has received: a stop takes a second."""

__all__ = ["Stopped", "Transfer", "TransferOptions"]


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """Threads of one transfer. `attempts` in a row per request, the first one included, with pauses that begin at up to
    `pause` seconds and double; `part_size` in bytes, at most; `throttle` is shared by all transfers that have the
    same."""

    part_size: int = DEFAULT_PART
    receivers: int = 16
    hashers: int = 2
    writers: int = 2
    attempts: int = 5
    pause: float = BASE_S
    throttle: Throttle | None = None

    def part_sizes(self, together: Iterable[FileSpec]) -> Callable[[FileSpec], int]:
        """Says of each file of those that come `together` how many bytes its parts have when it is begun."""
        size = sum(file.size for file in together)
        return lambda file: fitting_part(size, self.part_size, self.receivers, file.stored_part)

    @property
    def slabs(self) -> int:
        """Enough that receivers, hashers and writers of an NVMe-only transfer each have work."""
        return self.receivers + 2 * (self.hashers + self.writers)

    @property
    def open_files(self) -> int:
        """Files of one transfer that have a segment or an ingest open at a time: enough that each thread has one while
        as many, which are complete, are being committed."""
        return 2 * (self.receivers + self.hashers + self.writers)


class Transfer:
    """Run once. `on_done(job)` is called from some thread as each file is received, hashed and written; whoever takes
    it from there calls `closed` when the file is no longer open, which makes room for another.

    While `going` is not set, no further parts are begun.
    """

    def __init__(
        self,
        files: Iterable[Pending],
        options: TransferOptions,
        on_done: Callable[[FileJob], None],
        going: threading.Event | None = None,
    ) -> None:
        files = list(files)
        self.attempts, self.pause, self.throttle = options.attempts, options.pause, options.throttle
        self.stopping = threading.Event()
        self.requests = Requests(sum(f.parts for f in files), options.receivers)
        self._on_done, self._going = on_done, going
        self._places = Places(options.open_files)
        self._tasks = order(files, options.hashers, self._places, self.stopping)
        self._receivers = min(options.receivers, max(1, sum(f.parts if f.ranges else 1 for f in files)))
        self._width: Callable[[], int] = lambda: FIRST
        self._drained = False
        self._left = len(files)
        self._open: set[FileJob] = set()
        self._lock = threading.Lock()
        self._taking = threading.Lock()
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._grace = 0.0
        self._hashers = ThreadPoolExecutor(options.hashers, "weightd-hash", step_back)
        self._writers = ThreadPoolExecutor(options.writers, "weightd-write", step_back)
        self._recorder = ThreadPoolExecutor(1, "weightd-record", step_back)

    def run(self) -> None:
        """Blocks until all files are done, or raises the first error; Stopped after `stop`."""
        receivers: list[threading.Thread] = []
        try:
            self._watch(receivers)
        finally:
            self._end(receivers)
        if self._error is not None:
            raise self._error

    def _watch(self, receivers: list[threading.Thread]) -> None:
        look_at = time.monotonic() + WATCH_S
        while self._left and not self._over.is_set():
            self._start_more(receivers)
            self._over.wait(RAMP_S)
            if time.monotonic() >= look_at:
                if not self._limited():
                    self.requests.replace_slow()
                look_at = time.monotonic() + WATCH_S

    def _end(self, receivers: list[threading.Thread]) -> None:
        self.stopping.set()
        for thread in receivers:
            thread.join()
        # Hashing may be far behind: what waits for it when the transfer was stopped is not hashed any more.
        with self._lock:
            left = list(self._open)
        for job in left:
            job.frontier.abandon()
        for pool in (self._writers, self._recorder, self._hashers):
            pool.shutdown()

    def _start_more(self, receivers: list[threading.Thread]) -> None:
        """As many as where the last part came from is worth: each holds the memory of a part while it waits."""
        while not self._drained and len(receivers) < min(self._receivers, max(1, self._width())):
            thread = threading.Thread(target=self._receive, name=f"weightd-receive-{len(receivers)}")
            try:
                thread.start()
            except RuntimeError as e:
                if not receivers:
                    raise Unavailable(f"no thread can be started: {e}", remedy="Raise the limit of tasks.") from None
                self._receivers = len(receivers)  # As many as there can be.
                return
            receivers.append(thread)

    def stop(self) -> None:
        """From any thread: `run` ends soon. Idempotent."""
        self._fail(Stopped())

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._over.is_set():
                return
            self._error = error
            self._grace = time.monotonic() + (0 if isinstance(error, Exhausted) else GRACE_S)
            self.stopping.set()
            self._over.set()
            left = list(self._open)
        self.requests.abort()
        for job in left:
            job.abort()

    def _receive(self) -> None:
        try:
            step_back()
            Receiver(self).run()
        except Stopped:
            pass
        except BaseException as e:  # noqa: BLE001 - `run` raises it
            _forget(e)
            self._fail(e)

    def next(self, *, warm: bool) -> Task | None:
        """In order, each with its memory reserved: no part waits for memory that parts behind it hold. When all were
        taken, some of what others have yet to receive."""
        task = self._next()
        while task is None and not self.stopping.is_set() and self.requests.divisible:
            self._pause()
            if self._limited() or (task := self.requests.take_over(warm=warm)) is None:
                self.stopping.wait(IDLE_S)
        return task

    def _limited(self) -> bool:
        """By ourselves: then a request that is cut or replaced costs what is on its way, and brings nothing sooner."""
        return self.throttle is not None and self.throttle.limits()

    def _pause(self) -> None:
        while self._going and not self._going.wait(PAUSE_S) and not self.stopping.is_set():
            pass

    def _next(self) -> Task | None:
        with self._taking:
            self._pause()
            while not self.stopping.is_set() and (task := next(self._tasks, None)) is not None:
                self._width = task.job.width
                with self._lock:
                    self._open.add(task.job)
                if task.parts:
                    if not task.job.buffers.reserve(self.stopping):
                        raise Stopped
                    return task
                self._complete(task.job)
            self._drained = True
            return None

    def closed(self) -> None:
        """A file that was done is no longer open. From any thread."""
        self._places.give_back()

    def deliver(self, job: FileJob, part: Part, view: memoryview, checksum: bytes, *, held: bool) -> None:
        """A part is complete: hash it along the front, and write it unless it is in its place already."""
        job.checksums[part.index] = checksum
        write = job.write is not None and not (held and job.in_place)
        received = Received(job, part, view, 2 if write else 1)
        if write:
            self._writers.submit(self._write, received)
        elif job.write is not None:
            job.step()
        if job.frontier.offer(received):
            self._hashers.submit(self._hash, job)

    def _write(self, received: Received) -> None:
        job, part = received.job, received.part
        try:
            if job.write and self._worth_writing(job):
                job.write(part.offset, received.view)
                if job.record and job.note(part.index, job.checksums[part.index]):
                    self._recorder.submit(self._record, job)
        except BaseException as e:  # noqa: BLE001 - `run` raises it
            self._fail(e)
        finally:
            self._stepped(received)

    def _worth_writing(self, job: FileJob) -> bool:
        return not self.stopping.is_set() or (job.record is not None and time.monotonic() < self._grace)

    def _record(self, job: FileJob) -> None:
        """All that was written by now in one go: a disk makes many parts durable at the price of one."""
        try:
            parts = job.noted()
            if job.record:
                job.record(parts)
        except BaseException as e:  # noqa: BLE001 - `run` raises it
            self._fail(e)

    def _hash(self, job: FileJob) -> None:
        try:
            job.frontier.drain(self._stepped)
        except BaseException as e:  # noqa: BLE001 - `run` raises it
            self._fail(e)

    def _stepped(self, received: Received) -> None:
        received.release()
        if received.job.step() and not self.stopping.is_set():
            self._complete(received.job)

    def _complete(self, job: FileJob) -> None:
        with self._lock:
            self._open.discard(job)
        try:
            self._on_done(job)
        except BaseException as e:  # noqa: BLE001 - `run` raises it
            self._fail(e)
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._over.set()


def _forget(error: BaseException | None) -> None:
    """Drop what the frames of `error` hold: views of memory that is about to be unmapped."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
