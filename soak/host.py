"""The daemon under test: started, killed, stopped, emptied; and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from soak.journal import Journal, Violation
from soak.world import MIB, World
from weightd.client.client import Client
from weightd.storage.owners import segment_owner

WEIGHTD = (sys.executable, "-m", "weightd")
START_S = 30.0
STOP_S = 20.0
ORPHAN_S = 10.0
CONNECTIONS = 6
SHM = Path("/dev/shm")
_LAG = re.compile(r"held up for (\d+) ms")
_BUGS = ("Traceback", "never retrieved", "never awaited", "failed unexpectedly", "Exception ignored")


@dataclass(frozen=True)
class Sizes:
    """Bytes: budgets of the daemon, and of the /dev/shm that is mounted for it."""

    shm: int
    nvme: int
    mount: int

    @classmethod
    def of(cls, scale: float) -> Sizes:
        """Less than all models take, in either tier: full is reached."""
        pages = [int(mib * scale) * MIB for mib in (420, 640, 470)]
        return cls(*(max(p, 8 * MIB) for p in pages))


@dataclass(frozen=True)
class Vital:
    """Of one process at one moment; `anonymous` is its memory in bytes without files and shared memory."""

    descriptors: int
    threads: int
    maps: int
    anonymous: int
    mapped_segments: int

    def __str__(self) -> str:
        return (
            f"{self.descriptors} descriptors, {self.threads} threads, {self.maps} maps, "
            f"{self.anonymous / MIB:.0f} MiB, {self.mapped_segments} segments mapped"
        )


class Host:
    """`socket` is a symlink to that of the running daemon, and changes when that one has been looked at. `private`:
    nobody but us uses /dev/shm."""

    def __init__(self, home: Path, world: World, journal: Journal, sizes: Sizes, *, private: bool) -> None:
        self.home, self._journal, self.sizes, self.private = home, journal, sizes, private
        self.state, self.socket = home / "state", home / "socket"
        self.config = home / "config.toml"
        (home / "models.json").write_text(json.dumps({"models": world.configuration()}))
        self._small = world.scale < 0.5
        self.started = 0
        """How many daemons there were."""
        self.disturbed = 0
        """Counts what may take a file from under a reader: a daemon that ends or starts, a blob that is damaged."""
        self.damaged = False
        """Whether a blob is, or may be, damaged that no verification has come to since."""
        self.lost = False
        """Whether a blob could not be repaired, and is called lost from then on."""
        self.turn = threading.RLock()
        """Whoever has it is the only one to start, end or look at the whole of the daemon."""
        self.at_rest = threading.RLock()
        """Whoever has it damages what is on disk, or reads there what must not be damaged."""
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(home / "notify"))
        self.process: subprocess.Popen[bytes] | None = None

    def _write_config(self) -> None:
        """Every third daemon receives in processes of its own."""
        part, rate = ("1MiB", "40MiB") if self._small else ("2MiB", "120MiB")
        fresh = self.home / "config.new"
        fresh.write_text(
            f'models = "{self.home}/models.json"\n'
            f"[daemon]\nstop_timeout_s = {STOP_S}\n"
            f'[shm]\nbudget = {self.sizes.shm}\nadopt = "{("lazy", "full", "lazy", "off")[self.started % 4]}"\n'
            f'adopt_grace = "2s"\n[nvme]\nbudget = {self.sizes.nvme}\n'
            f'[fetch]\npart_size = "{part}"\nreceivers = 3\nhash_threads = 1\nwrite_threads = 2\n'
            f"processes = {2 if self.started % 3 == 2 else 0}\n"
            f'stall_timeout_s = 1.5\nretries = 3\nmax_rate = "{rate}"\n'
            f"[http]\nconnections_per_host = {CONNECTIONS}\nconnect_timeout_s = 3.0\n"
        )
        fresh.replace(self.config)

    @property
    def prefix(self) -> str:
        return f"weightd-{segment_owner(self.state)}-"

    @property
    def log(self) -> Path:
        """Of the running daemon."""
        return self._journal.directory / f"daemon-{self.started:04}.log"

    def start(self) -> None:
        """Serving, but not yet on `socket`. Raises Violation when it does not start."""
        self.started += 1
        self._write_config()
        command = [*WEIGHTD, "serve", "--config", str(self.config), "--state-dir", str(self.state)]
        env = {k: v for k, v in os.environ.items() if not k.startswith(("WEIGHTD_", "XDG_"))}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--socket", str(self.own_socket)],
                env={**env, "NOTIFY_SOCKET": str(self.home / "notify")},
                stdout=log,
                stderr=log,
                cwd=self.home,
            )
        self._await_ready(self.process)
        self.disturbed += 1
        self._journal.note("host", f"daemon {self.started} serves, pid {self.process.pid}")

    @property
    def own_socket(self) -> Path:
        return self.home / f"s{self.started}"

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        pidfd, end = os.pidfd_open(process.pid), time.monotonic() + START_S
        try:
            while time.monotonic() < end:
                both: list[int] = [self._notify.fileno(), pidfd]
                ready, _, _ = select.select(both, [], [], end - time.monotonic())
                if self._notify.fileno() in ready:
                    text = self._notify.recv(4096).decode()
                    if "READY=1" in text and f"MAINPID={process.pid}" in text:
                        return
                elif pidfd in ready:
                    raise Violation(f"the daemon did not start: {self.log.read_text()[-2000:]}")
        finally:
            os.close(pidfd)
        raise Violation(f"the daemon is not ready after {START_S:g} s: {self.log.read_text()[-2000:]}")

    def admit(self) -> None:
        """Clients reach it from now on."""
        fresh = self.home / "socket.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(self.own_socket.name)
        fresh.replace(self.socket)

    def end(self, number: int) -> None:
        """By this signal, and wait. Raises Violation for a SIGTERM that does not drain."""
        process = self.process
        if process is None:
            return
        self.disturbed += 1
        family = self._family_of(process)
        process.send_signal(number)
        try:
            code = process.wait(STOP_S + 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise Violation(f"the daemon did not end within {STOP_S + 10:g} s of signal {number}") from None
        finally:
            self.process = None
            self.disturbed += 1
            self._read_log()
        self._journal.count("daemons ended by " + signal.Signals(number).name)
        self._check_gone(family)
        if number != signal.SIGKILL:
            self._check_drained(code, number)
        elif code != -number:
            raise Violation(f"the daemon had ended with {code} before it was killed: {self.log.read_text()[-2000:]}")

    def _family_of(self, process: subprocess.Popen[bytes]) -> list[int]:
        try:
            return self.family()
        except OSError:
            return [process.pid]

    def _check_gone(self, family: list[int]) -> None:
        """A child sees that its daemon died, and ends by itself."""
        end = time.monotonic() + ORPHAN_S
        while left := [pid for pid in family if _running(pid)]:
            if time.monotonic() > end:
                raise Violation(f"the daemon has ended, its processes {left} have not")
            time.sleep(0.05)

    def _check_drained(self, code: int, number: int) -> None:
        """SIGTERM leaves what the next daemon adopts; Ctrl-C nothing."""
        text, name = self.log.read_text(), signal.Signals(number).name
        if code or "not drained" in text:
            raise Violation(f"the daemon ended with {code} on {name}: {text[-2000:]}")
        left = self.segments()
        if number == signal.SIGINT and left:
            raise Violation(f"after {name} there are still {len(left)} segments: {left[:3]}")
        if self.own_socket.exists():
            raise Violation(f"after {name} the socket is still there")

    def _read_log(self) -> None:
        text = self.log.read_text(errors="replace")
        lags = [int(m) for m in _LAG.findall(text)]
        self._journal.count("event loop lags over 250 ms", len(lags))
        if lags:
            with contextlib.suppress(ValueError):
                worst = max(lags)
                known = self._journal.counts["worst event loop lag, ms"]
                self._journal.count("worst event loop lag, ms", max(0, worst - known))
        for sign in _BUGS:
            if sign in text:
                self._journal.violation("log", f"{sign!r} in {self.log.name}: {_around(text, sign)}")

    def close(self) -> None:
        """The daemon has ended, and none follows."""
        self._notify.close()

    def wipe(self) -> None:
        """An empty state directory; the daemon does not run."""
        self.disturbed += 1
        shutil.rmtree(self.state, ignore_errors=True)

    def client(self, *, own: bool = False) -> Client:
        """With `own` past the symlink."""
        return Client(self.own_socket if own else self.socket)

    def segments(self) -> list[Path]:
        return [p for p in SHM.iterdir() if p.name.startswith(self.prefix)]

    def blobs(self) -> list[Path]:
        return sorted((self.state / "blobs/sha256").glob("??/*"))

    def on_disk(self) -> int:
        """Bytes that blobs, ingests and the quarantine take. Directories may go under the look."""
        places = (self.state / d for d in ("blobs", "ingest", "quarantine"))
        return sum(_allocated(Path(at, name)) for place in places for at, _, names in os.walk(place) for name in names)

    def in_shm(self) -> int:
        """Bytes that segments take by their names."""
        return sum(_allocated(p) for p in self.segments())

    def family(self) -> list[int]:
        """The daemon and its receiver processes. Raises OSError when it does not run."""
        if self.process is None:
            raise ProcessLookupError
        pid = self.process.pid
        children = [int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()]
        return [pid, *children]

    def vital(self) -> Vital:
        """Of all of them. Raises OSError when one has just ended."""
        each = [_vital(pid) for pid in self.family()]
        return Vital(*(sum(column) for column in zip(*map(astuple, each), strict=True)))

    def connections(self, port: int) -> int:
        """Established, from the daemon and its receiver processes to the origin."""
        inodes: set[str] = set()
        for fd in (fd for pid in self.family() for fd in Path(f"/proc/{pid}/fd").iterdir()):
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(fd))
        found = 0
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "01" and int(fields[2].split(":")[1], 16) == port:
                found += f"socket:[{fields[9]}]" in inodes
        return found

    @contextlib.contextmanager
    def reading(self, disturbed: int, held: Callable[[], bool]) -> Iterator[None]:
        """Read from disk what was answered. A file may be missing only if something was done to it since `disturbed`
        was read, or if it is not `held` any more; then raises LookupError."""
        try:
            with self.at_rest:
                yield
        except OSError as e:
            if self.disturbed == disturbed and held() and self.disturbed == disturbed:
                raise Violation(f"a file that was answered cannot be read: {e}") from None
            raise LookupError(str(e)) from None


def _vital(pid: int) -> Vital:
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    maps = (proc / "maps").read_text().splitlines()
    return Vital(
        descriptors=len(os.listdir(proc / "fd")),
        threads=int(status["Threads"]),
        maps=len(maps),
        anonymous=int(status["RssAnon"].split()[0]) * 1024,
        mapped_segments=sum("/dev/shm/" in line for line in maps),
    )


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def _allocated(path: Path) -> int:
    try:
        return path.stat(follow_symlinks=False).st_blocks * 512
    except OSError:
        return 0


def _around(text: str, sign: str) -> str:
    at = text.index(sign)
    return text[max(0, at - 300) : at + 3000]
