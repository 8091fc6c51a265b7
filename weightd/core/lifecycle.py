"""A lifecycle is one enum and one table of its transitions; an illegal transition raises."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Generic, TypeVar

S = TypeVar("S", bound=enum.Enum)

Table = Mapping[S, frozenset[S]]


class IllegalTransition(AssertionError):
    """A bug in weightd, never the caller's fault."""


class Lifecycle(Generic[S]):
    """The current state of one thing, moved only along its table."""

    __slots__ = ("_name", "_state", "_table")

    def __init__(self, name: str, table: Table[S], start: S) -> None:
        self._name, self._table, self._state = name, table, start

    @property
    def state(self) -> S:
        return self._state

    def to(self, new: S) -> None:
        """Move; raises IllegalTransition where the table has no such arrow."""
        if new not in self._table.get(self._state, frozenset()):
            raise IllegalTransition(f"{self._name}: {self._state.name} -> {new.name}")
        self._state = new

    def __repr__(self) -> str:
        return f"<{self._name} {self._state.name}>"


class IngestState(enum.Enum):
    """Of an invisible write."""

    OPEN = "open"
    VERIFYING = "verifying"
    COMMITTED = "committed"
    ABORTED = "aborted"
    KEPT = "kept"


INGEST: Table[IngestState] = {
    IngestState.OPEN: frozenset({IngestState.VERIFYING, IngestState.ABORTED, IngestState.KEPT}),
    IngestState.VERIFYING: frozenset({IngestState.COMMITTED, IngestState.ABORTED}),
}


class SegmentState(enum.Enum):
    """Of one shared-memory object."""

    CREATED = "created"
    SEALED = "sealed"
    UNLINKED = "unlinked"


SEGMENT: Table[SegmentState] = {
    SegmentState.CREATED: frozenset({SegmentState.SEALED, SegmentState.UNLINKED}),
    SegmentState.SEALED: frozenset({SegmentState.UNLINKED}),
}


class Residency(enum.Enum):
    """Of a blob in a tier. The values are those of the wire."""

    ABSENT = 1
    FILLING = 2
    RESIDENT = 3
    EVICTING = 4


RESIDENCY: Table[Residency] = {
    Residency.ABSENT: frozenset({Residency.FILLING}),
    Residency.FILLING: frozenset({Residency.RESIDENT, Residency.ABSENT}),
    Residency.RESIDENT: frozenset({Residency.EVICTING}),
    Residency.EVICTING: frozenset({Residency.ABSENT, Residency.RESIDENT}),
}


class DaemonState(enum.Enum):
    """Of the process."""

    STARTING = "STARTING"
    SERVING = "SERVING"
    DRAINING = "DRAINING"
    STOPPED = "STOPPED"


DAEMON: Table[DaemonState] = {
    DaemonState.STARTING: frozenset({DaemonState.SERVING, DaemonState.STOPPED}),
    DaemonState.SERVING: frozenset({DaemonState.DRAINING}),
    DaemonState.DRAINING: frozenset({DaemonState.STOPPED}),
}
