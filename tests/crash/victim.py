"""Fetch one model, and die on the way. Run in a child of a nursery.

With an aftermath, the power fails: what the disk would hold is written there before the process dies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from tests.crash.points import arm, die, tear
from tests.crash.power import Disk
from tests.engine.rig import PART, one, pattern, running
from weightd.engine.api import Tier
from weightd.storage.ledger import Ledger

DATA = pattern(9 * PART + 1)


class Pacing:
    """At most four parts are asked for that were not recorded: so that the ledger grows by and by."""

    def __init__(self) -> None:
        self._asked = 0
        self._recorded: set[int] = set()
        self._changed = threading.Condition()
        append = Ledger.append

        def counted(ledger: Ledger, parts: Mapping[int, bytes]) -> None:
            append(ledger, parts)
            with self._changed:
                self._recorded |= set(parts)
                self._changed.notify_all()

        Ledger.append = counted  # type: ignore[method-assign]

    def wait(self, path: str, offset: int, length: int) -> None:
        with self._changed:
            self._asked += 1
            if not self._changed.wait_for(lambda: len(self._recorded) >= self._asked - 4, 30):
                raise AssertionError("nothing is recorded")


def _power_failing(root: Path, aftermath: Path) -> Callable[[], None]:
    root.mkdir(exist_ok=True)
    disk = Disk(root)
    disk.watch()

    def action() -> None:
        disk.fail(aftermath)
        die()

    return action


async def fetch(
    connection: Connection,
    root: Path,
    owner: str,
    tier: Tier,
    point: str,
    number: int,
    when: str,
    aftermath: Path | None = None,
) -> None:
    """Sends "done" when nothing killed it."""
    action = _power_failing(root, aftermath) if aftermath else die
    if point == "ledger.torn":
        tear(number)
    else:
        arm(point, number, when, action)
    origin = one(DATA)
    origin.on_start = Pacing().wait
    async with running(root, origin, owner=owner, receivers=3) as rig:
        await rig.fetch(tier=tier)
    connection.send("done")
