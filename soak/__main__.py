"""`python -m soak`: a real daemon under random fetches, kills and faults; every byte that it gives is compared.

Exit code 1 when weightd did what it must not do; then the directory that is named at the end has all logs and the
state, and the seed repeats every decision.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from soak.actors import Kit, outcome_of
from soak.audit import audit
from soak.chaos import everything
from soak.host import Host, Sizes, Vital
from soak.journal import Journal, Violation
from soak.origin import SoakOrigin
from soak.plan import ACTORS, Kill, steps
from soak.world import World
from weightd.core.errors import WeightdError

CYCLE_S: Final = 600.0
"""A storm, in which the daemon is killed; a calm to warm up; a rest and a first look; more calm; a second look."""
STORM, WARM = 0.5, 0.15
LINE_S: Final = 30.0
QUIET_S: Final = 240.0
"""For how long steps under way may take when everybody was asked to pause."""
INSIDE: Final = "WEIGHTD_SOAK_NAMESPACE"


class Gate:
    """Steps are made inside. `close` waits until nobody is."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: set[str] = set()
        self._closed = False

    @contextlib.contextmanager
    def inside(self, who: str, stopping: threading.Event) -> Iterator[None]:
        """Waits while it is closed."""
        with self._changed:
            while self._closed and not stopping.is_set():
                self._changed.wait(0.5)
            self._inside.add(who)
        try:
            yield
        finally:
            with self._changed:
                self._inside.discard(who)
                self._changed.notify_all()

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Raises Violation when somebody does not come out."""
        with self._changed:
            self._closed = True
            quiet = self._changed.wait_for(lambda: not self._inside, QUIET_S)
            left = set(self._inside)
        try:
            if not quiet:
                raise Violation(f"{left} did not end within {QUIET_S:g} s")
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()


class Soak:
    """One run. `seconds` long, counted without the last look."""

    def __init__(self, args: argparse.Namespace, home: Path, directory: Path, *, private: bool) -> None:
        self.seconds = args.time
        self.journal = Journal(directory, args.seed)
        self.world = World(args.seed, args.scale, home / "files")
        self.origin = SoakOrigin(self.world)
        self.world.url = self.origin.url()
        self.host = Host(home, self.world, self.journal, Sizes.of(args.scale), private=private)
        self.gate, self.calm, self.stopping = Gate(), threading.Event(), threading.Event()
        self.kit = Kit(self.host, self.world, self.journal, self.stopping)
        self._do = everything(self.origin)

    def run(self) -> bool:
        """Whether all held."""
        threads = [threading.Thread(target=self._act, args=(actor,), name=actor) for actor in ACTORS]
        with self.origin:
            try:
                with self._told("start"):
                    self.host.start()
                    self.host.admit()
                    for thread in threads:
                        thread.start()
                    self._cycles()
            finally:
                self.stopping.set()
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()
                self._end()
        return not self.journal.violations

    @contextlib.contextmanager
    def _told(self, who: str) -> Iterator[None]:
        try:
            yield
        except Violation as e:
            self.journal.violation(who, str(e))
        except Exception:  # noqa: BLE001 - told as what it is: a bug, of weightd or of the soak
            self.journal.violation(who, traceback.format_exc())

    def _cycles(self) -> None:
        end = time.monotonic() + self.seconds
        cycle = min(CYCLE_S, self.seconds)
        while (left := end - time.monotonic()) > 0 and not self.stopping.is_set():
            length = cycle if left > cycle * 1.5 else left
            self.calm.clear()
            self._lines(length * STORM)
            self.calm.set()
            self._lines(length * WARM)
            first = self._look(None)
            daemon = self.host.started
            self._lines(length * (1 - STORM - WARM))
            self._look(first if daemon == self.host.started else None)

    def _look(self, before: Vital | None) -> Vital | None:
        found: Vital | None = None
        self.journal.count("audits")
        with self._told("audit"), self.gate.closed(), self.host.turn:
            found = audit(self.kit, self.origin.port, before)
        return found

    def _lines(self, seconds: float) -> None:
        """Let it go on so long; a line now and then, and the budgets, which hold at any time."""
        end, line = time.monotonic() + seconds, time.monotonic() + min(LINE_S, seconds)
        while time.monotonic() < end and not self.stopping.is_set():
            self.stopping.wait(0.5)
            with self._told("budget"):
                self._check_budgets()
            if time.monotonic() >= line:
                line += LINE_S
                print(self.journal.line(self._daemon()), flush=True)

    def _check_budgets(self) -> None:
        sizes = self.host.sizes
        for tier, used, budget in (
            ("shm", self.host.in_shm(), sizes.shm),
            ("nvme", self.host.on_disk(), sizes.nvme),
        ):
            if used > self.journal.counts[f"most in {tier}, MiB"] << 20:
                self.journal.counts[f"most in {tier}, MiB"] = used >> 20
            if used > budget:
                raise Violation(f"{used} bytes are in {tier}, whose budget is {budget}")

    def _daemon(self) -> str:
        try:
            return f"daemon {self.host.started}: {self.host.vital()}"
        except (OSError, AssertionError, KeyError):
            return f"daemon {self.host.started} is away"

    def _act(self, actor: str) -> None:
        for number, step in enumerate(steps(self.journal.seed, actor)):
            while isinstance(step, Kill) and self.calm.is_set() and not self.stopping.wait(0.2):
                pass
            if self.stopping.is_set():
                return
            with self.gate.inside(actor, self.stopping):
                if self.stopping.is_set():
                    return
                self._step(actor, number, step)
            self.stopping.wait(step.pause)

    def _step(self, actor: str, number: int, step: object) -> None:
        who = f"{actor} #{number}"
        self.journal.note(who, f"{step}")
        outcome = "violation"
        try:
            outcome = self._do[type(step)](self.kit, step)  # type: ignore[index]
        except Violation as e:
            self.journal.violation(who, f"{step}: {e}")
        except WeightdError as e:
            outcome = outcome_of(e)
        except Exception:  # noqa: BLE001 - as above
            self.journal.violation(who, f"{step}: {traceback.format_exc()}")
        self.journal.note(who, f"-> {outcome}")
        self.journal.ended(actor, outcome)

    def close(self) -> None:
        """After `run`."""
        self.host.close()
        self.journal.close()

    def _end(self) -> None:
        with self._told("end"):
            if self.host.process is not None:
                self.host.end(signal.SIGINT)
            if left := self.host.segments():
                raise Violation(f"at the end there are segments: {left}")
        if self.host.process is not None:
            self.host.process.kill()
        for status, number in sorted(self.origin.statuses.items()):
            self.journal.counts[f"answers {status} of the origin"] = number


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 60m or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--time", type=_seconds, default="60m", metavar="60m", help="how long")
    parser.add_argument("--seed", type=int, help="of all decisions; random, and printed, unless given")
    parser.add_argument("--scale", type=float, default=1.0, help="of the files' sizes; 1 is up to 200 MiB")
    parser.add_argument("--directory", type=Path, help="for logs, made; in the temporary directory unless given")
    args = parser.parse_args()
    args.seed = random.randrange(1 << 32) if args.seed is None else args.seed
    return args


def _in_a_namespace(args: argparse.Namespace) -> str:
    """Go on with a /dev/shm of our own, which may be filled; returns why that cannot be had."""
    size = Sizes.of(args.scale).mount
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=1777", "tmpfs", "/dev/shm"]
    probe = subprocess.run(["unshare", "--mount", *mount], capture_output=True, text=True)
    if probe.returncode:
        return probe.stderr.strip()
    given = [*sys.argv[1:], "--seed", str(args.seed)]
    script = " ".join(mount) + ' && exec "$@"'
    os.environ[INSIDE] = "1"
    sys.stdout.flush()
    os.execvp("unshare", ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-m", "soak", *given])


def main() -> int:
    args = _arguments()
    private = bool(os.environ.get(INSIDE))
    if not private:
        print(f"seed {args.seed}", flush=True)
        print(f"/dev/shm is not filled by others, because it is not ours alone: {_in_a_namespace(args)}")
    directory = args.directory or Path(tempfile.mkdtemp(prefix=f"weightd-soak-{args.seed}-"))
    directory.mkdir(parents=True, exist_ok=True)
    print(f"logs are kept in {directory}", flush=True)
    home = Path(tempfile.mkdtemp(prefix="wd-soak-"))
    soak = Soak(args, home, directory, private=private)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: soak.stopping.set())
    fine = False
    try:
        fine = soak.run()
    finally:
        soak.close()
        if fine:
            shutil.rmtree(home)
    soak.journal.show()
    if fine:
        print("All held.")
        return 0
    print(f"{len(soak.journal.violations)} violations, see {directory}; the state is in {home}.")
    print(f"Again: python -m soak --seed {args.seed} --time {args.time:g}s --scale {args.scale:g}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
