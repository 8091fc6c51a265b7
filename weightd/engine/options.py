"""What an engine is told when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from weightd.core.allow import AllowList
from weightd.core.policy import Rules
from weightd.core.tenants import Tenants
from weightd.engine.adopt import Adoption
from weightd.engine.api import Tier
from weightd.engine.evict import Watermarks
from weightd.engine.patrol import PatrolOptions
from weightd.engine.transfer import TransferOptions


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`state_dir` holds blobs, models and state.db. Budgets in bytes. `transfers` may run at once, and as many
    more that a worker waits for. `patrol`: what is verified in the background, None for nothing. `keep`: old
    snapshots of a ref that stay beside its current one. `allow`: which refs may be asked for. `rules`: when models are
    in shared memory. `marks`: above which share of its budget a tier is emptied, and to which.

    `keep_segments`: they stay when the engine stops, for the next one to adopt, as `adoption` says; for `grace` seconds
    after the start nothing that was adopted is evicted, so that those who had leased it can come again. `tenants`: who
    else is served beside the daemon's own socket, and may see what.
    """

    state_dir: Path
    shm_budget: int
    nvme_budget: int
    transfer: TransferOptions = field(default_factory=TransferOptions)
    transfers: int = 2
    patrol: PatrolOptions | None = None
    keep: int = 1
    allow: AllowList = field(default_factory=AllowList)
    rules: Rules = field(default_factory=Rules)
    marks: Mapping[Tier, Watermarks] = field(default_factory=lambda: dict.fromkeys(Tier, Watermarks()))
    keep_segments: bool = False
    adoption: Adoption = Adoption.LAZY
    grace: float = 60.0
    tenants: Tenants = field(default_factory=Tenants)
