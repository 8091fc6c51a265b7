"""Whatever tenants and origins do, and however lists change: nobody is given bytes that no ref of its own delivered."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.engine.rig import PART, Served, pattern, sha256
from tests.engine.tenants import GROUPS, Origins, Seen, Shared, sharing, tenants
from weightd.core.digest import Digest
from weightd.core.errors import SourceUnavailable, WeightdError
from weightd.core.refs import parse_ref
from weightd.core.tenants import Tenants
from weightd.engine.api import Tier

PLACES = ("a", "b", "shared", "main")
CONTENTS = [pattern(2 * PART + 11, i) for i in range(3)]
LISTS = [
    {"a": ["http://a/", "http://shared/"], "b": ["http://b/", "http://shared/"]},
    {"a": ["http://a/"], "b": ["http://b/", "http://main/"]},
    {"a": ["http://b/"], "b": ["http://a/"]},
    {},
]


@dataclass
class Walk:
    """`sent`: which bytes the origin of which ref sent as a whole, by what went over the wire."""

    root: Path
    chance: random.Random
    origin: Origins = field(default_factory=lambda: Origins({}))
    sent: set[tuple[str, Digest]] = field(default_factory=set)
    steps: int = 0

    def __post_init__(self) -> None:
        for place in PLACES:
            for number in range(2):
                self.serve(f"http://{place}/{number}/")

    def serve(self, ref: str) -> None:
        """Some bytes, under their digest, that of others, or none."""
        data, claimed = self.chance.choice(CONTENTS), self.chance.choice(CONTENTS)
        claim = self.chance.choice([sha256(data), sha256(data), sha256(claimed), None])
        self.origin.models[ref] = {"w": Served(data, claim)}

    def note(self) -> None:
        """Every byte of it, at whatever times: who goes on with what was kept goes on with what the same ref sent."""
        self.sent.update((ref, sha256(data)) for (ref, data), sent in self.origin.sent.items() if 0 not in sent)

    def may_have(self, configured: Tenants, tenant: str) -> set[Digest]:
        return {digest for ref, digest in self.sent if tenant in configured.who(parse_ref(ref))}

    async def run(self, lists: dict[str, list[str]], steps: int) -> None:
        configured = tenants(lists, operate="ab")
        async with sharing(self.root, self.origin, configured, attempts=1) as s:
            self.check_files(s, configured)
            for _ in range(steps):
                await self.step(s, configured)
                self.check_files(s, configured)

    async def step(self, s: Shared, configured: Tenants) -> None:
        who = self.chance.choice([*(t.name for t in configured), "host"])
        seen: Seen = {"a": s.a, "b": s.b, "host": s.host}[who]
        ref = self.chance.choice(sorted(self.origin.models))
        do = self.chance.choice(
            ["acquire", "acquire", "fetch", "disk", "load", "serve", "evict", "remove", "damage", "down"]
        )
        self.steps += 1
        try:
            if do == "acquire":
                lease = await seen.acquire(ref)
                self.note()
                self.check(configured, who, ref, Path(lease.model.directory) / "w")
                lease.release()
            elif do == "fetch":
                await seen.fetch(ref)
            elif do == "disk":
                await seen.fetch(ref, tier=Tier.NVME)
            elif do == "load":
                await seen.load(ref)
            elif do == "serve":
                self.serve(ref)
            elif do == "down":
                self.break_off() if self.chance.random() < 0.5 else self.mend()
            elif do == "damage" and (blobs := sorted(s.rig.blobs.digests())):
                self.damage(s.blob(self.chance.choice(blobs)))
            elif do in ("evict", "remove"):
                await getattr(seen.api, do)(ref)
        except WeightdError:
            pass  # Refused, not held, or not what was promised: all of it is right, as long as the rule holds.
        self.note()

    def break_off(self) -> None:
        """From now on no origin sends more than what a fetch needs to leave something."""

        def down(path: str, offset: int, length: int) -> None:
            if offset >= 2 * PART:
                raise SourceUnavailable("down")

        self.origin.on_start = down

    def mend(self) -> None:
        self.origin.on_start = lambda path, offset, length: None

    def damage(self, path: Path) -> None:
        path.chmod(0o640)
        with path.open("r+b") as file:
            file.write(bytes(16))
        path.chmod(0o440)

    def check(self, configured: Tenants, who: str, ref: str, file: Path) -> None:
        """What was leased."""
        content = sha256(file.read_bytes())
        assert content in {sha256(c) for c in CONTENTS}
        if who != "host":
            assert who in configured.who(parse_ref(ref))
            assert content in self.may_have(configured, who), (self.steps, who, ref)

    def check_files(self, s: Shared, configured: Tenants) -> None:
        """What each could read."""
        names = {gid: name for name, gid in GROUPS.items()}
        for path in [*map(s.blob, s.rig.blobs.digests()), *s.rig.segments()]:
            readers = {names[gid] for gid in s.readers(path)}
            digest = Digest("sha256:" + path.name) if len(path.name) == 64 else None
            digest = digest or Digest("sha256:" + hashlib.sha256(path.read_bytes()).hexdigest())
            for name in readers:
                assert digest in self.may_have(configured, name), (self.steps, name, path)
        for tenant in configured:
            for link in (s.tree(tenant.name) / "blobs").iterdir():
                digest = Digest("sha256:" + link.name)
                assert digest in self.may_have(configured, tenant.name), (self.steps, tenant.name)
                assert link.samefile(s.blob(digest))


@pytest.mark.parametrize("seed", range(4))
async def test_a_walk(tmp_path: Path, seed: int) -> None:
    walk = Walk(tmp_path, random.Random(seed))
    lists = walk.chance.sample(LISTS, len(LISTS))
    for one in [*lists, lists[0]]:
        await walk.run(one, 25)
    assert walk.sent
