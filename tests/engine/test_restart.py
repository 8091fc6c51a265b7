"""What a later process finds: proven bytes are served without a request, the rest is fetched again, nothing is left."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.engine.rig import PART, REF, SECONDS, Origin, Served, one, pattern, running, safetensors, sha256
from tests.engine.test_scrub import flip
from weightd.core.digest import Digest
from weightd.core.errors import ConfigError, DiskFull, PathInTheWay, SourceUnavailable
from weightd.core.verification import Verification
from weightd.engine.api import Tier
from weightd.storage.segments import ROOT
from weightd.storage.state import State

DATA = pattern(9 * PART + 1)
SMALL = pattern(PART, "small")


def two() -> Origin:
    return Origin({REF: {"a": Served(DATA), "sub/b": Served(SMALL), "empty": Served(b"")}})


BYTES = {"a": DATA, "sub/b": SMALL, "empty": b""}


async def test_what_is_on_disk_is_served_without_a_request(tmp_path: Path) -> None:
    async with running(tmp_path, two()) as rig:
        before = (await rig.acquire()).model
    origin = Origin()
    async with running(tmp_path, origin) as rig:
        [model] = rig.engine.models()
        assert model.revision == before.revision
        assert rig.content(model) == BYTES
        assert rig.content((await rig.acquire()).model) == BYTES
        assert (origin.resolved, origin.starts) == (0, {})
        await rig.check_idle(blobs=3, segments=2)


async def test_after_stop_every_name_resolves_onto_the_disk(tmp_path: Path) -> None:
    async with running(tmp_path, two()) as rig:
        model = (await rig.acquire()).model
    assert rig.content(model) == BYTES
    assert {(Path(model.directory) / path).resolve().parents[2] for path in BYTES} == {tmp_path / "blobs"}


async def test_verification_survives(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch()
        await rig.fetch(sha256=sha256(DATA))
    async with running(tmp_path, Origin()) as rig:
        assert rig.engine.model(REF).verification is Verification.SHA256


@pytest.mark.parametrize("damage", ["truncated", "grown", "deleted", "unrecorded", "bad record"])
async def test_what_cannot_be_proven_is_fetched_again(tmp_path: Path, damage: str) -> None:
    async with running(tmp_path, two()) as rig:
        await rig.acquire()
    _damage(rig.blobs.path(sha256(DATA)), tmp_path / "state.db", damage)
    origin = two()
    async with running(tmp_path, origin) as rig:
        assert rig.engine.models() == []
        await rig.check_idle(blobs=2, segments=0)
        assert rig.content((await rig.acquire()).model) == BYTES
        assert {path for path, _, _ in origin.starts} == {"a"}
        await rig.check_idle(blobs=3, segments=2)


async def test_zeroed_bytes_are_found_when_they_are_loaded(tmp_path: Path) -> None:
    async with running(tmp_path, two()) as rig:
        await rig.fetch()
    path = rig.blobs.path(sha256(DATA))
    path.write_bytes(DATA[: 5 * PART] + bytes(len(DATA) - 5 * PART))
    origin = two()
    async with running(tmp_path, origin) as rig:
        assert rig.content((await rig.acquire()).model) == BYTES
        assert {p for p, _, _ in origin.starts} == {"a"}
        assert path.read_bytes() == DATA
        await rig.check_idle(blobs=3, segments=2)


async def test_a_blob_without_a_record_goes(tmp_path: Path) -> None:
    async with running(tmp_path, Origin()) as rig:
        store = rig.blobs
    place = store.path(sha256(DATA))
    place.parent.mkdir()
    place.write_bytes(DATA)
    async with running(tmp_path, Origin()) as rig:
        await rig.check_idle(blobs=0, segments=0)


async def test_a_damaged_state_says_what_to_do_and_leaves_no_thread(tmp_path: Path) -> None:
    async with running(tmp_path, two()) as rig:
        await rig.fetch()
    raw = (tmp_path / "state.db").read_bytes()
    (tmp_path / "state.db").write_bytes(b"\xa5" * len(raw))
    with pytest.raises(ConfigError, match="Move it away"):
        async with running(tmp_path, two()):
            pass
    os.unlink(tmp_path / "state.db")
    origin = two()
    async with running(tmp_path, origin) as rig:
        await rig.check_idle(blobs=0, segments=0)
        assert rig.content(await rig.fetch()) == BYTES


async def test_a_start_that_fails_leaves_no_thread(tmp_path: Path) -> None:
    (tmp_path / "models").touch()
    with pytest.raises(PathInTheWay):
        async with running(tmp_path, two()):
            pass
    assert [t.name for t in threading.enumerate() if t.name.startswith("weightd-")] == []


async def test_another_part_size(tmp_path: Path) -> None:
    async with running(tmp_path, two()) as rig:
        await rig.fetch()
    async with running(tmp_path, Origin(), part_size=3 * 4096) as rig:
        assert rig.content((await rig.acquire()).model) == BYTES


async def test_refs_that_look_alike_are_both_adopted(tmp_path: Path) -> None:
    first, second = "http://origin/m/?id=1", "http://origin/m/?id=2"
    origin = Origin({first: {"x": Served(DATA)}, second: {"x": Served(SMALL)}})
    async with running(tmp_path, origin) as rig:
        await rig.fetch(first)
        await rig.fetch(second)
    async with running(tmp_path, Origin()) as rig:
        assert rig.content(rig.engine.model(first)) == {"x": DATA}
        assert rig.content(rig.engine.model(second)) == {"x": SMALL}


async def test_half_built_directories_and_ingests_go(tmp_path: Path) -> None:
    (tmp_path / "ingest").mkdir()
    (tmp_path / "ingest" / "left").write_bytes(b"x")
    (tmp_path / "models" / "key" / ".weightd-left").mkdir(parents=True)
    async with running(tmp_path, Origin()) as rig:
        await rig.check_idle(blobs=0, segments=0)
        assert list((tmp_path / "models" / "key").iterdir()) == []


VICTIM = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from tests.engine.rig import *

async def main():
    a, b = pattern(9 * PART + 1), pattern(PART, "small")
    origin = Origin({{REF: {{"a": Served(a), "sub/b": Served(b), "empty": Served(b"")}},
                     "http://origin/done/": {{"d.safetensors": Served(safetensors(3 * PART))}}}})
    async with running(Path({root!r}), origin, owner={owner!r}) as rig:
        if {before!r}:
            await rig.acquire("http://origin/done/")
        origin.hold(lambda path, offset: path == "a" and offset >= 5 * PART)
        task = asyncio.create_task(rig.acquire() if {tier!r} == "SHM" else rig.fetch())
        await asyncio.to_thread(origin.reached.wait)
        print("held", flush=True)
        await task

asyncio.run(main())
"""


