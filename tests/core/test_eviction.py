"""Who leaves a full tier."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from hypothesis import assume, given
from hypothesis import strategies as st

from weightd.core.eviction import (
    FIRST_GAP_S,
    FOREVER_S,
    MOMENT_S,
    NEVER,
    Holding,
    Plan,
    Use,
    plan_eviction,
    value,
)

NOW = 1_800_000_000.0
GIB = 1 << 30
Held = Holding[str, int]

uses = st.builds(Use, st.floats(0, 1e4), st.floats(NOW - 90 * 86400, NOW + 86400))
costs = st.floats(1e-3, 1e4)


@st.composite
def tiers(draw: st.DrawFn) -> tuple[list[Held], dict[int, int]]:
    """Holdings that share blobs, and unnamed blobs."""
    sizes = draw(st.lists(st.integers(0, 1000), min_size=1, max_size=12))
    some = st.sets(st.integers(0, len(sizes) - 1), max_size=6)
    holdings = [
        Holding(str(n), {b: sizes[b] for b in sorted(draw(some))}, draw(uses), draw(costs), 0.1, draw(st.booleans()))
        for n in range(draw(st.integers(0, 8)))
    ]
    unnamed = {b: sizes[b] for b in sorted(draw(some))}
    return holdings, unnamed


def freed_by(holdings: Sequence[Held], victims: set[str], loose: Mapping[int, int]) -> dict[int, int]:
    """The contract, in one sentence of sets: all blobs, less those that somebody who stays has."""
    stay = {b for h in holdings if h.key not in victims for b in h.blobs}
    every = {b: s for h in holdings if h.key in victims for b, s in h.blobs.items()} | dict(loose)
    return {b: s for b, s in every.items() if b not in stay}


def loose_in(holdings: Sequence[Held], unnamed: Mapping[int, int]) -> dict[int, int]:
    return {b: s for b, s in unnamed.items() if not any(b in h.blobs for h in holdings)}


@given(tiers(), st.integers(-5, 8000))
def test_enough_leaves_or_nothing_can(tier: tuple[list[Held], dict[int, int]], need: int) -> None:
    holdings, unnamed = tier
    plan = plan_eviction(holdings, need, NOW, unnamed)
    mortal = {h.key for h in holdings if not h.protected}
    most = sum(freed_by(holdings, mortal, loose_in(holdings, unnamed)).values())
    assert (plan is None) == (need > most)
    if plan is not None:
        assert plan.freed >= need
        assert (plan == Plan()) == (need <= 0)


@given(tiers(), st.integers(1, 4000))
def test_what_leaves_is_what_nobody_who_stays_has(tier: tuple[list[Held], dict[int, int]], need: int) -> None:
    holdings, unnamed = tier
    plan = plan_eviction(holdings, need, NOW, unnamed)
    assume(plan is not None)
    assert plan is not None
    victims = set(plan.victims)
    assert not victims & {h.key for h in holdings if h.protected}
    loose = {b: s for b, s in loose_in(holdings, unnamed).items() if b in plan.blobs}
    expected = freed_by(holdings, victims, loose)
    assert sorted(plan.blobs) == sorted(expected)
    assert plan.freed == sum(expected.values())
    assert len(set(plan.victims)) == len(plan.victims)


@given(tiers(), st.integers(1, 4000))
def test_nobody_goes_in_vain(tier: tuple[list[Held], dict[int, int]], need: int) -> None:
    holdings, unnamed = tier
    plan = plan_eviction(holdings, need, NOW, unnamed)
    assume(plan is not None)
    assert plan is not None
    loose = {b: s for b, s in loose_in(holdings, unnamed).items() if b in plan.blobs}
    for victim in plan.victims:
        assert sum(freed_by(holdings, {*plan.victims} - {victim}, loose).values()) < need
    for blob in loose:
        assert plan.freed - loose[blob] < need


@given(tiers(), st.integers(1, 4000))
def test_unnamed_blobs_go_before_any_holding(tier: tuple[list[Held], dict[int, int]], need: int) -> None:
    holdings, unnamed = tier
    plan = plan_eviction(holdings, need, NOW, unnamed)
    if sum(loose_in(holdings, unnamed).values()) >= need:
        assert plan is not None
        assert plan.victims == ()


@given(tiers(), st.integers(1, 4000), st.data())
def test_the_order_does_not_matter_where_nobody_is_equal(
    tier: tuple[list[Held], dict[int, int]], need: int, data: st.DataObject
) -> None:
    holdings, unnamed = tier
    assume(len({abs(NOW - h.use.at) for h in holdings}) == len(holdings))
    plan = plan_eviction(holdings, need, NOW, unnamed)
    other = plan_eviction(data.draw(st.permutations(holdings)), need, NOW, unnamed)
    assert (plan is None) == (other is None)
    if plan is not None and other is not None:
        assert (set(plan.victims), set(plan.blobs)) == (set(other.victims), set(other.blobs))


@given(st.lists(st.tuples(uses, costs, st.integers(1, 1000)), min_size=2, max_size=9), st.integers(1, 2000))
def test_of_equal_sizes_the_least_valuable_go(given: list[tuple[Use, float, int]], count: int) -> None:
    holdings = [Holding(str(n), {n: 100}, use, cost) for n, (use, cost, _) in enumerate(given)]
    need = min(count, 100 * len(holdings))
    plan = plan_eviction(holdings, need, NOW)
    assert plan is not None
    assert len(plan.victims) == -(-need // 100)
    gone = [value(h, NOW) for h in holdings if h.key in plan.victims]
    kept = [value(h, NOW) for h in holdings if h.key not in plan.victims]
    # Sums over shared blobs round differently.
    assert not kept or max(gone) <= min(kept) * (1 + 1e-9)


@given(uses, costs, st.integers(1, 1 << 40), st.floats(1, 1e8), st.floats(1.01, 100))
def test_value_rises_with_use_and_cost_and_falls_with_size_and_idleness(
    use: Use, cost: float, size: int, later: float, more: float
) -> None:
    def worth(use: Use, cost: float = cost, size: int = size, now: float = NOW) -> float:
        return value(Holding("m", {0: size}, use, cost), now)

    assert worth(use.touched(NOW)) >= worth(use)
    if abs(NOW - use.at) > MOMENT_S:
        assert worth(use.touched(NOW)) > worth(use)
    assert worth(use, cost=cost * more) >= worth(use)
    assert worth(use, size=math.ceil(size * more)) <= worth(use)
    after = max(NOW, use.at)
    assert worth(use, now=after + later) <= worth(use, now=after)


@given(st.lists(st.floats(NOW - 1e9, NOW + 1e9), max_size=30))
def test_a_clock_that_jumps_leaves_a_mean_of_what_it_told(times: list[float]) -> None:
    use = NEVER
    for before, now in itertools.pairwise([None, *times]):
        use = use.touched(now)
        assert use.at == now
        assert before is None or min(FIRST_GAP_S, MOMENT_S) <= use.gap <= 2e9
        assert 0 < use.rate_at(now + 1e12) < use.rate_at(now) < math.inf
        assert use.rate_at(now + 5) == use.rate_at(now - 5)


@given(st.integers(20, 60), st.floats(2 * MOMENT_S, 1e6))
def test_what_is_used_regularly_is_expected_so(count: int, gap: float) -> None:
    use = NEVER
    for n in range(count):
        use = use.touched(NOW + n * gap)
    off = abs(FIRST_GAP_S - gap) * 0.7 ** (count - 1)
    assert abs(use.gap - gap) <= off * 1.01 + gap * 1e-6


def test_a_first_use_is_expected_again_in_half_a_day_and_less_the_longer_it_is_idle() -> None:
    use = NEVER.touched(NOW)
    assert use == Use(1.0, NOW)
    assert use.rate_at(NOW) == 1 / FIRST_GAP_S
    assert use.rate_at(NOW + FIRST_GAP_S) == 1 / (3 * FIRST_GAP_S)
    assert NEVER.rate_at(NOW) == 0


def test_processes_that_start_together_and_one_that_fails_again_and_again_are_one_use() -> None:
    together = NEVER.touched(NOW)
    for n in range(500):
        together = together.touched(NOW + 30 * n)
    assert together == Use(1.0, NOW + 30 * 499)


def test_a_lease_of_hours_is_no_idle_time() -> None:
    use = NEVER.touched(NOW).ended(NOW + 8 * 3600)
    assert use.rate_at(NOW + 8 * 3600) == NEVER.touched(NOW).rate_at(NOW)
    assert use.touched(NOW + 9 * 3600).gap < FIRST_GAP_S


def test_a_weight_that_says_next_to_nothing_is_a_gap_without_end() -> None:
    for weight in (1e-300, 5e-324, 0.0):
        assert Use(weight, NOW).gap == FOREVER_S
    assert 0 < Use(5e-324, NOW).touched(NOW + 3600).weight < 1


def test_what_was_set_to_a_far_future_does_not_stay_for_ever() -> None:
    strange = Holding("strange", {0: 10}, Use(3, NOW + 10 * 365 * 86400), 1)
    plan = plan_eviction([strange, Holding("fresh", {1: 10}, Use(1, NOW), 1)], 10, NOW)
    assert plan == Plan(("strange",), (0,), 10)


def test_what_was_brought_ahead_of_its_use_counts_as_used_once() -> None:
    assert NEVER.expected(NOW).expected(NOW) == NEVER.touched(NOW)
    assert Use(5, NOW).expected(NOW) == Use(5, NOW)


def model(key: str, size: int, *times: float, rate: float = 2 * GIB, delay: float = 0.05) -> Held:
    use = NEVER
    for at in sorted(times):
        use = use.touched(at)
    return Holding(key, {hash(key): size}, use, delay + size / rate, delay)


def hourly(days: int, until: float = NOW) -> list[float]:
    return [until - 3600 * n for n in range(24 * days)]


def test_models_that_are_passed_once_do_not_displace_one_in_use() -> None:
    used = model("used", 10 * GIB, *hourly(2, NOW - 3600))
    passed = [model(f"once {n}", 10 * GIB, NOW - 60 * n) for n in range(20)]
    plan = plan_eviction([used, *passed], 15 * GIB, NOW)
    assert plan is not None
    assert plan.victims == ("once 19", "once 18")


def test_a_model_just_loaded_outlives_one_of_the_day_before() -> None:
    plan = plan_eviction(
        [model("new", 10 * GIB, NOW), model("old", 10 * GIB, *hourly(1, NOW - 86400))], 5 * GIB, NOW + 1
    )
    assert plan is not None
    assert plan.victims == ("old",)


def test_a_burst_that_is_over_is_not_worth_its_count() -> None:
    burst = model("burst", 10 * GIB, *(NOW - 7200 - n for n in range(500)))
    quiet = model("quiet", 10 * GIB, *(NOW - 600 - 1200 * n for n in range(20)))
    plan = plan_eviction([burst, quiet], 5 * GIB, NOW)
    assert plan is not None
    assert plan.victims == ("burst",)


def test_of_equally_used_ones_the_cheapest_to_bring_back_goes() -> None:
    far = model("far", 10 * GIB, NOW - 5, rate=GIB / 10)
    near = model("near", 10 * GIB, NOW - 1)
    small = model("small", GIB // 10, NOW - 5)
    plan = plan_eviction([far, small, near], 1, NOW)
    assert plan is not None
    assert plan.victims == ("near",)


def test_of_equals_the_one_used_longest_ago_goes_then_the_first() -> None:
    none = [Holding(k, {n: 10}, Use(0, at)) for n, (k, at) in enumerate([("a", 2), ("b", 1), ("c", 1), ("d", 2)])]
    plan = plan_eviction(none, 35, NOW)
    assert plan is not None
    assert plan.victims == ("b", "c", "a", "d")


def test_one_large_victim_spares_the_small_ones_before_it() -> None:
    small = [model(f"small {n}", GIB, NOW - 9 * 86400) for n in range(3)]
    plan = plan_eviction([*small, model("large", 20 * GIB, NOW - 3600)], 10 * GIB, NOW)
    assert plan is not None
    assert plan.victims == ("large",)


def test_what_many_share_is_worth_what_all_of_them_are() -> None:
    base, rate = 16 * GIB, 2 * GIB
    shared = {0: base}
    adapters = [Holding(f"a{n}", {**shared, n: GIB // 10}, Use(1, NOW - 60), 8.1, 0.1) for n in range(1, 9)]
    alone = Holding("alone", {99: base}, Use(3, NOW - 60), base / rate, 0.1)
    plan = plan_eviction([*adapters, alone], 10 * GIB, NOW)
    assert plan is not None
    assert plan.victims == ("alone",)


def test_what_a_protected_one_has_is_not_counted_for_its_neighbour() -> None:
    leased = Holding("leased", {0: 90, 1: 10}, Use(1, NOW), 10, protected=True)
    neighbour = Holding("neighbour", {0: 90, 2: 10}, Use(1, NOW), 10)
    assert plan_eviction([leased, neighbour], 11, NOW) is None
    plan = plan_eviction([leased, neighbour], 10, NOW)
    assert plan == Plan(("neighbour",), (2,), 10)


def test_what_cannot_be_brought_back_goes_last_and_breaks_no_order() -> None:
    lost = Holding("lost", {0: 10}, Use(1, NOW), math.inf)
    never = Holding("never", {1: 10}, NEVER, math.inf)
    plan = plan_eviction([lost, never, Holding("usual", {2: 10}, Use(50, NOW), 100)], 20, NOW)
    assert plan is not None
    assert plan.victims == ("never", "usual")


def test_without_bytes_nothing_is_gained() -> None:
    empty = Holding[str, int]("empty", {}, NEVER)
    assert value(empty, NOW) == math.inf
    assert plan_eviction([empty], 1, NOW) is None
    assert plan_eviction([empty, Holding("m", {0: 0, 1: 5}, Use(1, NOW), 1)], 5, NOW) == Plan(("m",), (0, 1), 5)
