"""Connections are spread over the addresses of a host, and away from those that failed."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from weightd.core.spread import REST_S, Spread

FOUR = ["a", "b", "c", "d"]


def spread(addresses: list[str] = FOUR) -> Spread:
    made = Spread()
    made.known(addresses)
    return made


def test_the_order_of_dns_decides_between_equals() -> None:
    assert spread().take(FOUR, 0) == "a"


def test_the_least_used_comes_first() -> None:
    made = spread()
    assert Counter(made.take(FOUR, 0) for _ in range(8)) == dict.fromkeys(FOUR, 2)
    made.give("c")
    assert made.take(FOUR, 0) == "c"


def test_one_that_failed_goes_behind_the_others_for_a_while() -> None:
    made = spread()
    made.failed("a", 0)
    assert "a" not in [made.take(FOUR, 1) for _ in range(30)]
    assert made.take(("a",), 1) == "a", "but it is still there"
    assert made.take(FOUR, REST_S) == "a"


def test_when_all_have_failed_they_are_as_good_as_each_other() -> None:
    made = spread()
    for address in FOUR:
        made.failed(address, 0)
    assert [made.take(FOUR, 1) for _ in range(4)] == FOUR
    assert not made.avoided("a", 1)


def test_avoided_while_there_is_a_better_one() -> None:
    made = spread(["a", "b"])
    made.failed("a", 0)
    assert made.avoided("a", 1)
    assert not made.avoided("b", 1)
    assert not made.avoided("a", REST_S)
    alone = spread(["a"])
    alone.failed("a", 0)
    assert not alone.avoided("a", 1)


def test_nothing_left() -> None:
    assert spread().take((), 0) is None


def test_what_dns_no_longer_has_is_forgotten() -> None:
    made = spread()
    made.failed("a", 0)
    assert made.take(("a",), 0) == "a"
    made.known(["b"])
    made.give("a")
    made.failed("a", 0)
    assert made.take(["b"], 0) == "b"
    assert not made._used.keys() - {"b"}
    assert not made._bad_until


@given(st.lists(st.sampled_from(["take", "give", "fail"]), max_size=60))
def test_a_take_is_never_more_than_one_behind(steps: list[str]) -> None:
    """Whatever happens: the one taken is no worse than any other."""
    made, held = spread(), list[str]()
    for now, step in enumerate(steps):
        if step == "take":
            taken = made.take(FOUR, now)
            assert taken is not None
            assert not made.avoided(taken, now)
            held.append(taken)
        elif held and step == "give":
            made.give(held.pop())
        elif held:
            made.failed(held[-1], now)


def test_each_is_told_what_it_was_told() -> None:
    """By a DNS that answers everybody otherwise: nobody gets an address that only another one knows."""
    made = spread(["a", "b"])
    made.known(["c", "d"])
    assert made.take(["a", "b"], 0) == "a"
    assert made.take(["a", "b"], 0) == "b"
    assert made.take(["c", "d"], 0) == "c"
