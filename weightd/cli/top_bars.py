"""Where the bytes of a tier are, as a bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from weightd.client.types import ModelFile, ModelInfo, TierInfo
from weightd.core.lifecycle import Residency
from weightd.core.policy import Policy


class Kind(NamedTuple):
    """Styles show on light and on dark terminals. `glyph` is drawn where there are no colours to tell kinds apart, else
    `block`, and `mark` in the legend."""

    name: str
    style: str
    glyph: str
    block: str = "▇"
    mark: str = "■"


LEASED: Final = Kind("leased", "green3", "#")
PINNED: Final = Kind("pinned", "dodger_blue1", "P")
IDLE: Final = Kind("idle", "steel_blue", "=")
FILLING: Final = Kind("filling", "gold1", ">")
DRAINING: Final = Kind("draining", "medium_orchid", "~")
KEPT: Final = Kind("kept", "dark_cyan", "+")
OTHERS: Final = Kind("others", "red3", "x")
LEFT: Final = Kind("left", "dim", ".", "▁", "▁")
KINDS: Final = (LEASED, PINNED, IDLE, FILLING, DRAINING, KEPT, OTHERS, LEFT)

Resident = Callable[[ModelFile], Residency]


def parts(tier: TierInfo, models: Sequence[ModelInfo], residency: Resident) -> list[tuple[Kind, int]]:
    """Bytes of the budget by kind; together they are the budget. What is leased and pinned counts as leased, and what
    somebody else has taken of the room that is left as `others`."""
    leased = min(tier.leased, tier.resident)
    pinned = min(_pinned_only(models, residency), tier.pinned, tier.resident - leased)
    others = max(0, tier.left - tier.free) if tier.total else 0
    return [
        (LEASED, leased),
        (PINNED, pinned),
        (IDLE, tier.resident - leased - pinned),
        (FILLING, tier.reserved),
        (DRAINING, tier.draining),
        (KEPT, tier.kept),
        (OTHERS, others),
        (LEFT, tier.left - others),
    ]


def _pinned_only(models: Sequence[ModelInfo], residency: Resident) -> int:
    """Bytes of blobs of pinned and hot models that no leased model has: the tier's own numbers overlap."""
    leased = {f.digest for m in models if m.leases for f in m.files}
    pinned = [m for m in models if m.pinned or m.policy is Policy.HOT]
    blobs = {f.digest: f.size for m in pinned for f in m.files if residency(f) is Residency.RESIDENT}
    return sum(size for digest, size in blobs.items() if digest not in leased)


def cells(amounts: Sequence[int], width: int) -> list[int]:
    """`width` cells shared among amounts: what is there gets one at least, while there are cells."""
    total = sum(amounts)
    if total <= 0 or width <= 0:
        return [0] * len(amounts)
    exact = [amount * width / total for amount in amounts]
    shares = [max(int(share), 1 if share > 0 else 0) for share in exact]
    places = range(len(shares))
    while sum(shares) < width:
        shares[max(places, key=lambda i: exact[i] - shares[i])] += 1
    while sum(shares) > width:
        shares[max(places, key=lambda i: (shares[i], exact[i]))] -= 1
    return shares
