"""The claim behind a lease, over restarts of the daemon."""

from __future__ import annotations

import enum
import functools
import os
from collections.abc import Callable
from typing import Protocol

from weightd.client import again
from weightd.client.files import Claim
from weightd.client.holder import this_process
from weightd.core.errors import WeightdError
from weightd.wire.gen import weightd_pb2 as pb


class LeaseState(enum.StrEnum):
    """Of a claim, as far as this process has heard; see `weightd.client.lease.Lease`."""

    ALIVE = "alive"
    """The daemon holds it."""
    REGAINING = "regaining"
    """The daemon ended the call, or was ended; the client asks for the same snapshot again."""
    LOST = "lost"
    """That snapshot cannot be claimed any more; `Lease.error` says why."""
    RELEASED = "released"
    """By `release`, or with its client."""
    INHERITED = "inherited"
    """In a forked child: the claim, if it is one still, is the parent's."""


class OpenCall(Protocol):
    """The call that is the lease. All methods return at once."""

    def is_open(self) -> bool: ...

    def end(self) -> None:
        """Idempotent; from any thread."""
        ...

    def on_end(self, callback: Callable[[], None]) -> None:
        """`callback` runs once, when the call has ended, whoever ended it, in a thread of gRPC's or on the loop."""
        ...


class Keeper(Protocol):
    """What regains the leases of one client."""

    @property
    def closed(self) -> bool: ...

    def ended(self, hold: Hold) -> None:
        """The call behind `hold` has ended. Returns at once."""
        ...

    def settled(self, hold: Hold) -> bool:
        """Waits for a while, where it can, for a claim that is being regained; whether it was."""
        ...


class Hold:
    """`call` has been answered with the handles in `claim`, or, while it is regained, is the one that may be.

    Without a lock of its own, so that it can be ended wherever the garbage collector happens to run.
    """

    __slots__ = ("_keeper", "_pid", "_ref", "answered", "call", "claim", "ended", "error")

    def __init__(self, ref: str, call: OpenCall, claim: Claim, keeper: Keeper) -> None:
        self._ref = ref  # as the caller gave it; what the handles say may have lost a password
        self._keeper = keeper
        self._pid = os.getpid()
        self.call = call
        self.claim = claim
        self.answered = True
        self.ended = False
        self.error: WeightdError | None = None
        claim.settled = self.settled  # until the end: a circle

    @property
    def state(self) -> LeaseState:
        if self.ended:
            return LeaseState.RELEASED
        if self._pid != os.getpid():
            return LeaseState.INHERITED
        if self.error is not None:
            return LeaseState.LOST
        if self.answered and self.call.is_open():
            return LeaseState.ALIVE
        return LeaseState.RELEASED if self._keeper.closed else LeaseState.REGAINING

    @property
    def model(self) -> tuple[str, str]:
        """Ref and revision."""
        return self._ref, self.claim.handles.revision

    def settled(self) -> bool:
        """See `Keeper.settled`."""
        return self._keeper.settled(self)

    def watch(self) -> None:
        """From now on its end is told to the keeper."""
        self.call.on_end(functools.partial(self._keeper.ended, self))

    def request(self) -> pb.AcquireRequest:
        """For the very snapshot that is mapped."""
        return pb.AcquireRequest(ref=self._ref, revision=self.claim.handles.revision, holder=this_process())

    def asked(self, call: OpenCall) -> None:
        """`call` has been sent, and is not answered yet."""
        self.call = call
        if self.ended:
            call.end()

    def regained(self, handles: pb.Handles) -> None:
        """`call` has been answered. Another snapshot than before is as good as none."""
        other = again.other_snapshot(self.claim.handles, handles)
        if other is not None:
            self.call.end()
            self.lose(other)
            return
        self.claim.handles = handles
        self.answered = True
        self.watch()

    def lose(self, error: WeightdError) -> None:
        """For good."""
        self.error = error.about(ref=self.claim.handles.ref)

    def end(self) -> None:
        """By its owner. Idempotent; nothing in a forked child, where the claim is not its own to end."""
        if self._pid != os.getpid():
            return
        self.ended = True
        self.claim.settled = None
        self.call.end()
