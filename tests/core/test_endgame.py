"""Who takes over what at the end: only what is worth a request, and always less than everything that is under way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weightd.core.endgame import COLD_TRIPS, LEAST, TRIPS, WORTH_S, Running, border, last_to_end
from weightd.core.parts import ALIGN, MIB

FAST, SLOW = 100 * MIB, MIB
OLD = 60.0


def running(left: int, rate: float, age: float = OLD) -> Running:
    return Running(MIB, MIB + left, rate, age)


@given(st.integers(0, 64 * MIB), st.integers(0, 64 * MIB), st.floats(0, 0.5))
def test_the_border_is_behind_what_comes_already(reach: int, left: int, kept: float) -> None:
    found = border(reach, reach + left, kept)
    if found is None:
        assert left * (1 - kept) <= LEAST + ALIGN
    else:
        assert reach < found <= reach + left - LEAST
        assert found % ALIGN == 0


def test_the_last_to_end_is_chosen_and_not_the_longest() -> None:
    many = {"fast": running(50 * MIB, FAST), "slow": running(2 * MIB, SLOW)}
    assert last_to_end(many, [], 0.001, warm=True) is not None
    found = last_to_end(many, [FAST], 0.001, warm=True)
    assert found is not None
    assert found[0] == "slow"


def test_both_end_together() -> None:
    def kept(rate: float) -> float:
        found = last_to_end({"a": running(50 * MIB, rate)}, [FAST], 0.001, warm=True)
        assert found is not None
        return found[1]

    assert kept(FAST) == 0.5
    assert kept(FAST / 3) == 0.25
    assert kept(2 * FAST) == 0.5, "who takes over is not known to be slower"
    assert kept(0) < 1e-6


def test_what_ends_soon_is_left_alone() -> None:
    soon = {"a": running(int(FAST * WORTH_S / 2), FAST)}
    assert last_to_end(soon, [FAST], 0.0, warm=True) is None
    far = {"a": running(int(FAST * TRIPS * 0.2), FAST)}
    assert last_to_end(far, [FAST], 0.2, warm=True) is None
    assert last_to_end(far, [FAST], 0.1, warm=True) is not None


def test_a_new_connection_has_to_be_worth_more() -> None:
    one = {"a": running(int(FAST * (TRIPS + COLD_TRIPS) / 2 * 0.1), FAST)}
    assert last_to_end(one, [FAST], 0.1, warm=True) is not None
    assert last_to_end(one, [FAST], 0.1, warm=False) is None


def test_a_young_one_may_become_fast() -> None:
    for age, expected in ((0.1, None), (OLD, "a")):
        found = last_to_end({"a": running(2 * MIB, SLOW, age)}, [FAST], 0.01, warm=True)
        assert (found and found[0]) == expected


def test_too_little_or_nothing_known() -> None:
    assert last_to_end({"a": running(LEAST, 1)}, [FAST], 0.001, warm=True) is None
    assert last_to_end({"a": running(50 * MIB, 0)}, [], 0.001, warm=True) is None
    assert last_to_end({}, [FAST], 0.001, warm=True) is None
