"""Open acquires: who holds or waits for what."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from weightd.core.refs import Ref
from weightd.engine.api import NOBODY, Holder, LeaseState, ModelState
from weightd.engine.held import Model

NAMED = 5
"""Holders that an error names; the others are counted."""


class ModelLease:
    """A worker's claim, from the moment it asked; see `api.Lease`. Made by `Leases.open`."""

    __slots__ = ("_leases", "_model", "holder", "ref", "since")

    def __init__(self, leases: Leases, ref: Ref, holder: Holder) -> None:
        self._leases = leases
        self.ref, self.holder, self.since = ref, holder, time.time()
        self._model: Model | None = None

    def grant(self, model: Model) -> None:
        """From now on nothing drops it."""
        self._model = model
        model.leases += 1

    @property
    def model(self) -> ModelState:
        if self._model is None:
            raise AssertionError("the lease was not granted")
        return self._model.state()

    def release(self) -> None:
        if self._leases.remove(self) and self._model is not None:
            self._model.leases -= 1
            self._leases.released(self._model, self.holder)

    @property
    def strict(self) -> bool:
        """Whether it was asked for by a tenant, who has no right to what is here but by its source."""
        return bool(self.holder.tenant)

    @property
    def waiting(self) -> bool:
        """Whether it was not granted yet."""
        return self._model is None

    def state(self) -> LeaseState:
        """As data."""
        revision = self._model.manifest.revision if self._model else ""
        return LeaseState(self.ref.shown, revision, self.since, self.holder, waiting=self.waiting)

    def on(self, model: Model) -> bool:
        """Whether it was granted on this snapshot."""
        return self._model is model

    def __repr__(self) -> str:
        return f"<ModelLease {self.ref.shown} {'waiting' if self.waiting else 'granted'}>"


class Leases:
    """On the event loop. `released` is called of a model when a lease on it ended, and of whose."""

    def __init__(self, released: Callable[[Model, Holder], None]) -> None:
        self.released = released
        self._open: dict[ModelLease, None] = {}

    def open(self, ref: Ref, holder: Holder = NOBODY) -> ModelLease:
        """Not granted yet. Release it in any case."""
        lease = ModelLease(self, ref, holder)
        self._open[lease] = None
        return lease

    def remove(self, lease: ModelLease) -> bool:
        """False for one that is not open any more."""
        return self._open.pop(lease, lease) is None

    @property
    def granted(self) -> int:
        """How many; those that wait are not among them."""
        return sum(not lease.waiting for lease in self._open)

    def states(self, ref: str = "") -> list[LeaseState]:
        """The oldest first; of one ref by its text, or all."""
        return [lease.state() for lease in self._open if ref in ("", lease.ref.text)]

    def who(self, models: Iterable[Model]) -> str:
        """The holders of these, for people."""
        models = list(models)
        holders = [lease.holder for lease in self._open if any(lease.on(m) for m in models)]
        named = [_who(h) for h in holders if h.pid][:NAMED]
        rest = len(holders) - len(named)
        others = [f"{rest} more" if named else f"{rest} that do not say who they are"] if rest else []
        return ", ".join(named + others)

    def __len__(self) -> int:
        return len(self._open)


def _who(holder: Holder) -> str:
    where = f" in pod {holder.pod}" if holder.pod else ""
    what = f" ({holder.command})" if holder.command else ""
    return f"process {holder.pid}{what}{where}"
