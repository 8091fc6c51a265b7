"""Slow requests, and the limit of bytes per second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightd.core.bucket import BURST_S, TokenBucket
from weightd.core.slow import THIRD, allowance, slow


def test_below_a_third_of_the_median_is_slow() -> None:
    assert slow({"a": 90.0, "b": 100.0, "c": 110.0, "d": 31.0}) == {"d"}
    assert slow({"a": 90.0, "b": 90.0, "c": 0.0}) == {"c"}
    assert slow({"a": 90.0, "b": 90.0, "c": 30.0}) == set()


def test_two_are_not_compared() -> None:
    assert slow({"a": 100.0, "b": 0.0}) == slow({}) == set()


def test_the_last_ones_are_compared_with_those_that_ended() -> None:
    assert slow({"a": 10.0}, [100.0, 90.0]) == {"a"}
    assert slow({"a": 10.0, "b": 80.0}, [100.0]) == {"a"}
    assert slow({"a": 10.0}, [100.0]) == set(), "two are still too few"
    assert slow({"a": 10.0, "b": 10.0, "c": 10.0}, [100.0] * 8) == set(), "more at a time bring less each"


@given(st.dictionaries(st.integers(), st.floats(0, 1e9), min_size=3))
def test_never_more_than_half(rates: dict[int, float]) -> None:
    found = slow(rates)
    assert len(found) <= len(rates) / 2
    assert all(rates[a] <= rates[b] for a in found for b in rates.keys() - found)
    assert 0 < THIRD < 1


def test_an_allowance_for_a_twentieth() -> None:
    assert (allowance(0), allowance(100), allowance(1000)) == (4, 9, 54)


@given(st.floats(1e3, 1e9), st.lists(st.tuples(st.integers(1, 1 << 22), st.floats(0, 3)), min_size=1, max_size=50))
def test_no_more_than_the_rate_and_a_burst(rate: float, steps: list[tuple[int, float]]) -> None:
    """Whoever waits as told moves, up to any moment, no more than the rate allows, and not much less if busy."""
    bucket, now, moved = TokenBucket(rate, 0.0), 0.0, 0
    for count, idle in steps:
        now += idle
        now += bucket.take(count, now)
        moved += count
        assert moved <= rate * (now + BURST_S) * (1 + 1e-6) + 1


@given(st.floats(1e3, 1e9), st.lists(st.integers(1, 1 << 22), min_size=1, max_size=50))
def test_a_busy_flow_gets_its_rate(rate: float, counts: list[int]) -> None:
    bucket, now = TokenBucket(rate, 0.0), 0.0
    for count in counts:
        now += bucket.take(count, now)
    assert now == pytest.approx(max(0.0, sum(counts) / rate - BURST_S), rel=1e-6, abs=1e-6)


def test_it_limits_until_a_moment_after_the_last_had_to_wait() -> None:
    bucket = TokenBucket(1000, 0.0)
    assert bucket.take(100, 1.0) == 0.0
    assert not bucket.limits(1.0)
    assert bucket.take(100, 1.0) == pytest.approx(0.1)
    assert bucket.limits(1.0)
    assert bucket.limits(1.19)
    assert not bucket.limits(1.21)


def test_windows_are_a_tenth_of_a_second() -> None:
    assert TokenBucket(1000, 0).window(4096) == 100
    assert TokenBucket(1e9, 0).window(4096) == 4096
    assert TokenBucket(1, 0).window(4096) == 1


def test_no_rate_at_all() -> None:
    with pytest.raises(ValueError, match="rate"):
        TokenBucket(0, 0)
