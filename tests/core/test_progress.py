"""Rates and the time left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightd.core.progress import WINDOW, RateMeter, seconds_left


def test_a_steady_rate() -> None:
    meter = RateMeter()
    assert meter.add(0.0, 0) == 0.0
    assert [meter.add(float(i), i * 100) for i in range(1, 20)] == [100.0] * 19


def test_the_rate_is_a_mean_over_the_window() -> None:
    meter = RateMeter()
    for i in range(10):
        meter.add(float(i), i * 1000)
    stalled = [meter.add(10.0 + i, 9000) for i in range(12)]
    assert stalled == sorted(stalled, reverse=True)
    assert stalled[0] > 0.0
    assert stalled[-1] == 0.0


def test_unknown_at_first_and_when_the_clock_stands() -> None:
    meter = RateMeter()
    assert meter.add(5.0, 100) == 0.0
    assert meter.add(5.0, 200) == 0.0


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 1 << 40)), max_size=200))
def test_never_negative_while_the_count_grows(steps: list[tuple[float, int]]) -> None:
    meter, now, done = RateMeter(), 0.0, 0
    for pause, count in steps:
        now, done = now + pause, done + count
        assert meter.add(now, done) >= 0.0
    assert all(now - t <= WINDOW for t, _ in list(meter._samples)[2:])


@pytest.mark.parametrize(
    ("done", "total", "rate", "left"),
    [(0, 100, 10.0, 10.0), (50, 100, 10.0, 5.0), (100, 100, 10.0, 0.0), (0, 0, 0.0, 0.0), (0, 100, 0.0, -1.0)],
)
def test_seconds_left(done: int, total: int, rate: float, left: float) -> None:
    assert seconds_left(done, total, rate) == left
