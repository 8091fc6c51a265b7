"""Who brings which file, so that others wait for it in place of bringing it too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from weightd.core.tenants import Scope
from weightd.engine.flights import Flight
from weightd.engine.held import Blob, Model
from weightd.engine.items import Item


@dataclass(slots=True, eq=False)
class Claim:
    """`blob` is settled when the item is committed, or cancelled when it will not be. `scope`: for whom its bytes will
    be; to wait for it is a hit, and so is only for refs that nobody else may see."""

    flight: Flight[Model]
    blob: asyncio.Future[Blob]
    item: Item
    scope: Scope


class Claims:
    """Of all flights of an engine. On the event loop."""

    def __init__(self) -> None:
        self._by_scope: dict[Scope, dict[str, Claim]] = {}

    def find(self, keys: Iterable[str], who: Scope) -> Claim | None:
        """Of any of these bytes, for a ref that these may see. What no tenant sees waits for no tenant's source, which
        may claim what it never sends; only for what comes from disk."""
        for scope, claims in self._by_scope.items():
            if who <= scope:
                for key in keys:
                    if key in claims and (who or not scope or claims[key].item.held):
                        return claims[key]
        return None

    def add(self, claim: Claim) -> None:
        """Of what nobody whom `find` finds brings. Of two of one scope, as of a fetch and a load that does not wait for
        it, the later one is found."""
        self._by_scope.setdefault(claim.scope, {}).update(dict.fromkeys(claim.item.keys, claim))

    def remove(self, claim: Claim) -> None:
        """Whoever waits and was not told of a blob makes a new plan."""
        claims = self._by_scope.get(claim.scope, {})
        for key in claim.item.keys:
            if claims.get(key) is claim:
                del claims[key]
        if not claims:
            self._by_scope.pop(claim.scope, None)
        claim.blob.cancel()

    def __len__(self) -> int:
        return sum(map(len, self._by_scope.values()))
