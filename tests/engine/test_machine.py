"""Any sequence of what workers, operators, origins and kills do to an engine: the promises hold after every step.

`WEIGHTD_MACHINE_EXAMPLES=2000 python -m pytest tests/engine/test_machine.py` looks further, elsewhere each time; what
fails is printed as the steps that lead there. Times of threads are not among the steps: what fails once may need the
same steps again and again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.engine.machine_rules import running
from tests.engine.machine_world import PAGE
from tests.support.extent import LONG
from tests.support.nursery import Nursery
from tests.support.tmpfs import mounted, why_not
from weightd.storage.segments import ROOT

EXAMPLES = int(os.environ.get("WEIGHTD_MACHINE_EXAMPLES", "0"))
"""0: as many as a test run has time for, always the same."""
MOUNT_PAGES = 300


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of nobody else, where one can be had: only there somebody can fill it."""
    if why_not():
        yield ROOT
        return
    with mounted(tmp_path / "shm", f"size={MOUNT_PAGES * PAGE},mode=0750") as place:
        yield place


@pytest.mark.long
@pytest.mark.timeout(24 * 3600 if EXAMPLES else 600)
def test_the_promises_hold_after_every_step(mount: Path) -> None:
    with Nursery("tests.engine.machine_host") as nursery:
        run_state_machine_as_test(
            running(nursery, mount),
            settings=settings(
                max_examples=EXAMPLES or (200 if LONG else 12),
                stateful_step_count=40,
                derandomize=not EXAMPLES,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
