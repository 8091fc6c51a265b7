"""Leases that their daemon ended are claimed again, in the background: for the synchronous client."""

from __future__ import annotations

import random
import threading
from typing import Final

from weightd.client import again, forks
from weightd.client.claims import Asked, Claims, is_present, presence_request, readable_after
from weightd.client.connection import Connection, Stream
from weightd.client.faults import unfinished
from weightd.client.hold import Hold, LeaseState
from weightd.core.errors import Exhausted, Precondition, WeightdError
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
        self._claims = Claims[Stream]()  # of the thread only

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
            self._claims.take(self._lost)
            self._lost.clear()
            if self.closed or not self._claims:
                self._thread = None
                return False
            return True

    def _pause(self, attempt: int) -> None:
        if self._claims:
            with self._changed:
                self._changed.wait_for(lambda: self.closed, again.pause(attempt, random.random()))

    def _round(self) -> bool:
        """Whether anything was regained."""
        self._ask()
        ready = [one for group in self._claims.by_model() for one in self._answered(group)]
        failed = [self._collect(one) for one in ready]
        with self._changed:
            self._changed.notify_all()
        return None in failed

    def _ask(self) -> None:
        """Send all claims that wait, once one of them was not refused."""
        claims = self._claims
        todo, claims.waiting = claims.waiting, []
        while todo and self._readable(todo[0]) is not None:  # A daemon answers, and the connection is a good one.
            first = self._send(todo.pop(0))
            self._readable(first.hold)  # Answered after the claim was refused, if it was.
            if first.call.is_open():
                claims.asked += [first, *(self._send(hold) for hold in todo)]
                return
            if isinstance(self._collect(first), again.INTERRUPTIONS):
                break
        claims.waiting += todo

    def _send(self, hold: Hold) -> Asked[Stream]:
        call = self._connection.send(methods.ACQUIRE, hold.request(), hold.model[0])
        hold.asked(call)
        return Asked(hold, call)

    def _answered(self, asked: list[Asked[Stream]]) -> list[Asked[Stream]]:
        """Of these, which claim one snapshot, those that can be read without waiting; the others are kept."""
        return self._claims.ready(asked, self._readable(asked[0].hold))

    def _readable(self, hold: Hold) -> bool | None:
        """Whether its claim can be read: the snapshot is in shared memory, or not held. None when no daemon answers."""
        try:
            request = presence_request(hold)
            model = self._connection.unary(methods.GET_MODEL, request, request.ref, limit=ANSWER_S)
        except WeightdError as error:
            return readable_after(error)
        return is_present(model)

    def _collect(self, asked: Asked[Stream]) -> WeightdError | None:
        """Why it was not regained."""
        hold = asked.hold
        try:
            hold.regained(_handles(asked.call, hold.model[0]))
        except WeightdError as error:
            return self._claims.refused(hold, error, closed=self.closed)
        return hold.error

    def __repr__(self) -> str:
        return f"<Regainer {'idle' if self._thread is None else 'regaining'}>"


def _handles(call: Stream, ref: str) -> pb.Handles:
    for event in call:
        if event.HasField("handles"):
            handles: pb.Handles = event.handles
            return handles
    raise unfinished(ref)
