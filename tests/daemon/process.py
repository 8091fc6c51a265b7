"""A real `weightd serve`, known to be ready by its own READY=1, as systemd would know it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from weightd.storage.owners import segment_owner

PATIENCE = 30.0
"""Seconds after which a test fails rather than hangs."""
SERVE = (sys.executable, "-m", "weightd", "serve")


class Served:
    """One daemon on directories below `home`. Leaving the context kills it if it still runs."""

    def __init__(
        self,
        home: Path,
        *options: str,
        command: Sequence[str] = SERVE,
        env: Mapping[str, str] | None = None,
        defaults: bool = False,
    ) -> None:
        self.home = home
        self.state_dir, self.socket = home / "state", home / "w.sock"
        self.log = home / "log"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(home / "notify"))
        (home / "notify").chmod(0o777)
        own = [] if defaults else ["--state-dir", str(self.state_dir), "--socket", str(self.socket)]
        base = {k: v for k, v in os.environ.items() if not k.startswith(("WEIGHTD_", "XDG_"))}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *own, *options],
                env={**base, "NOTIFY_SOCKET": str(home / "notify"), **(env or {})},
                stderr=log,
                stdout=log,
                cwd=home,
            )

    def until(self, line: str) -> list[str]:
        """Lines of the notifications up to the one that holds `line`; fails when the process ends first."""
        seen: list[str] = []
        pidfd = os.pidfd_open(self.process.pid)
        try:
            while line not in seen:
                ready, _, _ = select.select([self._notify, pidfd], [], [], PATIENCE)
                assert self._notify in ready, f"no {line}, only {seen}: {self.text()}"
                seen += self._notify.recv(4096).decode().split("\n")
        finally:
            os.close(pidfd)
        return seen

    def ready(self) -> Self:
        self.until("READY=1")
        return self

    def text(self) -> str:
        """What it logged."""
        return self.log.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def segments(self, state_dir: Path | None = None) -> list[str]:
        """Names in /dev/shm that belong to this state directory."""
        prefix = f"weightd-{segment_owner(state_dir or self.state_dir)}-"
        return [n for n in os.listdir("/dev/shm") if n.startswith(prefix)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._notify.close()
        (self.home / "notify").unlink(missing_ok=True)
        for name in self.segments():
            Path("/dev/shm", name).unlink()
