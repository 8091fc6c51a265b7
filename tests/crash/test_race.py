"""Several processes on one directory, where flock(2) lies: no two write into one ingest, and nothing wrong is left."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.crash.racer import IDENTITY, PART, PARTS, fill
from tests.crash.test_programs import DATA, MIB, half_way, home, origin, parts, recorded, until
from tests.daemon.process import PATIENCE, SERVE, Served
from tests.support.origin import Origin
from weightd.core.errors import all_errors
from weightd.engine.transfer import TransferOptions
from weightd.storage import ingests
from weightd.storage.ingests import IngestDirectory

__all__ = ["home", "origin"]  # fixtures
RACER = (sys.executable, "-m", "tests.crash.racer")
HERE = Path(__file__).parents[2]
TYPED = {0, *(cls.exit_code for cls in all_errors().values())} - {1}
ROUNDS = 25


class Racer:
    """A process that takes turns."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [*RACER, "-", directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE
        )
        self.answer()

    def ask(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found


@pytest.fixture
def racers(tmp_path: Path) -> Iterator[list[Racer]]:
    with ExitStack() as stack:
        found = [Racer(tmp_path) for _ in range(3)]
        for racer in found:
            stack.enter_context(racer.process)
        yield found
        for racer in found:
            racer.process.kill()


def all_of(racers: list[Racer], *lines: str) -> list[dict[str, Any]]:
    """Asked at the same moment."""
    for racer, line in zip(racers, lines if len(lines) > 1 else lines * len(racers), strict=True):
        racer.ask(line)
    return [racer.answer() for racer in racers]


def test_one_of_them_resumes(tmp_path: Path, racers: list[Racer]) -> None:
    """And while it lives, nobody else touches what it has."""
    for _ in range(ROUNDS):
        kept = IngestDirectory(tmp_path, 0o440).open(PARTS * PART, [IDENTITY], PART)
        kept.held = dict.fromkeys(range(4, PARTS), b"")
        fill(kept, 9)
        assert kept.keep()
        opened = all_of(racers, "open")
        assert len({o["place"] for o in opened}) == len(racers)
        assert sorted(o["held"] for o in opened) == [[], [], [0, 1, 2, 3]]
        written = all_of(racers, "write 1", "write 2", "write 3")
        for number, (one, two) in enumerate(zip(opened, written, strict=True), 1):
            held = len(one["held"])
            expected = bytes([9]) * PART * held + bytes([number]) * PART * (PARTS - held)
            assert two["data"] == hashlib.sha256(expected).hexdigest()
        later = IngestDirectory(tmp_path, 0o440)
        assert (later.kept(), later.drop_leftovers()) == ([], 0)
        all_of(racers, "end")
        assert list(tmp_path.iterdir()) == []


def test_what_a_dead_one_had_is_resumed(tmp_path: Path, racers: list[Racer]) -> None:
    racers[0].ask("open")
    racers[0].answer()
    racers[0].ask("write 1")
    racers[0].answer()
    racers[0].process.kill()
    racers[0].process.wait()
    opened = all_of(racers[1:], "open")
    assert sorted(o["held"] for o in opened) == [[], list(range(PARTS))]


def test_what_somebody_else_takes_over_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, ours = tmp_path / "left", IngestDirectory(tmp_path, 0o440)
    (left / "x.1").mkdir(parents=True)
    is_directory = ingests._is_directory

    def taken_meanwhile(path: Path) -> bool:
        found = is_directory(path)
        path.rename(tmp_path / "taken")
        return found

    monkeypatch.setattr(ingests, "_is_directory", taken_meanwhile)
    ours.take_over(left)
    assert (tmp_path / "taken").is_dir()


def check_writers(trace: Path) -> None:
    """Once another process writes into an ingest, the one before never does again."""
    lines = [line.split() for line in trace.read_text().splitlines()]
    for inode in {inode for _, inode in lines}:
        turns = [pid for pid, _ in groupby(pid for pid, of in lines if of == inode)]
        assert len(turns) == len(set(turns)), turns


@contextmanager
def two_daemons(home: Path) -> Iterator[list[Served]]:
    """On the state directory of the first one."""
    command = [*RACER, str(home / "trace"), "serve"]
    with ExitStack() as stack:
        found = []
        for name in ("a", "b"):
            (home / name).mkdir()
            options = ("--config", str(home / "config.toml"), "--state-dir", str(home / "state"))
            served = Served(home / name, *options, command=command, env={"PYTHONPATH": str(HERE)})
            found.append(stack.enter_context(served))
        for served in found:
            served.until("READY=1")
        yield found


def test_two_daemons(origin: Origin, home: Path) -> None:
    """Each answers with the right bytes or a typed error; the next one alone finds a state that is in order."""
    config = ("--config", str(home / "config.toml"))
    half_way(origin)
    with Served(home, *config) as first:
        first.until("READY=1")
        env = {**os.environ, "WEIGHTD_SOCKET": str(first.socket)}
        fetch = [sys.executable, "-m", "weightd", "fetch", origin.url("model.bin"), "--json"]
        asking = subprocess.Popen(fetch, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: len(recorded(home / "state")) >= 8, "nothing was recorded")
        first.process.kill()
        asking.wait(PATIENCE)
    origin.mend()
    with two_daemons(home) as both:
        envs = [{**os.environ, "WEIGHTD_SOCKET": str(d.socket)} for d in both]
        asking_both = [subprocess.Popen(fetch, env=env, stdout=subprocess.PIPE, text=True) for env in envs]
        for process in asking_both:
            output, _ = process.communicate(timeout=PATIENCE)
            assert process.returncode in TYPED, output
        for daemon in both:
            assert daemon.stop() == 0
            assert "Traceback" not in daemon.text(), daemon.text()
    check_writers(home / "trace")
    with Served(home, *config, command=SERVE) as daemon:
        daemon.until("READY=1")
        subprocess.run(fetch, env=env, capture_output=True, timeout=PATIENCE, check=True)
        (blob,) = (home / "state/blobs").rglob("[0-9a-f]" * 64)
        assert blob.read_bytes() == DATA
        assert daemon.stop(signal.SIGINT) == 0
        assert daemon.segments() == []


def test_two_exports(origin: Origin, home: Path) -> None:
    """Into one directory, in which a third was killed."""
    half_way(origin)
    arguments = ["fetch", origin.url("model.bin"), "--to", str(home / "out"), "--config", str(home / "config.toml")]
    first = subprocess.Popen(
        [sys.executable, "-m", "weightd", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until(lambda: len(recorded(home / "out")) >= 8, "nothing was recorded")
    first.send_signal(signal.SIGKILL)
    first.wait(PATIENCE)
    origin.mend()
    held, before = recorded(home / "out"), len(origin.requests)
    command = [*RACER, str(home / "trace"), *arguments]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=HERE) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
    assert (home / "out/model.bin").read_bytes() == DATA
    assert [p.name for p in (home / "out").iterdir()] == ["model.bin"]
    check_writers(home / "trace")
    # One of them had what the third had proven, the other one nothing; and receivers take over from each other.
    assert 0 <= len(parts(origin, before)) - (2 * (len(DATA) // MIB + 1) - len(held)) <= 2 * TransferOptions().receivers
