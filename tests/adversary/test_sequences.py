"""Any sequence of lies, changes, cancellations and restarts: the bytes of one honest version or a typed error.

`WEIGHTD_EXAMPLES=5000 python -m pytest tests/adversary/test_sequences.py` looks further; what fails is printed as a
`@reproduce_failure` line.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.adversary import lies
from tests.adversary.origin import Asked, Liar, Lie, Version, honest
from tests.adversary.world import IMPATIENT, PART, RealSources, World, export, nothing_left
from tests.engine.rig import pattern, running, sha256
from tests.support.extent import LONG
from weightd.core.digest import Digest
from weightd.core.errors import WeightdError
from weightd.engine.api import Tier
from weightd.sources.registry import SourceOptions

EXAMPLES = int(os.environ.get("WEIGHTD_EXAMPLES", "0"))
"""0: as many as a test run has time for, always the same."""
QUICK = [*lies.TRUE_IN_OTHER_WORDS, *lies.PASSING, *lies.TOO_LONG, *lies.CHANGED, *lies.REFUSED, *lies.GONE]
CONSISTENT = {"a length of half", "a length of nothing", "a length of more", "an error page with 200"}
"""Told at the probe and of the body, another object: without a digest nobody could know better."""
SLOW = [*lies.SILENT, *lies.ENDLESS]
"""Each takes a read timeout."""


@dataclass(frozen=True)
class Step:
    """One fetch. `told` are the lies for its requests, by their number in the step; `swap` is the request before which
    the object becomes the next version; `cancel` the request at which everybody leaves, `restart` a new engine first.
    Each of `tiers` has its caller, all at once; None is a fetch into a directory, without the engine.
    """

    told: dict[int, Lie]
    tiers: list[Tier | None]
    pinned: bool = False
    swap: int | None = None
    cancel: int | None = None
    restart: bool = False


@dataclass(frozen=True)
class Plan:
    size: int
    naming: str
    ranges: bool
    receivers: int
    steps: list[Step] = field(default_factory=list)


@st.composite
def steps(draw: st.DrawFn, wrong: bool) -> Step:
    """`wrong`: a digest is given, so that wrong bytes under a right head may be told too."""
    some = st.sampled_from([*QUICK, *lies.WRONG] if wrong else [x for x in QUICK if x.name not in CONSISTENT])
    told = draw(st.dictionaries(st.integers(0, 14), some, max_size=8))
    if draw(st.integers(0, 19)) == 0:
        told[draw(st.integers(0, 8))] = draw(st.sampled_from(SLOW))
    if draw(st.integers(0, 5)) == 0:
        lie = draw(some)
        told |= dict.fromkeys(range(draw(st.integers(0, 6)), 200), lie)
    number = st.one_of(st.none(), st.none(), st.integers(0, 12))
    return Step(
        told,
        draw(st.lists(st.sampled_from([Tier.SHM, Tier.NVME, None]), min_size=1, max_size=2, unique=True)),
        pinned=wrong,
        swap=draw(number),
        cancel=draw(number),
        restart=draw(st.booleans()),
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    wrong = draw(st.booleans())
    return Plan(
        draw(st.sampled_from([0, 1, PART - 1, PART, PART + 1, 2 * PART, 3 * PART + 17, 6 * PART])),
        draw(st.sampled_from(["etag", "etag", "date", "both", "both", "none"])),
        draw(st.integers(0, 3)) > 0,
        draw(st.integers(1, 3)),
        draw(st.lists(steps(wrong), min_size=1, max_size=3)),
    )


class Play:
    """Acts out a plan. `versions` are what the origin honestly had; a fetch may end with any of those it overlapped."""

    def __init__(self, plan: Plan, liar: Liar) -> None:
        self.plan, self.liar = plan, liar
        self.versions = [self._version(0)]
        liar.now = self.versions[0]
        liar.other = Version(pattern(plan.size, "other"), '"other"')
        self.digest: Digest = sha256(liar.now.data)

    def _version(self, number: int) -> Version:
        etag = f'"v{number}"' if self.plan.naming in ("etag", "both") else ""
        date = f"Wed, 21 Oct 2015 07:28:{number:02} GMT" if self.plan.naming in ("date", "both") else ""
        return Version(pattern(self.plan.size, f"version {number}"), etag, date, self.plan.ranges)

    def script(self, step: Step, cancel: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
        since = len(self.liar.log)

        def choose(asked: Asked) -> Lie | None:
            number = asked.number - since
            if number == step.swap:
                self.versions.append(self._version(len(self.versions)))
                self.liar.now = self.versions[-1]
            if number == step.cancel:
                loop.call_soon_threadsafe(cancel.set)
            return step.told.get(number)

        self.liar.script = choose

    async def fetch(self, w: World, step: Step) -> list[bytes | WeightdError]:
        """What those got who were not cancelled."""
        cancel = asyncio.Event()
        self.script(step, cancel, asyncio.get_running_loop())
        tasks = [asyncio.create_task(self.one(w, step, tier)) for tier in step.tiers]
        every, leave = asyncio.ensure_future(asyncio.wait(tasks)), asyncio.create_task(cancel.wait())
        await asyncio.wait([every, leave], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await every
        await w.rig.engine._fetcher._flights.stop()
        leave.cancel()
        return [t.result() for t in tasks if not t.cancelled()]

    async def one(self, w: World, step: Step, tier: Tier | None) -> bytes | WeightdError:
        digest = self.digest if step.pinned else None
        if tier is not None:
            return await w.fetch(digest, tier)
        place = out(w)
        got = await export(self.liar, place, digest, IMPATIENT)
        return got if isinstance(got, WeightdError) else await asyncio.to_thread((place / "model.bin").read_bytes)

    async def run(self, root: Path) -> None:
        steps = list(self.plan.steps)
        while steps:
            async with self.engine(root) as rig:
                w = World(rig, self.liar)
                while steps:
                    await self.step(w, steps.pop(0))
                    if steps and steps[0].restart:
                        break
                if not steps:
                    await self.end(w)

    def engine(self, root: Path):
        sources = RealSources(SourceOptions(http=IMPATIENT))
        return running(root, sources, part_size=PART, receivers=self.plan.receivers, attempts=3, pause=0.0)

    async def step(self, w: World, step: Step) -> None:
        first, since = len(self.versions) - 1, len(self.liar.log)
        for got in await self.fetch(w, step):
            if isinstance(got, bytes) and step.pinned:  # Also from here, when the origin has it no more.
                assert sha256(got) == self.digest
            elif isinstance(got, bytes):
                # Or of where it was sent.
                assert got in [v.data for v in (*self.versions[first:], self.liar.other)], "bytes that no version had"
        assert len(self.liar.log) - since <= 250 * len(step.tiers)

    async def end(self, w: World) -> None:
        """The origin is honest from now on, and has what was asked for; what it sent unasked is on no connection."""
        self.liar.script = honest
        self.liar.hang_up()
        pinned = self.plan.steps[0].pinned
        if pinned:
            self.liar.now = self.versions[0]
        since = len(self.liar.log)
        got = await w.fetch(self.digest if pinned else None)
        assert got == self.liar.now.data, got
        assert len(self.liar.log) - since <= 2 + 2 * (self.plan.size // PART + 1)
        blobs = len(list(w.rig.blobs.digests()))
        segments = len(w.rig.segments())
        await w.rig.check_idle(blobs=blobs, segments=segments, kept=4)
        known = {sha256(v.data) for v in (*self.versions, self.liar.other)}
        assert set(w.rig.blobs.digests()) <= known, "a blob that no version was"
        got = await export(self.liar, out(w), self.digest if pinned else None)
        assert not isinstance(got, WeightdError)
        left = [p.name for p in out(w).iterdir()]
        assert [name for name in left if not name.startswith(".weightd-")] == ["model.bin"]
        # What was kept of other versions may be wanted by another command; by this digest there is only one.
        assert not pinned or left == ["model.bin"]


def out(w: World) -> Path:
    return w.rig.root.with_name("out")


@contextmanager
def short_lived() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="weightd-adversary-") as name:
        yield Path(name, "state")


@pytest.mark.long
@pytest.mark.timeout(24 * 3600 if EXAMPLES else 600)
@given(plans())
@settings(
    max_examples=EXAMPLES or (1000 if LONG else 60),
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_the_bytes_of_one_version_or_a_typed_error(plan: Plan) -> None:
    with short_lived() as root, nothing_left():
        with Liar(b"") as liar:
            asyncio.run(Play(plan, liar).run(root))
