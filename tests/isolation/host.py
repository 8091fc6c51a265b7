"""A real daemon of a user without rights, and workers of other users."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.daemon.process import PATIENCE, SERVE, Served
from tests.isolation.users import DAEMON, Become, User, environment


class Refused(Exception):
    """What a worker was told: the class of the error, and its text."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message = kind, message


class WorkerProcess:
    """A `tests.isolation.worker`; its methods are called by name."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert self.answer() == "ready"

    def __call__(self, do: str, **arguments: Any) -> Any:
        """Raises Refused."""
        self.ask(do, **arguments)
        return self.answer()

    def ask(self, do: str, **arguments: Any) -> None:
        """Without waiting for the `answer`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.communicate(timeout=PATIENCE)[1])
        reply = json.loads(line)
        if "error" in reply:
            raise Refused(reply["error"], reply["message"])
        return reply["answer"]

    def refused(self, do: str, **arguments: Any) -> Refused:
        """The error that it must end with."""
        try:
            answer = self(do, **arguments)
        except Refused as e:
            return e
        raise AssertionError(f"{do} {arguments} was answered: {answer}")


class Host(Served):
    """Serves as `user`."""

    def __init__(self, home: Path, become: Become, mounts: Sequence[str] = (), user: User = DAEMON) -> None:
        self.become = become
        command = [*become.prefix(user, *mounts), *SERVE, "--config", str(home / "config.toml")]
        super().__init__(home, command=command, env=environment())
        self._workers = contextlib.ExitStack()

    def worker(self, user: User, socket: Path | None = None) -> WorkerProcess:
        """Runs until the host ends."""
        process = self.become.start(user, "-m", "tests.isolation.worker", socket or self.socket)
        self._workers.callback(_end, process)
        return WorkerProcess(process)

    def again(self, config: str = "") -> None:
        """A new process on the same directories, once this one was asked to end and has left the segments."""
        assert self.stop() == 0, self.text()
        if config:
            (self.home / "config.toml").write_text(config)
        with self.log.open("ab") as log:
            env = {**environment(), "NOTIFY_SOCKET": str(self.home / "notify")}
            args: Any = self.process.args
            self.process = subprocess.Popen(args, env=env, stdout=log, stderr=log, cwd=self.home)
        self.ready()

    def end_workers(self) -> None:
        """And with them their leases."""
        self._workers.close()

    def __exit__(self, *args: Any) -> None:
        self.end_workers()
        super().__exit__(*args)


def _end(process: subprocess.Popen[str]) -> None:
    process.communicate("", timeout=PATIENCE)


@contextlib.contextmanager
def home(config: str) -> Iterator[Path]:
    """A directory of the daemon's user, which everybody may pass, for its state, its sockets and its configuration."""
    # Not tmp_path: socket paths are short, and other users may look in here.
    path = Path(tempfile.mkdtemp(prefix="weightd-iso-", dir="/tmp"))
    try:
        path.chmod(0o755)
        os.chown(path, DAEMON.uid, DAEMON.gid)
        (path / "config.toml").write_text(config)
        yield path
    finally:
        shutil.rmtree(path)


@contextlib.contextmanager
def serving(become: Become, config: str, *mounts: str, user: User = DAEMON) -> Iterator[Host]:
    """Ready; at the end SIGINT, after which nothing of it is in shared memory."""
    with home(config) as path, Host(path, become, mounts, user) as host:
        host.ready()
        yield host
        host.end_workers()
        if host.process.poll() is None:
            assert host.stop(signal.SIGINT) == 0, host.text()
        assert host.segments() == []
        assert "Traceback" not in host.text(), host.text()
