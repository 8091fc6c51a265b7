"""A daemon that is ended and begun again on the same state, by SIGTERM and by SIGKILL."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import machine, ours
from benchmarks.machine import Unable
from benchmarks.residency.places import Places

START_S = 60.0
"""A daemon that does not listen by then does not start."""
POLL_S = 0.001
"""How often its socket is tried: what a restart takes is known to the millisecond."""


class Host:
    """Its segments are in `places.shm`, and stay when it ends, but for the last time."""

    def __init__(self, places: Places, settings: ours.Settings) -> None:
        self.home = places.disk / "daemon"
        self.home.mkdir()
        self.socket, self.log = places.sockets / "weightd.sock", self.home / "log"
        own = {"daemon.socket": str(self.socket), "daemon.state_dir": str(self.home / "state"),
               "daemon.log_level": "warning", "shm.directory": str(places.shm / "segments")}  # fmt: skip
        (places.shm / "segments").mkdir()
        self._config = self.home / "config.toml"
        self._config.write_text(ours.configuration({**own, **settings}))
        # Compiled once, as an installed package is.
        compiled = {"PYTHONPYCACHEPREFIX": str(self.home / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}
        self._environment = {**os.environ, **compiled}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def daemon(self) -> ours.Daemon:
        """As it runs now."""
        return ours.Daemon(self.process.pid, self.socket, self.home / "state", f"unix:{self.socket}")

    @property
    def process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise AssertionError("the daemon does not run")
        return self._process

    def start(self) -> None:
        """Returns once it takes connections. Raises Unable."""
        command = [sys.executable, "-m", "weightd", "serve", "--config", str(self._config)]
        with self.log.open("ab") as log:
            self._process = machine.begin(command, stderr=log, stdout=log, env=self._environment)
        until = time.monotonic() + START_S
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > until:
                raise Unable(f"the daemon did not start: {self.log.read_text()}")
            time.sleep(POLL_S)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
        return True

    def end(self, number: signal.Signals) -> None:
        """Returns when it has ended; SIGINT takes the segments too ([shm] at_stop)."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait()


@contextlib.contextmanager
def host(places: Places, settings: ours.Settings | None = None) -> Iterator[Host]:
    """One that runs; nothing of it stays running, and no segment stays."""
    found = Host(places, settings or {})
    try:
        found.start()
        yield found
    finally:
        found.end(signal.SIGINT)


def blob(host: Host, digest: str) -> Path:
    """Where the daemon keeps a file on disk."""
    from weightd.core.digest import blob_name, parse_digest

    return host.home / "state" / blob_name(parse_digest(digest))
