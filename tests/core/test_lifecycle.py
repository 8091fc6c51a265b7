"""Lifecycles move along their tables and no other way."""

from __future__ import annotations

import enum

import pytest

from weightd.core.lifecycle import (
    DAEMON,
    INGEST,
    RESIDENCY,
    SEGMENT,
    DaemonState,
    IllegalTransition,
    IngestState,
    Lifecycle,
    Residency,
    SegmentState,
    Table,
)

ALL: list[tuple[type[enum.Enum], Table]] = [  # type: ignore[type-arg]
    (IngestState, INGEST),
    (SegmentState, SEGMENT),
    (Residency, RESIDENCY),
    (DaemonState, DAEMON),
]
ENDS = {IngestState.COMMITTED, IngestState.ABORTED, IngestState.KEPT, SegmentState.UNLINKED, DaemonState.STOPPED}


@pytest.mark.parametrize(("states", "table"), ALL)
def test_exactly_the_arrows_of_the_table(states: type[enum.Enum], table: Table) -> None:  # type: ignore[type-arg]
    for before in states:
        for after in states:
            life = Lifecycle("thing", table, before)
            if after in table.get(before, frozenset()):
                life.to(after)
                assert life.state is after
            else:
                with pytest.raises(IllegalTransition, match=f"thing: {before.name} -> {after.name}"):
                    life.to(after)
                assert life.state is before


@pytest.mark.parametrize(("states", "table"), ALL)
def test_only_ends_have_no_way_on(states: type[enum.Enum], table: Table) -> None:  # type: ignore[type-arg]
    assert {s for s in states if not table.get(s)} == {s for s in states if s in ENDS}


@pytest.mark.parametrize(("states", "table"), ALL)
def test_every_state_can_be_reached_from_the_first(states: type[enum.Enum], table: Table) -> None:  # type: ignore[type-arg]
    first = next(iter(states))
    reached, todo = {first}, [first]
    while todo:
        for state in table.get(todo.pop(), frozenset()):
            if state not in reached:
                reached.add(state)
                todo.append(state)
    assert reached == set(states)


def test_nothing_becomes_writable_or_resident_again() -> None:
    assert SegmentState.CREATED not in SEGMENT[SegmentState.SEALED]
    assert Residency.ABSENT not in RESIDENCY[Residency.RESIDENT]
    assert IngestState.COMMITTED not in INGEST[IngestState.OPEN]
