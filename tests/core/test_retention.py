"""Which old snapshots may go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weightd.core.retention import due


@given(st.lists(st.integers()), st.integers(0, 9))
def test_the_newest_are_kept(old: list[int], keep: int) -> None:
    gone = due(old, keep)
    assert len(old) - len(gone) == min(keep, len(old))
    assert list(gone) == old[: len(gone)]
