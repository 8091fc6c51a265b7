"""How many requests an origin gets: doubled while that brings more, halved once when it refuses."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from weightd.core.pace import BURST_S, DOUBT_S, PERIOD_S, REST_S, START, HostPace


def run(pace: HostPace, rate_of: dict[int, float], start: float, periods: int) -> list[int]:
    """An origin that brings `rate_of[limit]` bytes per second, always as many requests as may be; limits seen."""
    now, seen = start, []
    for _ in range(periods):
        while pace.wait(pace.limit - 1, now):
            now += 0.1
        now += PERIOD_S
        pace.moved(int(rate_of[pace.limit] * PERIOD_S), now)
        seen.append(pace.limit)
    return seen


def test_doubled_while_it_brings_more() -> None:
    pace = HostPace(16, 0.0)
    assert run(pace, {4: 100, 8: 200, 16: 400}, 0.0, 4)[-1] == 16


def test_more_that_bring_nothing_are_given_up_and_tried_again_later() -> None:
    pace = HostPace(16, 0.0)
    seen = run(pace, {4: 100, 8: 105, 16: 500}, 0.0, 10)
    assert seen[:3] == [4, 8, 8]
    assert set(seen[4:]) == {4}
    assert 8 in run(pace, {4: 100, 8: 105, 16: 500}, REST_S + 5, 3)


def brought(pace: HostPace, seconds: float, rate: Callable[[float], float], running: int = 16) -> float:
    """Every 5 ms some bytes come; until when the limit was below the most."""
    last = 0.0
    for step in range(round(seconds / 0.005)):
        now = step * 0.005
        pace.moved(int(rate(now) * 0.005), now, min(running, pace.limit))
        last = now if pace.limit < 16 else last
    return last


def test_a_gain_is_believed_at_once() -> None:
    pace = HostPace(16, 0.0)
    assert brought(pace, 1, lambda now: 1e6 * pace.limit) < PERIOD_S
    assert pace.limit == 16


def test_requests_that_bring_nothing_yet_are_not_given_up() -> None:
    """A connection takes round trips until it brings something, and more until it brings what it can."""
    pace, asked = HostPace(16, 0.0), [0.0]

    def rate(now: float) -> float:
        if len(asked) < {4: 1, 8: 2, 16: 3}[pace.limit]:
            asked.append(now)
        return 1e6 * sum(4 * 2 ** max(0, i - 1) for i, at in enumerate(asked) if now >= at + DOUBT_S / 2)

    brought(pace, 3, rate)
    assert pace.limit == 16


def test_what_a_new_origin_refuses_ends_the_climb() -> None:
    pace = HostPace(16, 0.0)
    pace.throttled(0.0, 0)
    assert pace.limit == START // 2
    brought(pace, REST_S / 2, lambda now: 1e6 * pace.limit)
    assert pace.limit == START // 2


def test_fewer_requests_than_may_be_show_nothing() -> None:
    pace = HostPace(16, 0.0)
    brought(pace, 2, lambda now: 1e6 * now, running=START - 1)
    assert pace.limit == START


def test_nobody_who_needs_no_more_gets_more() -> None:
    pace = HostPace(16, 0.0)
    for i in range(1, 20):
        assert pace.wait(1, i * PERIOD_S) == 0
        pace.moved(1000, i * PERIOD_S)
    assert pace.limit == START


def test_the_refusals_of_one_moment_are_one() -> None:
    pace = HostPace(16, 0.0)
    pace.limit = 16
    for i in range(8):
        pace.throttled(10 + i / 100, 0)
    assert pace.limit == 8
    pace.throttled(10 + BURST_S + 0.1, 0)
    assert pace.limit == 4


def test_what_was_asked_for_is_waited() -> None:
    pace = HostPace(16, 0.0)
    pace.throttled(10, 7)
    pace.throttled(11, 1)
    assert pace.wait(0, 11) == 6
    assert pace.wait(0, 17) == 0
    assert pace.wait(pace.limit, 17) is None


@given(
    most=st.integers(1, 64),
    steps=st.lists(st.tuples(st.sampled_from("mtw"), st.floats(0, 2), st.integers(0, 10**9)), max_size=60),
)
def test_always_between_one_and_most(most: int, steps: list[tuple[str, float, int]]) -> None:
    pace, now = HostPace(most, 0.0), 0.0
    for what, passed, number in steps:
        now += passed
        if what == "m":
            pace.moved(number, now)
        elif what == "t":
            pace.throttled(now, number % 30)
        else:
            pace.wait(number % 70, now)
        assert 1 <= pace.limit <= most
