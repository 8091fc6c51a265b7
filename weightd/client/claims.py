"""Claims that are on their way back: what `regain` and `aio_regain` have in common."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Generic, NamedTuple, TypeVar

from weightd.client import again
from weightd.client.hold import Hold, OpenCall
from weightd.core.errors import NotFound, Precondition, SocketDenied, Unavailable, WeightdError
from weightd.wire.gen import weightd_pb2 as pb

C = TypeVar("C", bound=OpenCall)


class Asked(NamedTuple, Generic[C]):
    """A claim that has been sent, and is not answered yet as far as was read."""

    hold: Hold
    call: C


class Claims(Generic[C]):
    """Those that `wait` to be sent, and those that were `asked`. Of one thread or loop."""

    def __init__(self) -> None:
        self.waiting: list[Hold] = []
        self.asked: list[Asked[C]] = []

    def __bool__(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.waiting or self.asked)

    def take(self, lost: Iterable[Hold]) -> None:
        """These wait too; nobody waits any more for what was ended."""
        self.waiting = [h for h in [*self.waiting, *lost] if not h.ended]
        self.asked = [a for a in self.asked if not a.hold.ended]

    def by_model(self) -> list[list[Asked[C]]]:
        """Takes out what was asked, together what claims one snapshot."""
        asked, self.asked = sorted(self.asked, key=_model), []
        return [list(group) for _, group in groupby(asked, key=_model)]

    def ready(self, group: list[Asked[C]], readable: bool | None) -> list[Asked[C]]:
        """Of these, which claim one snapshot, those that can be read without waiting; the others are kept."""
        ready: list[Asked[C]] = []
        for one in group:
            (ready if readable or not one.call.is_open() else self.asked).append(one)
        return ready

    def refused(self, hold: Hold, error: WeightdError, *, closed: bool) -> WeightdError:
        """It is lost, or waits to be sent again. Returns the error."""
        if not closed and not hold.ended:
            if again.is_final(error):
                hold.lose(error)
            else:
                self.waiting.append(hold)
        return error


def presence_request(hold: Hold) -> pb.GetModelRequest:
    """Of its snapshot."""
    ref, revision = hold.model
    return pb.GetModelRequest(ref=ref, revision=revision)


def is_present(model: pb.Model) -> bool:
    """Whether a claim on it can be read at once."""
    return bool(model.shm == pb.RESIDENCY_RESIDENT)


def readable_after(error: WeightdError) -> bool | None:
    """Whether a claim can be read when its snapshot was asked for with this outcome: one that is not held is refused at
    once. None when no daemon answers."""
    if isinstance(error, NotFound):
        return True
    return None if isinstance(error, (Unavailable, SocketDenied, Precondition)) else False


def _model(asked: Asked[C]) -> tuple[str, str]:
    return asked.hold.model
