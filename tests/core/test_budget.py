"""Budgets: every byte is reserved, resident or free, and never more than there are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightd.core.budget import Budget, human
from weightd.core.errors import BudgetExceeded


def test_reserve_settle_free() -> None:
    budget = Budget("shm", 100)
    budget.reserve(60)
    assert (budget.reserved, budget.resident, budget.left) == (60, 0, 40)
    budget.settle(50)
    assert (budget.reserved, budget.resident, budget.left) == (10, 50, 40)
    budget.cancel(10)
    budget.free(50)
    assert (budget.reserved, budget.resident, budget.left) == (0, 0, 100)


def test_the_last_byte_can_be_had_and_no_more() -> None:
    budget = Budget("nvme", 100)
    budget.reserve(100)
    budget.reserve(0)
    with pytest.raises(BudgetExceeded):
        budget.reserve(1)
    assert budget.reserved == 100


def test_says_what_is_missing_and_what_to_do() -> None:
    budget = Budget("shm", 10 << 20)
    budget.adopt(4 << 20)
    budget.reserve(3 << 20)
    with pytest.raises(BudgetExceeded) as caught:
        budget.reserve(5 << 20, "http://h/m")
    assert "2.0 MiB missing" in caught.value.message
    assert "4.0 MiB resident" in caught.value.message
    assert "3.0 MiB reserved" in caught.value.message
    assert caught.value.ref == "http://h/m"
    assert "shm.budget" in caught.value.remedy


def test_what_was_found_counts_beyond_the_limit() -> None:
    budget = Budget("nvme", 100)
    budget.adopt(150)
    assert budget.left == -50
    with pytest.raises(BudgetExceeded):
        budget.reserve(1)
    budget.free(60)
    budget.reserve(10)


@pytest.mark.parametrize("method", ["settle", "cancel", "free"])
def test_nothing_goes_below_zero(method: str) -> None:
    budget = Budget("shm", 100)
    budget.reserve(5)
    budget.settle(2)
    with pytest.raises(AssertionError):
        getattr(budget, method)(4)
    assert (budget.reserved, budget.resident) == (3, 2)


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.sampled_from(["reserve", "settle", "cancel", "free"]), st.integers(0, 400))),
)
def test_any_sequence_keeps_the_sum(limit: int, steps: list[tuple[str, int]]) -> None:
    budget = Budget("shm", limit)
    for method, size in steps:
        before = (budget.reserved, budget.resident)
        try:
            getattr(budget, method)(size)
        except (BudgetExceeded, AssertionError):
            assert (budget.reserved, budget.resident) == before
        assert budget.reserved >= 0
        assert budget.resident >= 0
        assert budget.reserved + budget.resident + budget.left == limit
        assert budget.left >= 0


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")],
)
def test_human(size: int, text: str) -> None:
    assert human(size) == text
