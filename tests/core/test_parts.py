"""Parts cover a file once, in order, aligned."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightd.core.parts import ALIGN, DEFAULT_PART, MIB, fitting_part, plan_parts


@given(st.integers(0, 200 * ALIGN), st.integers(1, 40))
def test_cover_the_file_once(size: int, pages: int) -> None:
    part_size = pages * ALIGN
    parts = plan_parts(size, part_size)
    reached = 0
    for index, part in enumerate(parts):
        assert (part.index, part.offset) == (index, reached)
        assert 0 < part.length <= part_size
        assert part.offset % ALIGN == 0
        reached += part.length
    assert reached == size
    assert all(p.length == part_size for p in parts[:-1])


@pytest.mark.parametrize(
    ("size", "lengths"),
    [
        (0, []),
        (1, [1]),
        (DEFAULT_PART - 1, [DEFAULT_PART - 1]),
        (DEFAULT_PART, [DEFAULT_PART]),
        (DEFAULT_PART + 1, [DEFAULT_PART, 1]),
    ],
)
def test_edges(size: int, lengths: list[int]) -> None:
    assert [p.length for p in plan_parts(size)] == lengths


@pytest.mark.parametrize("part_size", [0, -ALIGN, 1, ALIGN + 1])
def test_unaligned_part_sizes_are_refused(part_size: int) -> None:
    with pytest.raises(ValueError):
        plan_parts(10, part_size)


@pytest.mark.parametrize(
    ("size", "most", "requests", "part"),
    [
        (0, 16 * MIB, 16, 2 * MIB),
        (10 * MIB, 16 * MIB, 16, 2 * MIB),
        (256 * MIB, 16 * MIB, 16, 8 * MIB),
        (300 * MIB + 1, 16 * MIB, 16, 10 * MIB),
        (1 << 30, 16 * MIB, 16, 16 * MIB),
        (1 << 40, 16 * MIB, 16, 16 * MIB),
        (1 << 30, 16 * MIB, 1, 16 * MIB),
        (1 << 30, MIB, 16, MIB),
    ],
)
def test_a_file_has_parts_enough_for_all_who_share_it(size: int, most: int, requests: int, part: int) -> None:
    assert fitting_part(size, most, requests) == part


@pytest.mark.parametrize(
    ("stored", "part"),
    [
        (0, 16 * MIB),
        (16 * MIB, 16 * MIB),
        (8 * MIB, 16 * MIB),
        (5 * MIB, 15 * MIB),
        (17 * MIB, 17 * MIB // 2),
        (64 * MIB, 16 * MIB),
        (100 * MIB, 100 * MIB // 8),
        (5 << 30, 16 * MIB),
        (5 * MIB + 1, 16 * MIB),
        (16411 * ALIGN, 16 * MIB),
        (-1, 16 * MIB),
    ],
)
def test_parts_follow_the_pieces_that_a_source_keeps(stored: int, part: int) -> None:
    assert fitting_part(1 << 40, 16 * MIB, 16, stored) == part


@given(st.integers(1, 1 << 33), st.sampled_from([MIB, 4 * MIB, 16 * MIB]), st.integers(1, 64), st.integers(0, 1 << 33))
def test_and_stay_parts(size: int, most: int, requests: int, stored: int) -> None:
    part = fitting_part(size, most, requests, stored)
    assert part % ALIGN == 0
    assert 0 < part <= fitting_part(size, most, requests)
    assert part == fitting_part(size, most, requests) or part % stored == 0 or stored % part == 0
