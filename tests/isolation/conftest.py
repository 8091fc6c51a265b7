"""What all of these tests need: other users."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.isolation.users import WHY_NOT, Become, becoming


@pytest.fixture(scope="session")
def become() -> Iterator[Become]:
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    with becoming() as become:
        yield become