@pytest.mark.parametrize("tier", ["SHM", "NVME"])
@pytest.mark.parametrize("before", [True, False])
async def test_killed_in_the_middle_of_a_fetch(tmp_path: Path, tier: str, before: bool) -> None:
    owner = "k" + secrets.token_hex(6)
    code = VICTIM.format(here=str(Path(__file__).parents[2]), root=str(tmp_path), owner=owner, tier=tier, before=before)
    victim = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert victim.stdout is not None
    assert await asyncio.wait_for(victim.stdout.readline(), SECONDS) == b"held\n"
    victim.kill()
    assert await victim.wait() == -signal.SIGKILL
    left = [p.name for p in ROOT.iterdir() if p.name.startswith(f"weightd-{owner}-")]
    assert bool(left) == (before or tier == "SHM")
    assert list((tmp_path / "ingest").iterdir())
    origin = two()
    async with running(tmp_path, origin, owner=owner) as rig:
        done = rig.engine.models()
        # The file that was complete when the process died may be recorded or not; the one that was not may not.
        assert not rig.blobs.path(sha256(DATA)).exists()
        adopted = {b.segment.path for b in rig.engine._adopter.adopted if b.segment and b.segment.name}
        assert set(rig.segments()) == adopted  # Of what was recorded: nothing that was half filled.
        await rig.check_idle(blobs=len(list(rig.blobs.digests())), segments=len(adopted), kept=2)
        if before:
            assert rig.content(done[0]) == {"d.safetensors": safetensors(3 * PART)}
            assert rig.content((await rig.acquire("http://origin/done/")).model) == rig.content(done[0])
        else:
            assert done == []
        assert rig.content(await rig.fetch(tier=Tier[tier])) == BYTES


async def test_started_beside_an_origin_that_is_down(tmp_path: Path) -> None:
    async with running(tmp_path, two()) as rig:
        await rig.fetch()

    def down(path: str, offset: int, length: int) -> None:
        raise SourceUnavailable("down")

    origin = two()
    origin.on_start = down
    async with running(tmp_path, origin, attempts=1) as rig:
        assert rig.content((await rig.acquire()).model) == BYTES


def _damage(blob: Path, state: Path, how: str) -> None:
    if how == "truncated":
        os.truncate(blob, blob.stat().st_size - 1)
    elif how == "grown":
        blob.write_bytes(blob.read_bytes() + b"x")
    elif how == "deleted":
        blob.unlink()
    else:
        what = "DELETE FROM blobs" if how == "unrecorded" else "UPDATE blobs SET checksums = x'00'"
        db = sqlite3.connect(state, isolation_level=None)
        assert db.execute(f"{what} WHERE digest = ?", (sha256(DATA),)).rowcount == 1
        db.close()


async def test_a_damaged_blob_whose_record_stayed_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of the state was full when its record was to go; its size says nothing of its bytes."""
    async with running(tmp_path, one(DATA)) as rig:
        await rig.fetch(tier=Tier.NVME)
        catalog, path = rig.engine._catalog, rig.blobs.path(sha256(DATA))
        flip(path)

        def full(state: State, digest: Digest) -> None:
            raise DiskFull("no space left")

        with monkeypatch.context() as patched:
            patched.setattr(State, "drop_blob", full)
            with pytest.raises(DiskFull):
                await catalog.drop(catalog.blobs[sha256(DATA)])
        assert not path.exists()
    async with running(tmp_path, one(DATA)) as rig:
        assert rig.content(await rig.fetch(tier=Tier.NVME)) == {"model.bin": DATA}
        assert path.read_bytes() == DATA
        await rig.check_idle(blobs=1, segments=0, kept=1)
