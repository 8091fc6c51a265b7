"""When a model is in shared memory."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from weightd.core.refs import Ref


class Policy(enum.Enum):
    """Of one model, from the configuration; WARM where it says nothing."""

    HOT = "hot"
    """Fetched and loaded at the start, never evicted."""
    WARM = "warm"
    """Loaded on first use, evicted by need, or when it was idle for `keep_idle`."""
    COLD = "cold"
    """On NVMe until it is acquired; leaves shared memory when it was idle for a while."""


class Rule(msgspec.Struct, frozen=True):
    """`keep_idle`: seconds after its last use in which a model stays in shared memory; None: as long as there is
    room."""

    policy: Policy = Policy.WARM
    keep_idle: float | None = None


class Rules:
    """Of configured models by name; `other` for all else."""

    def __init__(self, named: Mapping[str, Rule] | None = None, other: Rule | None = None) -> None:
        self.named, self.other = dict(named or {}), other or Rule()

    def of(self, ref: Ref) -> Rule:
        """Of any ref."""
        return self.named.get(ref.text, self.other) if ref.scheme == "name" else self.other

    def hot(self) -> list[str]:
        """Names of models that are to be in shared memory always."""
        return [name for name, rule in self.named.items() if rule.policy is Policy.HOT]
