"""The life of the daemon's process: STARTING → SERVING → DRAINING → STOPPED."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Final

import uvloop

from weightd.core.budget import human
from weightd.core.errors import TooSlow
from weightd.core.lifecycle import DAEMON, DaemonState, Lifecycle
from weightd.daemon.build import Parts, build
from weightd.daemon.config import Config
from weightd.daemon.limits import raise_limits, watch_lag
from weightd.daemon.lock import StateLock, make_state_dir
from weightd.daemon.logs import logging_to_stderr
from weightd.daemon.notify import Notifier
from weightd.engine.api import EventKind
from weightd.engine.engine import Engine
from weightd.rpc.server import RpcServers
from weightd.version import __version__

log = logging.getLogger("weightd.daemon")

CALLS_GRACE_S: Final = 1.0
"""Seconds for answers on their way, once leases have ended and nothing is under way any more."""


def run(config: Config, env: Mapping[str, str]) -> None:
    """Serve until SIGTERM or SIGINT. Raises WeightdError when it cannot start; returns after a clean stop.

    Afterwards the socket is gone, and segments stay for the next start to adopt, or are gone too ([shm] at_stop).
    """
    raise_limits()
    with logging_to_stderr(config.log_level, config.log_format):
        make_state_dir(config.state_dir, config.socket_gid)
        lock = StateLock(config.state_dir)
        lock.acquire(config.socket)
        try:
            uvloop.run(Daemon(config, env).run())
        finally:
            lock.release()


class Daemon:
    """One run of the daemon, on a running loop. The state directory's lock is held."""

    def __init__(self, config: Config, env: Mapping[str, str]) -> None:
        self._config = config
        self._notifier = Notifier(env)
        self._life = Lifecycle("daemon", DAEMON, DaemonState.STARTING)
        self._stop = asyncio.Event()
        self._keep = config.shm.keeps(signal.SIGTERM)
        """Whether segments stay, until a signal says otherwise."""

    async def run(self) -> None:
        """Start, serve, drain."""
        self._handle_signals()
        began = time.monotonic()
        log.info("starting weightd %s, pid %d, state in %s", __version__, os.getpid(), self._config.state_dir)
        parts = build(self._config)
        server: RpcServers | None = None
        try:
            await parts.engine.start()
            server = await parts.listen()
            self._life.to(DaemonState.SERVING)
            await self._announce(parts.engine, time.monotonic() - began)
            async with self._background(parts.engine):
                await self._stop.wait()
        finally:
            await self._drain(parts, server)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)

    def _signalled(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._stop.is_set():
            # Asked twice: no more waiting. The next start adopts or drops what this leaves.
            os.write(2, f"weightd: {name} again: exit at once\n".encode())
            os._exit(128 + number)
        self._keep = self._config.shm.keeps(number)
        log.info("%s: stopping", name)
        self._stop.set()

    async def _announce(self, engine: Engine, took: float) -> None:
        status = await engine.status()
        summary = (
            f"shm {human(status.shm.budget)} in {human(status.shm.free)} free, "
            f"nvme {human(status.nvme.resident)} held of {human(status.nvme.budget)}, {status.models} models"
        )
        log.info("serving on %s after %.2f s; budgets: %s", self._config.socket, took, summary)
        for s in self._config.sockets:
            rights = "uses and operates" if s.operate else "uses"
            log.info("serving tenant %s on %s: group %d %s %s", s.name, s.path, s.gid, rights, ", ".join(s.allow))
        self._notifier.send("READY=1", f"STATUS=serving: {summary}", f"MAINPID={os.getpid()}")

    @asynccontextmanager
    async def _background(self, engine: Engine) -> AsyncIterator[None]:
        """Tasks that live while the daemon serves. One that fails is a bug, and stops the daemon."""
        work = (watch_lag(), self._notifier.keep_alive(), _log_events(engine), engine.patrol(), engine.tend())
        tasks = [self._task(w) for w in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def _task(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(lambda t: None if t.cancelled() or not t.exception() else self._stop.set())
        return task

    async def _drain(self, parts: Parts, server: RpcServers | None) -> None:
        """Within `stop_timeout_s`, then by force. Also after a start that failed half way."""
        if self._life.state is DaemonState.SERVING:
            self._life.to(DaemonState.DRAINING)
        self._notifier.send("STOPPING=1", "STATUS=draining")
        forced = asyncio.get_running_loop().call_later(self._config.stop_timeout_s, self._force, parts)
        try:
            if server is not None:
                await server.drain()
            await parts.engine.stop(keep=self._keep)
            if server is not None:
                await server.stop(CALLS_GRACE_S)
        finally:
            forced.cancel()
            self._life.to(DaemonState.STOPPED)
            self._notifier.close()
            log.info("stopped")

    def _force(self, parts: Parts) -> None:
        dropped = 0 if self._keep else parts.segments.drop_leftovers()
        for path in (self._config.socket, *(s.path for s in self._config.sockets)):
            path.unlink(missing_ok=True)
        text = f"weightd: not drained after {self._config.stop_timeout_s:g} s: {dropped} segments dropped, exit\n"
        os.write(2, text.encode())
        os._exit(0)


_LEVEL: Final = {
    EventKind.FETCH_FAILED: logging.WARNING,
    EventKind.DAMAGED: logging.WARNING,
    EventKind.REPAIRED: logging.WARNING,
    # As many as workers, and as often as they like.
    EventKind.ACQUIRED: logging.DEBUG,
    EventKind.RELEASED: logging.DEBUG,
}


async def _log_events(engine: Engine) -> None:
    """One line for each event of the engine."""
    while True:
        try:
            async for event in engine.watch():
                level = _LEVEL.get(event.kind, logging.INFO)
                if log.isEnabledFor(level):
                    detail = f": {event.detail}" if event.detail else ""
                    log.log(level, "%s %s %s%s", event.kind.name.lower(), event.ref, event.revision or "-", detail)
            return
        except TooSlow:
            log.warning("some events were not logged: they came too fast")
