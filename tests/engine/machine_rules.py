"""The rules of the state machine: what workers, operators, origins, disks and kernels do to an engine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.crash.points import ALL, WHEN
from tests.engine import machine_checks
from tests.engine.machine_driver import Killed
from tests.engine.machine_expect import Fit, digests, total
from tests.engine.machine_host import Seen
from tests.engine.machine_orders import Orders
from tests.engine.machine_world import FILES, KEEP_IDLE_S, MODELS, PAGE, pages
from tests.support.nursery import Nursery
from weightd.core.errors import ModelNotFound
from weightd.engine.adopt import Adoption
from weightd.engine.api import CopyState, Evicted, ModelState, Tier

PICKS = st.integers(0, 255)
REFS = st.sampled_from([*MODELS, 0, 1, 2, 3])
"""Of a model; a number is one of those that are held."""
Step = tuple[str, dict[str, Any]]
Steps = dict[str, tuple[int, dict[str, st.SearchStrategy[Any]]]]
"""By method: how often it is done of all, and with what."""
WORKERS: Steps = {
    "acquire": (6, {"ref": REFS}),
    "release": (3, {"pick": PICKS, "unmap": st.booleans()}),
    "unmap": (1, {}),
    "die": (2, {"pick": PICKS}),
    "regain": (2, {"pick": PICKS}),
}
OPERATORS: Steps = {
    "fetch": (5, {"ref": REFS, "tier": st.sampled_from([None, *Tier])}),
    "load": (2, {"ref": REFS}),
    "evict": (3, {"ref": REFS}),
    "remove": (2, {"ref": REFS}),
    "pin": (3, {"ref": REFS, "method": st.sampled_from(["pin", "pin", "unpin"])}),
    "verify": (1, {"ref": st.one_of(st.just(""), REFS), "quick": st.booleans()}),
    "idle": (1, {}),
    "grace_ends": (1, {}),
    "compare": (1, {}),
}
WORLD: Steps = {
    "origin_changes": (3, {"file": st.sampled_from(FILES)}),
    "origin_goes": (1, {}),
    "hold": (3, {}),
    "damage": (1, {"pick": PICKS, "how": st.sampled_from(["flip", "flip", "cut", "gone"])}),
    "somebody_fills_the_tmpfs": (2, {"left": st.integers(0, 80)}),
}
_LIVES = {"how": st.sampled_from(["kill", "kill", "keep", "drop"]), "adoption": st.sampled_from(Adoption)}
_KILLS = {"point": st.sampled_from(sorted(ALL)), "number": st.integers(1, 3), "when": st.sampled_from(WHEN)}
ENDS: Steps = {"restart": (2, {**_LIVES, "grace": st.booleans()}), "will_be_killed": (1, _KILLS)}


def steps(of: Steps) -> st.SearchStrategy[Step]:
    """Method and arguments."""
    names = [name for name, (times, _) in of.items() for _ in range(times)]
    return st.sampled_from(names).flatmap(lambda n: st.tuples(st.just(n), st.fixed_dictionaries(of[n][1])))


class Machine(Orders):
    """Few rules, because hypothesis takes each as often as any other, or leaves it out of a run; see `Orders` for what
    holds after each."""

    @rule(step=steps(WORKERS))
    def worker(self, step: Step) -> None:
        self.do(*step)

    @rule(step=steps(WORKERS | OPERATORS))
    def somebody(self, step: Step) -> None:
        self.do(*step)

    @rule(step=steps(WORKERS | OPERATORS | WORLD))
    def anything(self, step: Step) -> None:
        self.do(*step)

    @rule(step=steps(WORKERS | OPERATORS | WORLD | ENDS))
    def anything_or_an_end(self, step: Step) -> None:
        self.do(*step)

    def do(self, name: str, arguments: dict[str, Any]) -> None:
        if isinstance(number := arguments.get("ref"), int):
            held = sorted({m.ref for m in self.d.seen.models}) or list(MODELS)
            arguments = arguments | {"ref": held[number % len(held)]}
        getattr(self, name)(**arguments)

    # --- workers

    def acquire(self, ref: str) -> None:
        d, held, asked = self.d, self.d.current(ref), self.d.seen.asked
        fit = self.fit(ref, held)
        outcome = self.ask("acquire", ref)
        if held is None:
            self.expect_fetched(outcome, fit)
        elif d.intact(held):
            self.expect_loaded(outcome, fit, held)
            if d.quiet and not isinstance(outcome, Killed):
                self.nobody_asked(since=asked)

    def release(self, pick: int, unmap: bool) -> None:
        """And keep what is mapped, or not."""
        d = self.d
        number = self.picked(d.leases, pick)
        if number is not None and not isinstance(self.order("release", number), Killed):
            maps = d.leases.pop(number).maps
            d.loose += maps
            if unmap:
                d.unmap(maps)

    def unmap(self) -> None:
        self.d.unmap(list(self.d.loose))

    def die(self, pick: int) -> None:
        """One that waits."""
        number = self.picked(self.d.waiting, pick)
        if number is None:
            return
        method = self.d.waiting[number][0]
        outcome = self.order("vanish", number)
        if not isinstance(outcome, Killed):
            self.d.came(number, method, outcome)

    def regain(self, pick: int) -> None:
        """The lease of a worker that maps the very segments."""
        d = self.d
        if not d.lost:
            return self.nothing()
        lease = d.lost[pick % len(d.lost)]
        held = next((m for m in d.seen.models if (m.ref, m.revision) == (lease.ref, lease.revision)), None)
        fit = d.tiers().load(held) if held else Fit(must=False, never=True)
        outcome = self.ask("acquire", lease.ref, lease.revision)
        if held is None and d.quiet and not isinstance(outcome, Killed):
            assert isinstance(outcome, ModelNotFound), repr(outcome)
        elif held is not None and d.intact(held):
            self.expect_loaded(outcome, fit, held)

    # --- operators

    def fetch(self, ref: str, tier: Tier | None) -> None:
        into_shm = tier is Tier.SHM or (tier is None and ref != "cold")
        fit = self.d.tiers().fetch(ref, self.d.versions, shm=into_shm)
        self.expect_fetched(self.ask("fetch", ref, tier), fit)

    def load(self, ref: str) -> None:
        d, held = self.d, self.d.current(ref)
        fit = self.fit(ref, held) if held else None
        outcome = self.ask("load", ref)
        if fit is None or held is None:
            assert isinstance(outcome, ModelNotFound | Killed) or not d.quiet, repr(outcome)
        elif d.intact(held):
            self.expect_loaded(outcome, fit, held)

    def evict(self, ref: str) -> None:
        d, before = self.d, self.d.seen
        ours = {x for m in before.models if m.ref == ref for x in digests(m)}
        here = {x for x, b in before.blobs.items() if b.in_shm}
        others = [m for m in before.models if m.ref != ref]
        needed = {x for m in others if m.leases or m.pinned or digests(m) <= here for x in digests(m)}
        claimed = {x for m in others if (m.ref, m.revision) in d.awaited for x in digests(m)}
        mapped = {"/" + m.path.name for m in d.maps() if m.named}
        gone = self.going("evict", ref)
        if gone is not None and d.quiet:
            after = self.order("look")
            left = (ours & here) - needed - claimed
            if isinstance(after, Seen) and not d.hurt:
                assert left == here - {x for x, b in after.blobs.items() if b.in_shm}
                assert gone == Evicted(total(left), total({x for x in left if before.blobs[x].segment in mapped}))

    def remove(self, ref: str) -> None:
        gone = self.going("remove", ref)
        if gone is not None:
            after = self.order("look")
            assert isinstance(after, Killed) or ref not in {m.ref for m in after.models}

    def pin(self, ref: str, method: str) -> None:
        held = self.d.current(ref)
        self.d.unsure_pins.add(ref)
        outcome = self.ask(method, ref)
        if isinstance(outcome, Killed):
            return
        self.d.unsure_pins.discard(ref)
        if held is None:
            assert isinstance(outcome, ModelNotFound) or not self.d.quiet, repr(outcome)
        if isinstance(outcome, ModelState):
            assert outcome.pinned is (method == "pin")
            (self.d.pins.add if outcome.pinned else self.d.pins.discard)(ref)

    def verify(self, ref: str, quick: bool) -> None:
        d = self.d
        before, hurt, quiet = d.seen, set(d.hurt), d.quiet
        outcome = self.ask("verify", ref, quick)
        if isinstance(outcome, list) and quiet:
            for check in outcome:
                sound = check.digest not in hurt and check.digest in before.blobs
                if sound:
                    assert check.nvme is CopyState.SOUND, check
                elif not quick:
                    assert check.nvme in (CopyState.REPAIRED, CopyState.LOST), check
                if (
                    not sound
                    and not quick
                    and before.blobs.get(check.digest, None)
                    and before.blobs[check.digest].in_shm
                ):
                    assert check.nvme is CopyState.REPAIRED, check
        elif quiet and outcome is not None and not isinstance(outcome, Killed):
            assert isinstance(outcome, ModelNotFound), repr(outcome)
            assert ref not in {m.ref for m in before.models}

    def idle(self) -> None:
        """For longer than any rule keeps it."""
        self.order("sweep", 2 * KEEP_IDLE_S)

    def grace_ends(self) -> None:
        if not isinstance(self.order("end_grace"), Killed):
            self.d.awaited = set()

    def compare(self) -> None:
        self.order("compare")

    # --- the world

    def origin_changes(self, file: tuple[str, str]) -> None:
        d = self.d
        d.versions[file] = 1 - d.versions.get(file, 0)
        self.order("set_origin", dict(d.versions), d.down)

    def origin_goes(self) -> None:
        """Or comes back."""
        d = self.d
        d.down = not d.down
        self.order("set_origin", dict(d.versions), d.down)

    def hold(self) -> None:
        """The origin answers, and sends nothing; or sends again."""
        if self.d.held:
            self.let_go()
        elif not isinstance(self.order("hold"), Killed):
            self.d.held = True

    def damage(self, pick: int, how: str) -> None:
        """A blob on disk."""
        d = self.d
        digest = self.picked((x for x in d.seen.blobs if pages(x)), pick)
        if digest is not None and d.quiet and (path := d.blob(digest)).exists():
            d.hurt.add(digest)
            d.ever_hurt.add(digest)
            hurt(path, how)

    def somebody_fills_the_tmpfs(self, left: int) -> None:
        """But for so many pages; or takes it away again."""
        d = self.d
        path = d.mount / d.filler_name
        if not machine_checks.alone(d):
            return
        if d.filler:
            path.unlink()
            d.filler = 0
            return
        room = os.statvfs(d.mount).f_bavail * PAGE - left * PAGE
        if room > 0:
            fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
            os.posix_fallocate(fd, 0, room)
            os.close(fd)
            d.filler = room

    # --- ends and beginnings

    def restart(self, how: str, adoption: Adoption, grace: bool) -> None:
        d, before, quiet = self.d, self.d.seen, self.d.quiet
        leased = list(d.leases.values())
        if how == "kill":
            d.child.kill()
        else:
            outcomes = d.order("stop", how == "keep")
            if not isinstance(outcomes, Killed):
                d.all_came(outcomes)
                assert d.child.wait() == 0
                assert how == "keep" or d.segments() == set()
        d.ended()
        intact = [m for m in before.models if d.intact(m)]
        d.start(adoption, grace=grace)
        kept = how != "drop" and adoption is not Adoption.OFF
        if quiet:
            self.expect_all(before, intact, kept=kept, grace=grace)
        if kept and grace:
            for lease in leased:
                self.adopted(lease)
        d.note_damage()

    def will_be_killed(self, point: str, number: int, when: str) -> None:
        """When the engine comes there."""
        if self.d.armed:
            return self.nothing()
        self.order("arm", point, number, when)
        self.d.armed = True


def hurt(path: Path, how: str) -> None:
    """A blob, as a bad disk or a careless administrator does."""
    if how == "gone":
        path.unlink()
        return
    path.chmod(0o640)
    if how == "cut":
        os.truncate(path, max(0, path.stat().st_size - 1))
    else:
        with path.open("r+b") as file:
            first = file.read(1)
            file.seek(0)
            file.write(bytes(b ^ 1 for b in first))
    path.chmod(0o440)


def running(nursery: Nursery, mount: Path) -> Callable[[], Machine]:
    """Machines of these."""

    class Here(Machine):
        pass

    Here.nursery, Here.mount = nursery, mount
    return Here
