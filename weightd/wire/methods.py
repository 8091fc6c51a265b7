"""The methods of the service, by hand: the generated stubs demand the very grpcio that they were generated with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from weightd.wire.gen import weightd_pb2 as pb

SERVICE: Final = "weightd.v1.Weightd"

BEGUN: Final = ("weightd-begun", "1")
"""In the headers of a stream that is silent at first, once it listens. A call that never reached a daemon has headers
too, which are empty, and may seem to go on for a moment after they came."""


class Method(NamedTuple):
    """`request` and `answer` are protobuf classes; of a stream, `answer` is that of each message."""

    name: str
    request: Any
    answer: Any

    @property
    def path(self) -> str:
        return f"/{SERVICE}/{self.name}"


RESOLVE: Final = Method("Resolve", pb.ResolveRequest, pb.Manifest)
FETCH: Final = Method("Fetch", pb.FetchRequest, pb.FetchEvent)
ACQUIRE: Final = Method("Acquire", pb.AcquireRequest, pb.AcquireEvent)
LIST_MODELS: Final = Method("ListModels", pb.ListModelsRequest, pb.ListModelsResponse)
GET_MODEL: Final = Method("GetModel", pb.GetModelRequest, pb.Model)
WATCH: Final = Method("Watch", pb.WatchRequest, pb.Event)
VERIFY: Final = Method("Verify", pb.VerifyRequest, pb.VerifyEvent)
GET_STATUS: Final = Method("GetStatus", pb.GetStatusRequest, pb.Status)
LOAD: Final = Method("Load", pb.LoadRequest, pb.FetchEvent)
PIN: Final = Method("Pin", pb.PinRequest, pb.PinResponse)
UNPIN: Final = Method("Unpin", pb.UnpinRequest, pb.UnpinResponse)
EVICT: Final = Method("Evict", pb.EvictRequest, pb.EvictResponse)
REMOVE: Final = Method("Remove", pb.RemoveRequest, pb.RemoveResponse)
LIST_LEASES: Final = Method("ListLeases", pb.ListLeasesRequest, pb.ListLeasesResponse)


def begun(headers: Iterable[tuple[str, Any]] | None) -> bool:
    """Whether a daemon has sent these."""
    return any(key == BEGUN[0] for key, _ in headers or ())
