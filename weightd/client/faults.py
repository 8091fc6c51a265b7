"""From gRPC's errors to weightd's: the one place where the client translates."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from weightd.client.address import diagnose, listens
from weightd.core.errors import DaemonUnavailable, Exhausted, Precondition, TimedOut, Unavailable, WeightdError
from weightd.wire.errors import DETAIL_KEY, from_detail
from weightd.wire.runtime import grpc


def closed() -> Precondition:
    """After `close`."""
    return Precondition("the client is closed", remedy="Make a new Client.")


def timed_out(ref: str, seconds: float) -> TimedOut:
    """The caller's limit."""
    return TimedOut(
        f"no answer within {seconds:g} s", ref=ref, remedy="Give a longer timeout; a fetch under way is kept by others."
    )


def unfinished(ref: str) -> WeightdError:
    """A daemon that breaks the protocol."""
    return WeightdError("the daemon ended the call without an answer", ref=ref, remedy="Update the daemon or client.")


def translate(error: grpc.RpcError, socket: Path, ref: str = "") -> WeightdError:
    """The daemon's own error where the call has one, else what the status and the socket tell. May connect once."""
    call: Any = error
    raw = _detail(call.trailing_metadata() or ())
    if raw is not None:
        return from_detail(raw).about(ref=ref)
    code, details = call.code(), call.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE:
        return diagnose(socket).about(ref=ref)
    return _by_status(code, details, socket).about(ref=ref)


def is_answer(error: grpc.RpcError) -> bool:
    """A daemon raised it."""
    call: Any = error
    return _detail(call.trailing_metadata() or ()) is not None


def is_stale(error: grpc.RpcError, socket: Path) -> bool:
    """The connection failed, but somebody listens: the daemon was restarted, and a new connection may do."""
    call: Any = error
    return call.code() is grpc.StatusCode.UNAVAILABLE and not is_answer(error) and listens(socket)


def _detail(metadata: Iterable[tuple[str, Any]]) -> bytes | None:
    return next((bytes(value) for key, value in metadata if key == DETAIL_KEY), None)


def _by_status(code: Any, details: str, socket: Path) -> WeightdError:
    if code is grpc.StatusCode.CANCELLED:
        return DaemonUnavailable("the call was ended", file=str(socket), remedy="Call again.")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOut("the daemon did not answer in time", file=str(socket), remedy="Is it stopped or overloaded?")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Exhausted(details)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Precondition(f"the daemon does not know this call: {details}", remedy="Update the daemon.")
    return Unavailable(details) if code is None else WeightdError(f"{code.name}: {details}")
