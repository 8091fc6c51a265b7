"""What is ordered, and what must come of it: the state machine without its rules."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from tests.engine import machine_checks
from tests.engine.machine_driver import Driver, Killed, Lease
from tests.engine.machine_expect import Fit, digests
from tests.engine.machine_host import Seen
from tests.engine.machine_world import PAGE, digest_at
from tests.support.nursery import Nursery
from weightd.core.errors import (
    Exhausted,
    ModelBusy,
    ModelLeased,
    ModelNotFound,
    ModelPinned,
    SourceUnavailable,
    WeightdError,
)
from weightd.engine.adopt import Adoption
from weightd.engine.api import Evicted, ModelState

T = TypeVar("T")


class Orders(RuleBasedStateMachine):
    """`nursery` and `mount` are set by who runs it."""

    nursery: Nursery
    mount: Path

    d: Driver
    did_nothing = False

    @initialize(
        keep=st.integers(0, 1),
        shm=st.sampled_from([40, 52, 70, 100, 240]),
        nvme=st.sampled_from([70, 100, 140, 1000]),
    )
    def begin(self, keep: int, shm: int, nvme: int) -> None:
        self.d = Driver(self.nursery, self.mount, keep=keep, shm=shm * PAGE, nvme=nvme * PAGE)

    @invariant()
    def promises(self) -> None:
        if hasattr(self, "d") and not self.did_nothing:
            self.look()
            machine_checks.check(self.d)
        self.did_nothing = False

    def look(self) -> None:
        d = self.d
        if d.waiting:
            d.all_came(self.order("poll"))
        seen = self.order("look")
        if isinstance(seen, Seen):
            d.seen = seen
        d.note_damage()

    def teardown(self) -> None:
        if hasattr(self, "d"):
            try:
                if sys.exc_info()[0] is None:
                    self.end()
            finally:
                self.d.close()

    def end(self) -> None:
        """Everybody goes, and nothing is left."""
        d = self.d
        if d.held:
            self.let_go()
        for number in list(d.leases):
            d.order("release", number)
            d.loose += d.leases.pop(number).maps
        d.unmap(list(d.maps()))
        self.promises()
        if not isinstance(d.order("stop", False), Killed):
            assert d.child.wait() == 0
            assert d.segments() == set()

    def let_go(self) -> None:
        outcomes = self.order("let_go")
        if not isinstance(outcomes, Killed):
            self.d.held = False
            self.d.all_came(outcomes)

    # --- orders, and what a kill in the middle of one leaves

    def order(self, method: str, *arguments: object) -> Any:
        answer = self.d.order(method, *arguments)
        return self.after_kill() if isinstance(answer, Killed) else answer

    def ask(self, method: str, *arguments: object) -> Any:
        answer = self.d.ask(method, *arguments)
        return self.after_kill() if isinstance(answer, Killed) else answer

    def after_kill(self) -> Killed:
        """What was promised then is there, though nobody knows how far the last order came."""
        d, before = self.d, self.d.seen
        leased = list(d.leases.values())
        d.ended()
        d.start(Adoption.LAZY, grace=True)
        d.note_damage()
        for lease in leased:
            self.adopted(lease)
        for model in before.models:
            if model.current and model.pinned and d.intact(model) and model.ref not in d.unsure_pins:
                assert d.current(model.ref) is not None, f"{model.ref} is pinned, and gone"
        return Killed()

    def adopted(self, lease: Lease) -> None:
        """Its model is resident in the segments that it maps."""
        d = self.d
        model = next((m for m in d.seen.models if (m.ref, m.revision) == (lease.ref, lease.revision)), None)
        if model is None or not d.intact(model):
            assert set(d.revisions[lease.ref, lease.revision].values()) & d.ever_hurt, f"{lease.ref} is gone"
            return
        assert {f.segment for f in model.files if f.segment} == {"/" + m.path.name for m in lease.maps}

    def picked(self, among: Iterable[T], pick: int) -> T | None:
        """Which are there depends on how fast everything was; how it is drawn may not."""
        found = sorted(among)  # type: ignore[type-var]
        return found[pick % len(found)] if found else self.nothing()

    def nothing(self) -> None:
        """Was done in this step."""
        self.did_nothing = True

    # --- what is expected

    def fit(self, ref: str, held: ModelState | None) -> Fit:
        tiers = self.d.tiers()
        return tiers.load(held) if held else tiers.fetch(ref, self.d.versions, shm=True)

    def expect_loaded(self, outcome: Any, fit: Fit, held: ModelState) -> None:
        """Whatever the origin does."""
        if outcome is None or isinstance(outcome, Killed) or not self.d.quiet:
            return
        if isinstance(outcome, ModelState):
            assert not fit.never
            assert outcome.revision == held.revision
        else:
            assert isinstance(outcome, Exhausted), repr(outcome)
            assert not fit.must, outcome

    def nobody_asked(self, *, since: int) -> None:
        """The origin, whose questions are counted."""
        seen = self.order("look")
        assert isinstance(seen, Killed) or seen.asked == since, "the origin was asked for what is here"

    def expect_fetched(self, outcome: Any, fit: Fit) -> None:
        """Of a model that is not here."""
        if outcome is None or isinstance(outcome, Killed) or not self.d.quiet:
            return
        if self.d.down:
            assert isinstance(outcome, SourceUnavailable), repr(outcome)
        elif isinstance(outcome, ModelState):
            assert not fit.never
            files = {f.path: f.digest for f in outcome.files}
            assert files == {p: digest_at(self.d.versions, outcome.ref, p) for p in files}
        elif not self.d.hurt:
            assert isinstance(outcome, Exhausted), repr(outcome)
            assert not fit.must, outcome

    def refusal(self, ref: str) -> type[WeightdError] | None:
        """Why it may not go, of what is known before."""
        models = [m for m in self.d.seen.models if m.ref == ref]
        if not models:
            return ModelNotFound
        if any(m.leases for m in models):
            return ModelLeased
        if any(m.pinned for m in models):
            return ModelPinned
        mapped = {"/" + one.path.name for one in self.d.maps() if one.named}
        awaited = [m for m in models if (m.ref, m.revision) in self.d.awaited]
        return ModelBusy if any(f.segment in mapped for m in awaited for f in m.files) else None

    def going(self, method: str, ref: str) -> Evicted | None:
        """What went, where that can be told."""
        why, quiet = self.refusal(ref), self.d.quiet
        outcome = self.ask(method, ref)
        if isinstance(outcome, Killed) or not quiet:
            assert isinstance(outcome, Killed | Evicted | WeightdError | None)
            return None
        assert isinstance(outcome, Evicted) if why is None else type(outcome) is why, repr(outcome)
        return outcome if why is None else None

    def expect_all(self, before: Seen, intact: list[ModelState], *, kept: bool, grace: bool) -> None:
        """Snapshots are there as they were, and what was in shared memory of the current ones, if it was kept."""
        after = self.d.seen
        assert after.asked == 0
        missing = set(map(identity, intact)) - set(map(identity, after.models))
        assert missing == set()
        new = [m for m in after.models if identity(m) not in map(identity, before.models)]
        # Their records stay for as long as they miss a blob.
        assert all(digests(m) & self.d.ever_hurt for m in new), new
        now = {x: b.segment for x, b in after.blobs.items() if b.in_shm}
        if not kept:
            assert {s for s in now.values() if s} == set()
            return
        stay = {x for m in intact if m.current or grace for x in digests(m)}
        for digest in stay:
            if before.blobs[digest].in_shm:
                assert now.get(digest) == before.blobs[digest].segment


def identity(model: ModelState) -> tuple[Any, ...]:
    """Of a snapshot that a restart keeps."""
    return model.ref, model.revision, model.current, model.pinned, tuple((f.path, f.digest) for f in model.files)
