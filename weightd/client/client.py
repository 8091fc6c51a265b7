"""The synchronous client."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from time import monotonic
from types import TracebackType
from typing import Any

from weightd.client import convert
from weightd.client.address import segment_directory, socket_path
from weightd.client.again import RECONNECT, Deadline
from weightd.client.connection import Connection, Stream
from weightd.client.faults import unfinished
from weightd.client.files import Claim
from weightd.client.hold import Hold
from weightd.client.holder import this_process
from weightd.client.lease import Lease
from weightd.client.link import ANSWER_LIMIT
from weightd.client.regain import Regainer
from weightd.client.types import EventInfo, Evicted, FileCheck, LeaseInfo, ManifestInfo, ModelInfo, StatusInfo, Tier
from weightd.client.waiting import Waiting
from weightd.core.errors import WeightdError
from weightd.core.progress import Progress
from weightd.wire import methods
from weightd.wire.convert import progress_from_pb
from weightd.wire.gen import weightd_pb2 as pb
from weightd.wire.methods import Method

OnProgress = Callable[[Progress], object]


class Client:
    """Asks the host's daemon. Connects at the first call; thread-safe; refused after fork (see `weightd.client.forks`).

    `socket`: path of the daemon's socket; unless given, as `weightd.core.paths.default_socket` says.

    `reconnect`: `fetch` and `acquire` survive a restart of the daemon. Once a daemon has answered this client, they ask
    again while none answers, for as many seconds; 0 for never. A client that no daemon has answered yet fails at once.

    `shm`: the directory in which this process sees the daemon's segments, unless it is the one that the daemon says
    (/dev/shm by default): for containers that have it mounted elsewhere. Unless given, `WEIGHTD_SHM`.

    Every verb raises the error that the daemon raised, by class, or DaemonUnavailable, SocketDenied, ForkedClient.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        reconnect: float = RECONNECT,
        shm: str | os.PathLike[str] | None = None,
    ) -> None:
        self.socket = socket_path(socket)
        self._reconnect = reconnect
        self._shm = segment_directory(shm)
        self._connection = Connection(self.socket)
        self._regainer = Regainer(self._connection, reconnect)

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
        with self._waiting(methods.FETCH, convert.fetch_request(ref, sha256, tier), ref) as events:
            return _followed(events, ref, on_progress)

    def load(self, ref: str, on_progress: OnProgress | None = None) -> ModelInfo:
        """Bring what the daemon holds of `ref` into shared memory, without asking its origin, and wait for it. Raises
        ModelNotFound."""
        with self._waiting(methods.LOAD, pb.LoadRequest(ref=convert.checked_ref(ref)), ref) as events:
            return _followed(events, ref, on_progress)

    def _waiting(self, method: Method, request: Any, ref: str, deadline: Deadline | None = None) -> Waiting:
        return Waiting(self._connection, method, request, ref, reconnect=self._reconnect, deadline=deadline)

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

    def acquire(
        self,
        ref: str,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
        *,
        prefault: bool = False,
    ) -> Lease:
        """Claim `ref`, in shared memory; brings it there first where need be.

        `timeout` in seconds, for the model to be there, else TimedOut; the lease itself has no end. `prefault`: as
        `Lease.prefault`, whose result is then in `Lease.prefaulted`.
        """
        lease = self._acquire(ref, on_progress, None if timeout is None else Deadline(timeout, monotonic() + timeout))
        if prefault:
            try:
                lease.prefault()
            except BaseException:
                lease.release()
                raise
        return lease

    def _acquire(self, ref: str, on_progress: OnProgress | None, deadline: Deadline | None) -> Lease:
        request = pb.AcquireRequest(ref=convert.checked_ref(ref), holder=this_process())
        call = self._waiting(methods.ACQUIRE, request, ref, deadline)
        try:
            for event in call:
                if event.HasField("handles"):
                    call.stream.keep_open()
                    return self._lease(ref, event.handles, call.stream)
                report(on_progress, event.progress)
        except BaseException:
            call.end()
            raise
        raise unfinished(ref)

    def _lease(self, ref: str, handles: pb.Handles, call: Stream) -> Lease:
        hold = Hold(ref, call, Claim(handles, self._shm), self._regainer)
        lease = Lease(hold)
        hold.watch()
        return lease

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
        self._regainer.close()

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
        self._closed = False

    def __iter__(self) -> Iterator[EventInfo]:
        return self

    def __next__(self) -> EventInfo:
        """Raises TooSlow for a reader that fell too far behind, Draining when the daemon stops."""
        try:
            event = self._stream.read()
        except WeightdError:
            if not self._closed:
                raise
            event = None
        if event is None:
            raise StopIteration
        return convert.event_info(event)

    def close(self) -> None:
        """Idempotent."""
        self._closed = True
        self._stream.end()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _followed(events: Waiting, ref: str, on_progress: OnProgress | None) -> ModelInfo:
    for event in events:
        if event.HasField("model"):
            return convert.model_info(event.model)
        report(on_progress, event.progress)
    raise unfinished(ref)


def report(on_progress: OnProgress | None, progress: pb.Progress) -> None:
    """Tell the caller, who may not want to know."""
    if on_progress is not None:
        on_progress(progress_from_pb(progress))
