"""When to ask a daemon again that is being restarted, and when not."""

from __future__ import annotations

from typing import Final, NamedTuple

from weightd.core.backoff import full_jitter
from weightd.core.errors import (
    DaemonUnavailable,
    Draining,
    Exhausted,
    ModelBusy,
    ModelNotFound,
    SocketDenied,
    SourceChanged,
    Unavailable,
    WeightdError,
)
from weightd.wire.gen import weightd_pb2 as pb

RECONNECT: Final = 30.0
"""Seconds without any daemon after which a call that waits gives up, unless the client says otherwise."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
"""Seconds. A daemon that was restarted keeps what it adopted for longer than the longest."""
_LAST_DOUBLING: Final = 10
"""Of the first pause; well beyond the longest, and before a float overflows."""

INTERRUPTIONS: Final = (Draining, DaemonUnavailable, SocketDenied)
"""What a call meets while its daemon is stopped and the next one is started; the socket is there for an instant before
it is given to its group."""
_PASSING: Final = (Unavailable, Exhausted, SourceChanged, ModelBusy, SocketDenied)


class Deadline(NamedTuple):
    """Of a caller that gave `seconds`; `at` on the monotonic clock."""

    seconds: float
    at: float


def pause(attempt: int, draw: float) -> float:
    """Seconds before attempt `attempt` + 1 (the first is 0); `draw` is uniform in [0, 1)."""
    return full_jitter(min(attempt, _LAST_DOUBLING), draw, base=FIRST_PAUSE, cap=LONGEST_PAUSE)


class Patience:
    """How long one call is asked again: until no daemon has answered it for `reconnect` seconds."""

    def __init__(self, reconnect: float) -> None:
        self._reconnect = reconnect
        self._until: float | None = None
        self._attempt = 0

    def heard(self) -> None:
        """A daemon answered."""
        self._until = None
        self._attempt = 0

    def next_pause(self, error: WeightdError, now: float, draw: float) -> float | None:
        """Seconds to wait after `error` at time `now`; None when it is final."""
        if self._reconnect <= 0 or not isinstance(error, INTERRUPTIONS):
            return None
        if self._until is None:
            self._until = now + self._reconnect
        left = self._until - now
        if left <= 0:
            return None
        self._attempt += 1
        return min(left, pause(self._attempt - 1, draw))


def is_final(error: WeightdError) -> bool:
    """Whether a lease is lost by it: asking once more for what is mapped cannot help."""
    return not isinstance(error, _PASSING)


def other_snapshot(before: pb.Handles, now: pb.Handles) -> WeightdError | None:
    """Why `now` are not the files that are mapped; None when they are."""
    if before.revision == now.revision and _identity(before) == _identity(now):
        return None
    return ModelNotFound(
        f"the daemon has revision {now.revision} in place of {before.revision}, which is mapped here",
        remedy="Acquire the model again; views already taken stay as they are.",
    )


def _identity(handles: pb.Handles) -> dict[str, tuple[str, int]]:
    return {f.path: (f.digest, f.length) for f in handles.files}
