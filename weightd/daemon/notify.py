"""sd_notify(3) in a few lines: one datagram to the socket that systemd named."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger("weightd.daemon")


class Notifier:
    """Says nothing where $NOTIFY_SOCKET is not set. Sending never blocks; what cannot be sent is logged."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._address = env.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        self.watchdog_s = _watchdog_s(env)
        """Seconds within which systemd wants to hear from us; None when it does not."""
        if self._address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    def send(self, *lines: str) -> None:
        """For example "READY=1", "STATUS=serving"."""
        if self._socket is None:
            return
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            self._socket.sendto("\n".join(lines).encode(), address)
        except OSError as e:
            log.warning("notify %s: %s", lines[0], e.strerror)

    async def keep_alive(self) -> None:
        """WATCHDOG=1 at half the period, from the event loop: when the loop hangs, systemd hears nothing."""
        while self.watchdog_s is not None:
            self.send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)

    def close(self) -> None:
        """Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _watchdog_s(env: Mapping[str, str]) -> float | None:
    # sd_watchdog_enabled(3): meant for us only when WATCHDOG_PID is unset or ours.
    with contextlib.suppress(ValueError):
        usec = int(env.get("WATCHDOG_USEC", "0"))
        if usec > 0 and int(env.get("WATCHDOG_PID") or os.getpid()) == os.getpid():
            return usec / 1e6
    return None
