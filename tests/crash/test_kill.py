"""A daemon that is killed, or loses power, at any named point goes on from what it can prove, with the right bytes."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xxhash

from tests.crash import victim
from tests.crash.points import POINTS, WHEN
from tests.crash.victim import DATA
from tests.engine.rig import PART, one, running, sha256
from tests.support.nursery import Died, Nursery
from weightd.core.parts import plan_parts
from weightd.engine.api import Tier
from weightd.storage.ledger import Ledger
from weightd.storage.segments import ROOT
from weightd.storage.state import State

PARTS = plan_parts(len(DATA), PART)
ALL = {p.index for p in PARTS}
SUMS = {p.index: xxhash.xxh3_128_digest(DATA[p.offset : p.offset + p.length]) for p in PARTS}
TIMES = {
    "ingest.write": (1, 5),
    "ingest.record": (1, 3),
    "ledger.append": (1, 2, 3),
    "ledger.durable": (1, 2, 3),
    "ledger.named": (1, 2),
    "commit.durable": (1, 2),
}
"""Which times of a point are looked at, where not only the first."""
CASES = [
    (point, when, number)
    for point in POINTS
    for when in WHEN
    for number in TIMES.get(point, (1,))
    if point != "ingest.resume"
]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery("tests.crash.victim") as found:
        yield found


Kill = Callable[..., bool]


@pytest.fixture
def killed(nursery: Nursery) -> Kill:
    """Arguments as `victim.fetch`; whether it came to its point."""

    def fetch(*arguments: object) -> bool:
        with nursery.start(victim.fetch, *arguments) as child:
            try:
                return child.receive() != "done"
            except Died:
                assert child.status == -signal.SIGKILL
                return True

    return fetch


def provable(root: Path) -> set[int]:
    """By our own reading of the disk: parts that are recorded, and are what they were."""
    state = State(root / "state.db")
    state.open()
    try:
        blobs = {b.digest for b in state.blobs()}
    finally:
        state.close()
    blob = root / "blobs/sha256" / sha256(DATA)[7:9] / sha256(DATA)[7:]
    if sha256(DATA) in blobs and blob.is_file():
        return set(ALL)
    found: set[int] = set()
    for place in (root / "ingest").glob("*.*"):
        read = Ledger.read(place / "ledger")
        promise = place / "promise"
        promised = blob.is_file() and promise.is_file() and promise.read_text() == sha256(DATA)
        data = blob if promised else place / "data"
        if read is not None and data.is_file():
            found |= {i for i, s in read[1].items() if _part(data, i) == s == SUMS[i]}
    return found


def _part(path: Path, index: int) -> bytes:
    with path.open("rb") as file:
        file.seek(PARTS[index].offset)
        return xxhash.xxh3_128_digest(file.read(PARTS[index].length))


async def check(root: Path, owner: str, tier: Tier) -> int:
    """The next process has the right bytes, and asked only for what could not be proven; how many parts that were."""
    proven = provable(root)
    origin = one(DATA)
    async with running(root, origin, owner=owner) as rig:
        model = await rig.fetch(tier=tier)
        assert rig.content(model) == {"model.bin": DATA}
        assert rig.blobs.path(sha256(DATA)).read_bytes() == DATA
        assert {offset // PART for _, offset, _ in origin.starts} == ALL - proven
        await rig.check_idle(blobs=1, segments=int(tier is Tier.SHM))
    assert not [p for p in ROOT.iterdir() if p.name.startswith(f"weightd-{owner}-")]
    return len(proven)


@pytest.mark.parametrize(("point", "when", "number"), CASES)
async def test_killed(tmp_path: Path, killed: Kill, point: str, when: str, number: int) -> None:
    owner, root = "c" + secrets.token_hex(6), tmp_path / "state"
    tier = Tier.SHM if point == "segment.seal" or number % 2 else Tier.NVME
    root.mkdir()
    assert killed(root, owner, tier, point, number, when), "the point was not reached"
    proven = await check(root, owner, tier)
    if point == "ledger.append" and number > 1:
        assert proven


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_a_torn_ledger(tmp_path: Path, killed: Kill, number: int) -> None:
    """The first append is the header."""
    owner, root = "c" + secrets.token_hex(6), tmp_path / "state"
    root.mkdir()
    assert killed(root, owner, Tier.NVME, "ledger.torn", number, "-")
    proven = await check(root, owner, Tier.NVME)
    assert bool(proven) == (number == 3) or number == 2


@pytest.mark.parametrize(("point", "when", "number"), [c for c in CASES if c[:2] != ("ledger.durable", "after")])
async def test_power_lost(tmp_path: Path, killed: Kill, point: str, when: str, number: int) -> None:
    owner, root, after = "c" + secrets.token_hex(6), tmp_path / "state", tmp_path / "after"
    tier = Tier.SHM if point == "segment.seal" else Tier.NVME
    assert killed(root, owner, tier, point, number, when, after), "the point was not reached"
    await check(after, owner, tier)


@pytest.mark.parametrize(
    ("point", "when"),
    [("ingest.resume", "before"), ("ingest.resume", "after"), ("ledger.append", "before"), ("commit.rename", "after")],
)
async def test_killed_again_while_it_resumes(tmp_path: Path, killed: Kill, point: str, when: str) -> None:
    owner, root = "c" + secrets.token_hex(6), tmp_path / "state"
    root.mkdir()
    assert killed(root, owner, Tier.NVME, "ledger.append", 3, "after")
    before = provable(root)
    assert before
    assert killed(root, owner, Tier.SHM, point, 1, when)
    assert provable(root) >= before
    await check(root, owner, Tier.SHM)


@pytest.mark.parametrize("damage", ["emptied", "header cut", "tail cut", "zeroed", "records zeroed", "grown by zeros"])
@pytest.mark.parametrize("tier", list(Tier))
async def test_a_ledger_that_is_damaged_after_a_crash(tmp_path: Path, killed: Kill, damage: str, tier: Tier) -> None:
    """What it still proves is not asked for again, and all else is."""
    owner, root = "c" + secrets.token_hex(6), tmp_path / "state"
    root.mkdir()
    assert killed(root, owner, tier, "ledger.append", 4, "after")
    before = provable(root)
    (ledger,) = (root / "ingest").glob("*/ledger")
    _damage_ledger(ledger, damage)
    proven = await check(root, owner, tier)
    match damage:
        case "emptied" | "header cut" | "zeroed":
            assert proven == 0
        case "grown by zeros":
            assert proven == len(before)
        case _:
            assert 0 < proven < len(before)


def _damage_ledger(path: Path, damage: str) -> None:
    size, record = path.stat().st_size, 28
    match damage:
        case "emptied" | "header cut" | "tail cut":
            os.truncate(path, {"emptied": 0, "header cut": 40, "tail cut": size - record - 1}[damage])
        case "grown by zeros":
            os.truncate(path, size + 5 * record + 3)
        case _:
            with path.open("r+b") as file:
                file.seek(0 if damage == "zeroed" else -2 * record, os.SEEK_SET if damage == "zeroed" else os.SEEK_END)
                file.write(bytes(size if damage == "zeroed" else record))
