"""Leases that their daemon ended are claimed again: `weightd.client.regain`, as a task on the loop."""

from __future__ import annotations

import asyncio
import random

from weightd.client import again, forks
from weightd.client.aio_connection import AioConnection, AioStream
from weightd.client.claims import Asked, Claims, is_present, presence_request, readable_after
from weightd.client.faults import unfinished
from weightd.client.hold import Hold, LeaseState
from weightd.client.regain import ANSWER_S
from weightd.core.errors import DaemonUnavailable, Precondition, WeightdError
from weightd.wire import methods
from weightd.wire.gen import weightd_pb2 as pb


class AioRegainer:
    """All leases of one client, in rounds, as `weightd.client.regain.Regainer`. One task, while there is something to
    regain; of one loop, as its leases are."""

    def __init__(self, connection: AioConnection) -> None:
        self._connection = connection
        self._all: list[Hold] = []
        self._lost: list[Hold] = []
        self._claims = Claims[AioStream]()
        self._task: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        return self._connection.closed

    def ended(self, hold: Hold) -> None:
        """See `hold.Keeper`. On the loop."""
        if hold.ended or not hold.answered or self.closed or forks.is_child():
            return
        hold.answered = False
        self._lost.append(hold)
        self._all.append(hold)
        loop = asyncio.get_running_loop()
        task = self._task
        if task is None or task.done() or task.get_loop() is not loop:  # one that another loop has left undone
            self._task = loop.create_task(self._run(), name="weightd-regain")
            self._task.add_done_callback(self._finished)

    def settled(self, hold: Hold) -> bool:
        """On the loop nobody can wait for it."""
        return hold.state is LeaseState.ALIVE

    async def close(self) -> None:
        """After the connection's; waits for the task, which that has ended."""
        task = self._task
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            await asyncio.wait([task])

    async def _run(self) -> None:
        attempt = 0
        try:
            while self._take():
                attempt = 0 if await self._round() else attempt + 1
                if self._claims:
                    await self._connection.pause(again.pause(attempt, random.random()))
        except Precondition:
            if not self.closed:
                raise

    def _finished(self, task: asyncio.Task[None]) -> None:
        """Also one that was cancelled before it began."""
        if self._task is task:
            self._task = None
            if task.cancelled():
                self._give_up()

    def _take(self) -> bool:
        """Take over what was lost meanwhile. False when nothing is left to do."""
        self._all = [h for h in self._all if h.state is LeaseState.REGAINING]
        self._claims.take(self._lost)
        self._lost.clear()
        return not self.closed and bool(self._claims)

    def _give_up(self) -> None:
        """The loop ends, and nobody else regains them."""
        for hold in self._all:
            if hold.state is LeaseState.REGAINING:
                hold.call.end()
                hold.lose(
                    DaemonUnavailable("the event loop ended before a daemon was back", remedy="Acquire it again.")
                )
        self._all, self._lost, self._claims = [], [], Claims()

    async def _round(self) -> bool:
        """Whether anything was regained."""
        await self._ask()
        ready = [one for group in self._claims.by_model() for one in await self._answered(group)]
        return None in [await self._collect(one) for one in ready]

    async def _ask(self) -> None:
        """Send all claims that wait, once one of them was not refused."""
        claims = self._claims
        todo, claims.waiting = claims.waiting, []
        while todo and await self._readable(todo[0]) is not None:  # A daemon answers, and the connection is a good one.
            first = self._send(todo.pop(0))
            await self._readable(first.hold)  # Answered after the claim was refused, if it was.
            if first.call.is_open():
                claims.asked += [first, *(self._send(hold) for hold in todo)]
                return
            if isinstance(await self._collect(first), again.INTERRUPTIONS):
                break
        claims.waiting += todo

    def _send(self, hold: Hold) -> Asked[AioStream]:
        call = self._connection.send(methods.ACQUIRE, hold.request(), hold.model[0])
        hold.asked(call)
        return Asked(hold, call)

    async def _answered(self, asked: list[Asked[AioStream]]) -> list[Asked[AioStream]]:
        """Of these, which claim one snapshot, those that can be read without waiting; the others are kept."""
        return self._claims.ready(asked, await self._readable(asked[0].hold))

    async def _readable(self, hold: Hold) -> bool | None:
        """Whether its claim can be read: the snapshot is in shared memory, or not held. None when no daemon answers."""
        try:
            request = presence_request(hold)
            model = await self._connection.unary(methods.GET_MODEL, request, request.ref, limit=ANSWER_S)
        except WeightdError as error:
            return readable_after(error)
        return is_present(model)

    async def _collect(self, asked: Asked[AioStream]) -> WeightdError | None:
        """Why it was not regained."""
        hold = asked.hold
        try:
            hold.regained(await _handles(asked.call, hold.model[0]))
        except WeightdError as error:
            return self._claims.refused(hold, error, closed=self.closed)
        return hold.error

    def __repr__(self) -> str:
        return f"<AioRegainer {'idle' if self._task is None else 'regaining'}>"


async def _handles(call: AioStream, ref: str) -> pb.Handles:
    while (event := await call.read()) is not None:
        if event.HasField("handles"):
            handles: pb.Handles = event.handles
            return handles
    raise unfinished(ref)
