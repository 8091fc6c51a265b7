"""The real daemon and the real command line, and what may not be left of either."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.daemon.process import SERVE, Served
from weightd import Client

THREADS_S = 60.0
"""Within which threads end that are not kept: gRPC's own, of which a busy host has some more, after 20 s without work
(work_stealing_thread_pool.cc), the one that ends idle connections after those, 10 s."""
EXECUTOR = min(32, (os.cpu_count() or 1) + 4)
"""Threads of the loop's own executor (concurrent.futures.ThreadPoolExecutor), which begin one by one, and stay."""
WEIGHTD = (sys.executable, "-m", "weightd")
NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
"""Goes before a command: another user, who may read what is needed to start Python, wherever that is installed."""


def safetensors(size: int = 1 << 16, seed: bytes = b"good") -> bytes:
    """A sound file with one uint8 tensor "t" of `size` bytes."""
    header = json.dumps({"t": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + hashlib.shake_128(seed).digest(size)


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def clean_environment() -> dict[str, str]:
    """Ours, without what would change weightd's configuration."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("WEIGHTD_", "XDG_"))}


def weightd(*args: str | Path, socket: Path | None = None, prefix: Sequence[str] = ()) -> Ended:
    """Run the command line to its end, without anything of this user's configuration."""
    where = ["--socket", str(socket)] if socket else []
    done = subprocess.run(
        [*prefix, *WEIGHTD, *where, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(),
        cwd="/",
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def assert_refused(ended: Ended, code: int, kind: str, *words: str) -> None:
    """One line on stderr with all of `words`; the exit code; on stdout an object of this class, with a remedy."""
    lines = ended.err.splitlines()
    assert ended.code == code, ended
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("weightd: error: "), ended.err
    assert "Traceback" not in ended.err + ended.out
    for word in words:
        assert word in lines[0]
    error = ended.objects[-1]
    assert (error["type"], error["kind"], error["exit_code"]) == ("error", kind, code), error
    assert error["remedy"], error
    assert error["remedy"] in lines[0], error


class Host(Served):
    """A daemon with what it holds as seen from outside, in its own mount namespace if it has one."""

    calm: int | None = None
    """Threads while nothing was under way: the fewest that were seen."""

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.process.pid}/root")

    def cli(self, *args: str | Path, prefix: Sequence[str] = ()) -> Ended:
        return weightd(*args, socket=self.socket, prefix=prefix)

    def status(self) -> dict[str, Any]:
        ended = self.cli("status", "--json")
        assert ended.code == 0, ended
        return ended.objects[0]

    def held(self) -> set[str]:
        """Blobs, open ingests and segments."""
        state = self.root / str(self.state_dir)[1:]
        files = {str(p) for d in ("blobs", "ingest") for p in (state / d).rglob("*") if not p.is_dir()}
        prefix = f"weightd-{self.owner}-"
        return files | {n for n in os.listdir(self.root / "dev/shm") if n.startswith(prefix)}

    @property
    def owner(self) -> str:
        from weightd.storage.owners import segment_owner

        return str(segment_owner(self.state_dir))

    def threads(self) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(x.split()[1]) for x in lines if x.startswith("Threads:"))

    def warm_up(self) -> None:
        """Fill the pools of threads that stay, so that every thread more, but of the loop's own, is one left behind."""
        model = self.home / "warm"
        model.mkdir()
        names = [f"{i}.safetensors" for i in range(24)]
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {n: n for n in names}}))
        for name in names:
            (model / name).write_bytes(safetensors(64, name.encode()))
        self.fetch(model.as_uri())

    @contextlib.contextmanager
    def unharmed(self, good: str) -> Iterator[None]:
        """What runs inside leaves no file, segment, lease, reservation or thread, and a daemon as good as before."""
        self.fetch(good)
        held, threads = self.held(), self.threads()
        self.calm = min(threads, self.calm or threads)
        yield
        status = self.status()
        assert (status["leases"], status["transfers"]) == (0, 0)
        assert (status["shm"]["reserved"], status["nvme"]["reserved"]) == (0, 0)
        assert self.held() == held
        # One that ends idle connections lives on for a while: `calm_again` waits for it.
        self._await_threads(threads + 1 + EXECUTOR)
        self.fetch(good)
        assert self.held() == held

    def calm_again(self) -> None:
        """No thread stays of all that was `unharmed`."""
        if self.calm is not None:
            self._await_threads(self.calm + EXECUTOR)

    def _await_threads(self, most: int) -> None:
        deadline = time.monotonic() + THREADS_S
        while self.threads() > most and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.threads() <= most

    def start_again(self) -> None:
        """A new process on the same directories, after the last has ended."""
        assert self.process.poll() is not None
        args: Any = self.process.args
        with self.log.open("ab") as log:
            env = {**clean_environment(), "NOTIFY_SOCKET": str(self.home / "notify")}
            self.process = subprocess.Popen(args, env=env, stdout=log, stderr=log, cwd=self.home)
        self.ready()

    def fetch(self, ref: str) -> None:
        with Client(self.socket) as client:
            client.fetch(ref)


@contextlib.contextmanager
def daemon(*options: str, config: str = "", mounts: Sequence[str] = ()) -> Iterator[Host]:
    """A serving daemon; at the end SIGTERM, after which nothing of it is in shared memory or in its log's tracebacks.

    With `mounts` (shell commands, {home} filled in) it runs in a mount namespace of its own.
    """
    # Not tmp_path: socket paths are short, and other users may look in here.
    home = Path(tempfile.mkdtemp(prefix="weightd-e2e-"))
    home.chmod(0o755)
    (home / "config.toml").write_text(config or "[fetch]\nretries = 1\nstall_timeout_s = 5.0\n")
    command = [*SERVE, "--at-stop", "drop", "--config", str(home / "config.toml")]
    if mounts:
        (home / "state").mkdir()
        script = " && ".join(m.format(home=home) for m in (*mounts, 'exec "$@"'))
        command = ["unshare", "-m", "sh", "-c", script, "sh", *command]
    try:
        with Host(home, *options, command=command) as host:
            host.ready().warm_up()
            yield host
            if host.process.poll() is None:
                host.calm_again()
                # Held open, because a mount namespace ends with its last process.
                shm = os.open(host.root / "dev/shm", os.O_RDONLY)
                assert host.stop(signal.SIGTERM) == 0, host.text()
                left = [n for n in os.listdir(shm) if host.owner in n]
                os.close(shm)
                assert left == []
                assert not host.socket.exists()
            assert "Traceback" not in host.text(), host.text()
    finally:
        shutil.rmtree(home)


def free_port() -> int:
    """On which nobody listens now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
