"""The soak itself, for some seconds: `make soak` runs it for an hour."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from soak.actors import Kit
from soak.host import Host, Sizes
from soak.journal import Journal, Violation
from soak.plan import ACTORS, steps
from soak.world import World

HERE = Path(__file__).parents[2]


@pytest.mark.parametrize("actor", ACTORS)
def test_a_seed_decides_everything(actor: str) -> None:
    first, again, other = (list(itertools.islice(steps(seed, actor), 50)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    world, journal = World(1, 0.01, tmp_path / "files"), Journal(tmp_path, 1)
    host = Host(tmp_path, world, journal, Sizes.of(0.01), private=False)
    yield Kit(host, world, journal, threading.Event())
    host.close()
    journal.close()


def test_foreign_bytes_are_a_violation(kit: Kit) -> None:
    world = kit.world
    before, after = world.current("raw/odd.bin"), world.next_version("raw/odd.bin", 1.0)
    for version in (before, after):
        kit.check("raw/odd.bin", "odd.bin", version.digest, "a file")
    for digest in ("sha256:" + "0" * 64, world.current("raw/dated.bin").digest):
        with pytest.raises(Violation, match="never served"):
            kit.check("raw/odd.bin", "odd.bin", digest, "a file")
    foreign = world.next_version("pinned/one.bin", 1.0)
    with pytest.raises(Violation, match="never served"):
        kit.check("one", "one.bin", foreign.digest, "a file")
    assert world.next_version("pinned/one.bin", 1.0).honest


@pytest.mark.timeout(240)
def test_ten_seconds(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "soak", "--time", "10s", "--scale", "0.05", "--seed", "1"]
    run = subprocess.run(
        [*command, "--directory", tmp_path / "logs"], cwd=HERE, capture_output=True, text=True, timeout=220
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "All held." in run.stdout
    journal = (tmp_path / "logs/journal.log").read_text()
    for actor in ACTORS:
        assert f" {actor} #0: " in journal
