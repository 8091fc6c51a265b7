"""Killed at any named point of what changes where a model is: what was promised is there at the next start, and no
more; and the start after that finds the same.

`WEIGHTD_CRASHES=all python -m pytest tests/crash/test_kill_residency.py` looks before and after each point, the first
three times; without it, at the first time after each, which is before the next.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.points import RESIDENCY, WHEN
from tests.crash.residency import OPERATIONS, survivor, template, victim
from tests.support.nursery import Died, Nursery
from weightd.storage.segments import ROOT

ALL = os.environ.get("WEIGHTD_CRASHES") == "all"
ENDS = {"commit.rename", "segment.seal", "state.blob", "state.model", "model.links"}
"""Of a fetch, whose other points are looked at in test_kill."""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery("tests.crash.residency") as found:
        yield found


@pytest.fixture(scope="module")
def prepared(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared") / "state"
    with nursery.start(template, root) as child:
        child.receive()
    return root


class Case:
    """One victim, what it had mapped for it, and its survivors."""

    def __init__(self, nursery: Nursery, root: Path, operation: str) -> None:
        self.nursery, self.root, self.operation = nursery, root, operation
        self.owner = "c" + secrets.token_hex(6)

    def dies(self, point: str, number: int, when: str) -> bool:
        """Whether it came to that point."""
        with self.nursery.start(victim, self.root, self.owner, self.operation, point, number, when) as child:
            leased = child.receive()
            mapped = {name: (ROOT / name.removeprefix("/")).read_bytes() for name in leased}
            child.send(None)
            try:
                child.receive()
            except Died:
                assert child.status == -9
            reached = child.status is not None
        self._survived(leased)
        assert not (reached and any((ROOT / n.removeprefix("/")).exists() for n in mapped))
        return reached

    def counts(self) -> dict[str, int]:
        """How often each point is passed when nothing happens."""
        with self.nursery.start(victim, self.root, self.owner, self.operation, "", 0, "") as child:
            leased = child.receive()
            child.send(None)
            found: dict[str, int] = child.receive()
        self._survived(leased)
        return found

    def _survived(self, leased: list[str]) -> None:
        with self.nursery.start(survivor, self.root, self.owner, self.operation, leased) as child:
            child.receive()

    def __enter__(self) -> Case:
        return self

    def __exit__(self, *error: object) -> None:
        for path in ROOT.glob(f"weightd-{self.owner}-*"):
            path.unlink()
        shutil.rmtree(self.root)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_at_every_point(nursery: Nursery, prepared: Path, tmp_path: Path, operation: str) -> None:
    def case(name: str) -> Case:
        return Case(nursery, Path(shutil.copytree(prepared, tmp_path / name, symlinks=True)), operation)

    with case("whole") as whole:
        counts = whole.counts()
    cases = {(point, number, when) for point, times in counts.items() for number, when in looked_at(point, times)}
    reached = set()
    for point, number, when in sorted(cases):
        print(f"{operation}: {number} {when} {point}")
        with case("state") as killed:
            if killed.dies(point, number, when):
                reached.add((point, when))
    assert reached == {(point, when) for point, _, when in cases}


def looked_at(point: str, times: int) -> list[tuple[int, str]]:
    """Which times of a point, and when."""
    if ALL:
        return [(number, when) for number in range(1, min(times, 3) + 1) for when in WHEN]
    return [(1, "after")] if point in RESIDENCY or point in ENDS else []
