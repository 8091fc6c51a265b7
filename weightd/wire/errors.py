"""The one table between error classes and gRPC, both ways."""

from __future__ import annotations

from typing import Final

from weightd.core import errors as e
from weightd.wire.gen import weightd_pb2 as pb
from weightd.wire.runtime import grpc

DETAIL_KEY: Final = "weightd-error-bin"
MAX_FIELD: Final = 2000
"""Characters of each field of a detail, and of the status message: longer texts are cut, with "…" at the end."""

STATUS: Final[dict[type[e.WeightdError], grpc.StatusCode]] = {
    e.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    e.NotFound: grpc.StatusCode.NOT_FOUND,
    e.AccessDenied: grpc.StatusCode.PERMISSION_DENIED,
    e.Precondition: grpc.StatusCode.FAILED_PRECONDITION,
    e.SourceChanged: grpc.StatusCode.ABORTED,
    e.Unavailable: grpc.StatusCode.UNAVAILABLE,
    e.Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    e.Corruption: grpc.StatusCode.DATA_LOSS,
    e.WeightdError: grpc.StatusCode.INTERNAL,
}


def status_of(error: e.WeightdError) -> grpc.StatusCode:
    """The code of the error's family."""
    return next(STATUS[c] for c in type(error).__mro__ if c in STATUS)


def to_detail(error: e.WeightdError) -> bytes:
    """The value of the trailing metadata DETAIL_KEY."""
    return pb.ErrorDetail(
        kind=type(error).__name__,
        message=_cut(error.message),
        ref=_cut(error.ref),
        file=_cut(error.file),
        remedy=_cut(error.remedy),
    ).SerializeToString()


def to_message(error: e.WeightdError) -> str:
    """The status message, for those who read no trailer (grpcurl): ASCII, as gRPC triples every other byte."""
    return _cut(str(error)).encode("ascii", "backslashreplace").decode("ascii")[:MAX_FIELD]


def _cut(text: str) -> str:
    """Such as protobuf and the limit on metadata take; file names may hold surrogates, which UTF-8 cannot."""
    clean = text.encode("utf-8", "backslashreplace").decode()
    return clean if len(clean) <= MAX_FIELD else clean[: MAX_FIELD - 1] + "…"


def from_detail(raw: bytes) -> e.WeightdError:
    """The error that the daemon raised; an unknown class, from a newer daemon, becomes WeightdError."""
    d = pb.ErrorDetail.FromString(raw)
    cls = e.all_errors().get(d.kind, e.WeightdError)
    return cls(d.message, ref=d.ref, file=d.file, remedy=d.remedy)
