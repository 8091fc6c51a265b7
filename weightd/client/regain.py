"""Leases that their daemon ended are claimed again, in the background: for the synchronous client."""

from __future__ import annotations

import random
import threading
from itertools import groupby
from typing import Final, NamedTuple

from weightd.client import again, forks
from weightd.client.connection import Connection, Stream
from weightd.client.faults import unfinished
from weightd.client.hold import Hold, LeaseState
from weightd.core.errors import Exhausted, NotFound, Precondition, SocketDenied, Unavailable, WeightdError
from weightd.wire import methods
from weightd.wire.gen import weightd_pb2 as pb

ANSWER_S: Final = 10.0
"""Limit for what a daemon answers from its memory; longer, and the next round asks again."""


class Regainer:
    """All leases of one client. One thread, while there is something to regain.

    In rounds, with growing pauses: the daemon is asked for each snapshot, and an answer is read when it is resident, so
    that one thread waits for none of them. Claims that wait for a snapshot to be loaded stay open meanwhile.

    `patience`: seconds that somebody who needs a segment waits for its claim.
    """

    def __init__(self, connection: Connection, patience: float) -> None:
        self._connection = connection
        self._patience = patience
        self._changed = threading.Condition(threading.Lock())
        self._lost: list[Hold] = []
        self._thread: threading.Thread | None = None
        # Of the thread only:
        self._waiting: list[Hold] = []
        self._asked: list[_Asked] = []

    @property
    def closed(self) -> bool:
        return self._connection.closed

    def ended(self, hold: Hold) -> None:
        """See `hold.Keeper`. In a thread of gRPC's, or of the caller's."""
        if hold.ended or self.closed or forks.is_child():
            return
        with self._changed:
            if not hold.answered:
                return
            hold.answered = False
            self._lost.append(hold)
            if self._thread is None:
                self._start()

    def settled(self, hold: Hold) -> bool:
        """See `hold.Keeper`."""
        if hold.state is LeaseState.REGAINING:  # never in a forked child, where the lock may be locked forever
            with self._changed:
                self._changed.wait_for(lambda: hold.state is not LeaseState.REGAINING, self._patience)
        return hold.state == LeaseState.ALIVE

    def close(self) -> None:
        """After the connection's. The thread ends by itself."""
        if forks.is_child():
            return
        with self._changed:
            self._changed.notify_all()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="weightd-regain", daemon=True)
        try:
            thread.start()
        except RuntimeError as e:  # no thread can be started, or the interpreter is ending
            for hold in self._lost:
                hold.lose(Exhausted(f"no thread to claim it again: {e}"))
            self._lost.clear()
        else:
            self._thread = thread

    def _run(self) -> None:
        attempt = 0
        try:
            while self._take():
                attempt = 0 if self._round() else attempt + 1
                self._pause(attempt)
        except Precondition:
            if not self.closed:
                raise
        finally:
            with self._changed:
                if self._thread is threading.current_thread():
                    self._thread = None
                self._changed.notify_all()

    def _take(self) -> bool:
        """Take over what was lost meanwhile. False when nothing is left to do."""
        with self._changed:
            self._waiting = [h for h in self._waiting + self._lost if not h.ended]
            self._asked = [a for a in self._asked if not a.hold.ended]
            self._lost.clear()
            if self.closed or not (self._waiting or self._asked):
                self._thread = None
                return False
            return True

    def _pause(self, attempt: int) -> None:
        if self._waiting or self._asked:
            with self._changed:
                self._changed.wait_for(lambda: self.closed, again.pause(attempt, random.random()))

    def _round(self) -> bool:
        """Whether anything was regained."""
        self._ask()
        asked, self._asked = sorted(self._asked, key=_model), []
        ready = [one for _, group in groupby(asked, key=_model) for one in self._answered(list(group))]
        failed = [self._collect(one) for one in ready]
        with self._changed:
            self._changed.notify_all()
        return None in failed

    def _ask(self) -> None:
        """Send all claims that wait, once one of them was not refused."""
        todo, self._waiting = self._waiting, []
        while todo and self._readable(todo[0]) is not None:  # A daemon answers, and the connection is a good one.
            first = self._send(todo.pop(0))
            self._readable(first.hold)  # Answered after the claim was refused, if it was.
            if first.call.is_open():
                self._asked += [first, *(self._send(hold) for hold in todo)]
                return
            if isinstance(self._collect(first), again.INTERRUPTIONS):
                break
        self._waiting += todo

    def _send(self, hold: Hold) -> _Asked:
        call = self._connection.send(methods.ACQUIRE, hold.request(), hold.model[0])
        hold.asked(call)
        return _Asked(hold, call)

    def _answered(self, asked: list[_Asked]) -> list[_Asked]:
        """Of these, which claim one snapshot, those that can be read without waiting; the others are kept."""
        readable = self._readable(asked[0].hold)
        ready: list[_Asked] = []
        for one in asked:
            (ready if readable or not one.call.is_open() else self._asked).append(one)
        return ready

    def _readable(self, hold: Hold) -> bool | None:
        """Whether its claim can be read: the snapshot is in shared memory, or not held. None when no daemon answers."""
        ref, revision = hold.model
        request = pb.GetModelRequest(ref=ref, revision=revision)
        try:
            model = self._connection.unary(methods.GET_MODEL, request, ref, limit=ANSWER_S)
        except NotFound:
            return True
        except (Unavailable, SocketDenied, Precondition):
            return None
        except WeightdError:
            return False
        return bool(model.shm == pb.RESIDENCY_RESIDENT)

    def _collect(self, asked: _Asked) -> WeightdError | None:
        """Why it was not regained."""
        hold = asked.hold
        try:
            hold.regained(_handles(asked.call, hold.model[0]))
        except WeightdError as error:
            if self.closed or hold.ended:
                return error
            if again.is_final(error):
                hold.lose(error)
            else:
                self._waiting.append(hold)
            return error
        return hold.error

    def __repr__(self) -> str:
        return f"<Regainer {'idle' if self._thread is None else 'regaining'}>"


class _Asked(NamedTuple):
    """A claim that has been sent, and is not answered yet as far as was read."""

    hold: Hold
    call: Stream


def _model(asked: _Asked) -> tuple[str, str]:
    return asked.hold.model


def _handles(call: Stream, ref: str) -> pb.Handles:
    for event in call:
        if event.HasField("handles"):
            handles: pb.Handles = event.handles
            return handles
    raise unfinished(ref)
