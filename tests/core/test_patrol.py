"""Every blob once in a period, the longest ago first, no two together that need not be."""

from __future__ import annotations

from itertools import pairwise
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from weightd.core.digest import Digest
from weightd.core.patrol import RETRY_MOST_S, RETRY_S, AtRest, next_checks, retry_after

DAY = 86400.0
WEEK = 7 * DAY
NOW = 1_800_000_000.0
GIB = 1 << 30


def blob(name: int, last: float, size: int = GIB, retry_at: float | None = None) -> AtRest:
    return AtRest(Digest(f"sha256:{name:064x}"), size, last, retry_at)


def walk(blobs: list[AtRest], period: float, now: float, until: float) -> list[tuple[float, AtRest]]:
    """When each was verified, by somebody who takes no time to do it."""
    seen = []
    held = {b.digest: b for b in blobs}
    while now <= until:
        chosen, later = next_checks(held.values(), period, now)
        for one in chosen:
            seen.append((now, one))
            held[one.digest] = AtRest(one.digest, one.size, now)
        if not chosen:
            assert later > now
            now = later
    return seen


def test_nothing_to_do() -> None:
    assert next_checks([], WEEK, NOW) == ([], inf)


def test_one_blob_is_due_a_period_after_the_last_time() -> None:
    assert next_checks([blob(1, NOW - DAY)], WEEK, NOW) == ([], NOW + 6 * DAY)
    assert next_checks([blob(1, NOW - DAY)], WEEK, NOW + 6 * DAY)[0] == [blob(1, NOW - DAY)]


def test_the_longest_ago_first_and_never_before_all() -> None:
    blobs = [blob(1, NOW - DAY), blob(2, NOW - 2 * DAY), blob(3, 0.0)]
    order = [b.digest for _, b in walk(blobs, WEEK, NOW, NOW + WEEK)]
    assert order[:3] == [blobs[2].digest, blobs[1].digest, blobs[0].digest]
    assert next_checks(blobs, WEEK, NOW)[0] == [blobs[2]]


def test_what_came_together_is_spread_over_the_period() -> None:
    seen = walk([blob(i, NOW) for i in range(7)], WEEK, NOW, NOW + 3 * WEEK)
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(seen)]
    assert all(abs(gap - DAY) < 1 for gap in gaps)
    assert len(seen) == 21


def test_a_large_blob_gets_a_large_share() -> None:
    blobs = [blob(1, NOW, 8 * GIB), blob(2, NOW, GIB), blob(3, NOW, GIB)]
    seen = walk(blobs, 10 * DAY, NOW, NOW + 30 * DAY)
    at = {b.digest: t for t, b in seen[-3:]}
    assert abs((at[blobs[1].digest] - at[blobs[0].digest]) - 8 * DAY) < DAY / 10


def test_what_is_overdue_does_not_wait() -> None:
    """After a month without power: one after the other, at once."""
    blobs = [blob(i, NOW - 30 * DAY + i) for i in range(5)]
    assert [(at, b) for at, b in walk(blobs, WEEK, NOW, NOW)] == [(NOW, b) for b in blobs]


def test_a_time_in_the_future_proves_nothing() -> None:
    assert next_checks([blob(1, NOW - 1), blob(2, NOW + 400 * DAY)], WEEK, NOW)[0] == [blob(2, NOW + 400 * DAY)]


def test_what_failed_waits_for_its_time_and_holds_up_nobody() -> None:
    failed, well = blob(1, 0.0, retry_at=NOW + 60), blob(2, NOW - WEEK - 1)
    assert next_checks([failed, well], WEEK, NOW) == ([well], NOW)
    assert next_checks([failed, blob(2, NOW)], WEEK, NOW) == ([], NOW + 60)
    assert next_checks([failed], WEEK, NOW) == ([], NOW + 60)
    assert next_checks([failed, well], WEEK, NOW + 60)[0] == [well, failed]


@given(
    st.lists(st.tuples(st.floats(0, WEEK), st.integers(0, 1 << 40)), min_size=1, max_size=30),
    st.floats(60, WEEK),
)
def test_nothing_waits_longer_than_a_period(ages: list[tuple[float, int]], period: float) -> None:
    """Whoever follows it verifies everything in each period, and nothing more often than all of it twice."""
    blobs = [blob(i, NOW - age, size) for i, (age, size) in enumerate(ages)]
    seen = walk(blobs, period, NOW, NOW + 4 * period)
    for one in blobs:
        times = [NOW, *(t for t, b in seen if b.digest == one.digest), NOW + 4 * period]
        assert max(b - a for a, b in pairwise(times)) <= period * 1.0001
    assert len(seen) <= 9 * len(blobs)


def test_retries() -> None:
    assert [retry_after(n, 0.0, WEEK) for n in (1, 2, 3)] == [RETRY_S / 2, RETRY_S, 2 * RETRY_S]
    assert retry_after(1, 0.999, WEEK) < RETRY_S
    assert retry_after(1000, 1.0, WEEK) == RETRY_MOST_S
    assert retry_after(5, 1.0, 2.0) == 2.0
