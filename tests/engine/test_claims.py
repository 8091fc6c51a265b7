"""Who is found by whom, of those that bring the same bytes."""

from __future__ import annotations

import asyncio

import pytest

from tests.engine.rig import sha256
from weightd.core.manifest import FileSpec
from weightd.core.tenants import NOBODY, Scope
from weightd.core.verification import Verification
from weightd.engine.claims import Claim, Claims
from weightd.engine.flights import Flight
from weightd.engine.held import Blob, Model
from weightd.engine.items import Item
from weightd.storage.state import BlobRecord

KEY, ONE = "key", frozenset({"a"})


def claim(scope: Scope, *, load: bool = False) -> Claim:
    blob = Blob(BlobRecord(sha256(b"x"), 1, Verification.SHA256, 1, b"", 0.0)) if load else None
    item = Item(frozenset({KEY}), FileSpec("w", 1, "http://a/w"), None, blob, into_shm=True)
    flight: Flight[Model] = Flight()
    return Claim(flight, asyncio.get_running_loop().create_future(), item, scope)


async def test_what_no_tenant_sees_waits_for_no_source_of_a_tenant() -> None:
    claims, fetch = Claims(), claim(ONE)
    claims.add(fetch)
    assert claims.find([KEY], NOBODY) is None
    assert claims.find([KEY], ONE) is fetch
    assert claims.find([KEY], ONE | {"b"}) is None


@pytest.mark.parametrize("first", [0, 1])
async def test_a_fetch_and_a_load_of_one_scope(first: int) -> None:
    """The load is of somebody who does not wait for the fetch. They end in any order."""
    claims, both = Claims(), [claim(ONE), claim(ONE, load=True)]
    for one in both:
        claims.add(one)
    assert claims.find([KEY], NOBODY) is both[1]
    claims.remove(both[first])
    assert both[first].blob.cancelled()
    claims.remove(both[1 - first])
    assert len(claims) == 0
    assert claims.find([KEY], ONE) is None
