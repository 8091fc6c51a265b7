"""The synchronous client."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from types import TracebackType

from weightd.client import convert
from weightd.client.address import socket_path
from weightd.client.connection import Connection, Stream
from weightd.client.faults import unfinished
from weightd.client.lease import Lease
from weightd.client.link import ANSWER_LIMIT
from weightd.client.types import EventInfo, Evicted, FileCheck, LeaseInfo, ManifestInfo, ModelInfo, StatusInfo, Tier
from weightd.core.errors import WeightdError
from weightd.core.progress import Progress
from weightd.wire import methods
from weightd.wire.convert import progress_from_pb
from weightd.wire.gen import weightd_pb2 as pb

OnProgress = Callable[[Progress], object]


class Client:
    """Asks the host's daemon. Connects at the first call; thread-safe; refused after fork (see `weightd.client.forks`).

    `socket`: path of the daemon's socket; unless given, as `weightd.core.paths.default_socket` says.

    Every verb raises the error that the daemon raised, by class, or DaemonUnavailable, SocketDenied, ForkedClient.
    """

    def __init__(self, socket: str | os.PathLike[str] | None = None) -> None:
        self.socket = socket_path(socket)
        self._connection = Connection(self.socket)

    def resolve(self, ref: str) -> ManifestInfo:
        """What `ref` means now. Asks the origin; fetches nothing."""
        request = pb.ResolveRequest(ref=convert.checked_ref(ref))
        return convert.manifest_info(self._connection.unary(methods.RESOLVE, request, ref))

    def fetch(
        self, ref: str, sha256: str | None = None, tier: Tier | None = None, on_progress: OnProgress | None = None
    ) -> ModelInfo:
        """Bring `ref` onto this host, and wait for it.

        `sha256`, of a ref of one file: what it must have. `tier` "nvme" leaves shared memory alone; without it the
        model's policy says: "nvme" for a cold one, else "shm". `on_progress` is called in this thread, some ten times a
        second.
        """
        with self._connection.stream(methods.FETCH, convert.fetch_request(ref, sha256, tier), ref) as events:
            return _followed(events, ref, on_progress)

    def load(self, ref: str, on_progress: OnProgress | None = None) -> ModelInfo:
        """Bring what the daemon holds of `ref` into shared memory, without asking its origin, and wait for it. Raises
        ModelNotFound."""
        with self._connection.stream(methods.LOAD, pb.LoadRequest(ref=convert.checked_ref(ref)), ref) as events:
            return _followed(events, ref, on_progress)

    def pin(self, ref: str) -> ModelInfo:
        """From now on, over restarts of the daemon, no tier drops `ref`. Loads nothing. Raises ModelNotFound."""
        request = pb.PinRequest(ref=convert.checked_ref(ref))
        return convert.model_info(self._connection.unary(methods.PIN, request, ref).model)

    def unpin(self, ref: str) -> ModelInfo:
        """Idempotent. Raises ModelNotFound, Precondition for a hot model, which the configuration pins."""
        request = pb.UnpinRequest(ref=convert.checked_ref(ref))
        return convert.model_info(self._connection.unary(methods.UNPIN, request, ref).model)

    def evict(self, ref: str) -> Evicted:
        """All snapshots of `ref` leave shared memory, and stay on NVMe; what is mapped stays valid. Raises
        ModelNotFound, and ModelLeased, ModelPinned or ModelBusy, and then nothing has changed."""
        answer = self._connection.unary(methods.EVICT, pb.EvictRequest(ref=convert.checked_ref(ref)), ref)
        return Evicted(shm=answer.freed, draining=answer.draining)

    def remove(self, ref: str) -> Evicted:
        """All snapshots of `ref` leave the host, both tiers. Raises as `evict`."""
        answer = self._connection.unary(methods.REMOVE, pb.RemoveRequest(ref=convert.checked_ref(ref)), ref)
        return Evicted(shm=answer.shm, nvme=answer.nvme)

    def leases(self, ref: str = "") -> list[LeaseInfo]:
        """Who leases `ref`, or anything, or waits for it: the oldest first. Raises ModelNotFound."""
        request = convert.leases_request(ref)
        return convert.lease_infos(self._connection.unary(methods.LIST_LEASES, request, ref, limit=ANSWER_LIMIT))

    def verify(
        self, ref: str = "", *, quick: bool = False, on_progress: Callable[[int, int], None] | None = None
    ) -> Generator[FileCheck]:
        """Check again what is at rest of `ref`, or of all models, and repair it: a FileCheck for each file, as it is
        done. `quick` compares sizes only; `on_progress(done, total)` counts bytes read. Closing the iterator stops it.
        """
        with self._connection.stream(methods.VERIFY, convert.verify_request(ref, quick), ref) as events:
            for event in events:
                if event.HasField("check"):
                    yield convert.file_check(event.check)
                elif on_progress is not None:
                    on_progress(event.progress.bytes_done, event.progress.bytes_total)

    def acquire(self, ref: str, on_progress: OnProgress | None = None, timeout: float | None = None) -> Lease:
        """Claim `ref`, in shared memory; brings it there first where need be.

        `timeout` in seconds, for the model to be there, else TimedOut; the lease itself has no end.
        """
        request = pb.AcquireRequest(ref=convert.checked_ref(ref))
        call = self._connection.stream(methods.ACQUIRE, request, ref, timeout=timeout)
        try:
            for event in call:
                if event.HasField("handles"):
                    call.keep_open()
                    return Lease(event.handles, call)
                report(on_progress, event.progress)
        except BaseException:
            call.end()
            raise
        raise unfinished(ref)

    def models(self) -> list[ModelInfo]:
        """Every snapshot that the daemon holds: by ref, the current one first, then the old ones, the newest first."""
        answer = self._connection.unary(methods.LIST_MODELS, pb.ListModelsRequest(), limit=ANSWER_LIMIT)
        return convert.model_infos(answer)

    def model(self, ref: str, revision: str = "") -> ModelInfo:
        """The current snapshot, or the one of `revision`. Raises ModelNotFound."""
        request = convert.model_request(ref, revision)
        return convert.model_info(self._connection.unary(methods.GET_MODEL, request, ref, limit=ANSWER_LIMIT))

    def status(self) -> StatusInfo:
        """The daemon itself."""
        answer = self._connection.unary(methods.GET_STATUS, pb.GetStatusRequest(), limit=ANSWER_LIMIT)
        return convert.status_info(answer)

    def watch(self) -> Watch:
        """Events from the moment this returns."""
        return Watch(self._connection.stream(methods.WATCH, pb.WatchRequest(), headers=True))

    def close(self) -> None:
        """Ends this client's leases and calls. Views stay valid. Idempotent."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client {self.socket}>"


class Watch:
    """Iterate for events, in the order in which they happen; `close`, from any thread, ends the iteration."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._events = iter(stream)
        self._closed = False

    def __iter__(self) -> Iterator[EventInfo]:
        return self

    def __next__(self) -> EventInfo:
        """Raises TooSlow for a reader that fell too far behind, Draining when the daemon stops."""
        try:
            return convert.event_info(next(self._events))
        except WeightdError:
            if self._closed:
                raise StopIteration from None
            raise

    def close(self) -> None:
        """Idempotent."""
        self._closed = True
        self._stream.end()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _followed(events: Stream, ref: str, on_progress: OnProgress | None) -> ModelInfo:
    for event in events:
        if event.HasField("model"):
            return convert.model_info(event.model)
        report(on_progress, event.progress)
    raise unfinished(ref)


def report(on_progress: OnProgress | None, progress: pb.Progress) -> None:
    """Tell the caller, who may not want to know."""
    if on_progress is not None:
        on_progress(progress_from_pb(progress))
