"""A ref that moved: the new snapshot is made beside the old one and takes its place at once; old ones go by policy."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.engine.rig import PART, REF, Origin, Rig, Served, pattern, running, sha256
from tests.support.immutable import immutable
from weightd.core.errors import DiskFull, ModelNotFound, SourceUnavailable, WeightdError
from weightd.engine.api import CopyState, EventKind, FileCheck, ModelState, Tier
from weightd.engine.leases import ModelLease
from weightd.storage.segments import ROOT
from weightd.storage.state import State

OTHER = "http://origin/other/"
SHARED = pattern(2 * PART, "shared")


def version(n: int) -> dict[str, bytes]:
    """Two files that are the same in all versions, one that is not, and one that only this version has."""
    return {"a": pattern(3 * PART + 1, n), "shared": SHARED, "empty": b"", f"only-{n}": pattern(PART, f"only {n}")}


def served(n: int) -> dict[str, Served]:
    return {path: Served(data) for path, data in version(n).items()}


def moved(rig: Rig, n: int) -> None:
    rig.origin.models[REF] = served(n)


async def fetch(rig: Rig, n: int, tier: Tier = Tier.NVME) -> ModelState:
    """The ref moves, and is fetched; what policy says is done."""
    moved(rig, n)
    model = await rig.fetch(tier=tier)
    await rig.engine._retirer.idle()
    return model


def revisions(rig: Rig) -> list[tuple[str, bool]]:
    return [(m.revision, m.current) for m in rig.engine.models()]


def gone(model: ModelState) -> bool:
    return not Path(model.directory).exists()


def in_memory(model: ModelState) -> bool:
    """Every name leads into the segment that its handle named."""
    return all((Path(model.directory) / f.path).samefile(ROOT / f.segment[1:]) for f in model.files if f.segment)


def current_link(model: ModelState) -> Path:
    return Path(model.directory).parent / "current"


async def test_both_are_held_and_the_new_one_is_current(tmp_path: Path) -> None:
    async with running(tmp_path, Origin()) as rig:
        old = await fetch(rig, 1)
        new = await fetch(rig, 2)
        assert revisions(rig) == [(new.revision, True), (old.revision, False)]
        assert (rig.content(old), rig.content(new)) == (version(1), version(2))
        assert os.readlink(current_link(new)) == new.revision
        assert rig.engine.model(REF).revision == new.revision
        assert rig.engine.model(REF, old.revision) == rig.engine.models()[1]
        with pytest.raises(ModelNotFound, match="revision nosuch"):
            rig.engine.model(REF, "nosuch")
        lease = await rig.acquire()
        assert lease.model.revision == new.revision
        # "shared" and "empty" came once.
        assert sum(n for (path, _, _), n in rig.origin.starts.items() if path == "shared") == 2
        await rig.check_idle(blobs=6, segments=3)


async def test_a_start_that_finds_the_current_one_lost_keeps_the_old(tmp_path: Path) -> None:
    async with running(tmp_path, Origin()) as rig:
        old = await fetch(rig, 1)
        await fetch(rig, 2)
        rig.blobs.path(sha256(version(2)["only-2"])).unlink()
    async with running(tmp_path, Origin()) as rig:
        await rig.engine._retirer.idle()
        assert rig.engine._retirer._task is not None
        assert rig.engine._retirer._task.exception() is None
        assert revisions(rig) == [(old.revision, False)]
        new = await fetch(rig, 3)
        assert revisions(rig) == [(new.revision, True), (old.revision, False)]


async def test_a_restart_finds_both(tmp_path: Path) -> None:
    async with running(tmp_path, Origin()) as rig:
        old = await fetch(rig, 1)
        new = await fetch(rig, 2)
    async with running(tmp_path, Origin()) as rig:
        assert revisions(rig) == [(new.revision, True), (old.revision, False)]
        assert (rig.content(old), rig.content(new)) == (version(1), version(2))
        assert (await rig.acquire()).model.revision == new.revision
        assert (rig.origin.resolved, rig.origin.starts) == (0, {})
        await rig.check_idle(blobs=6, segments=3)


@pytest.mark.parametrize("keep", [0, 1, 2])
async def test_the_oldest_go(tmp_path: Path, keep: int) -> None:
    async with running(tmp_path, Origin(), keep=keep) as rig:
        made = [await fetch(rig, n) for n in (1, 2, 3, 4)]
        held = made[::-1][: keep + 1]
        assert [m.revision for m in rig.engine.models()] == [m.revision for m in held]
        for model in made[: -keep - 1]:
            assert gone(model)
        for n, model in zip((4, 3, 2, 1), held, strict=False):
            assert rig.content(model) == version(n)
        await rig.check_idle(blobs=2 + 2 * len(held), segments=0)
    async with running(tmp_path, Origin(), keep=keep) as rig:
        assert [m.revision for m in rig.engine.models()] == [m.revision for m in held]
        await rig.check_idle(blobs=2 + 2 * len(held), segments=0)


async def test_a_smaller_number_holds_from_the_next_start_on(tmp_path: Path) -> None:
    async with running(tmp_path, Origin(), keep=5) as rig:
        made = [await fetch(rig, n) for n in (1, 2, 3)]
    async with running(tmp_path, Origin(), keep=1) as rig:
        await rig.engine._retirer.idle()
        assert [m.revision for m in rig.engine.models()] == [m.revision for m in made[:0:-1]]
        await rig.check_idle(blobs=6, segments=0)


@pytest.mark.parametrize("keep", [0, 1])
async def test_a_leased_one_stays_until_its_last_lease_ends(tmp_path: Path, keep: int) -> None:
    moved_to = [2] if keep == 0 else [2, 3]
    async with running(tmp_path, Origin({REF: served(1)}), keep=keep) as rig:
        first, second = await rig.acquire(), await rig.acquire()
        old = first.model
        for n in moved_to:
            await fetch(rig, n, Tier.SHM)
        for lease in (first, second):
            await rig.engine._retirer.idle()
            assert (old.revision, False) in revisions(rig)
            assert lease.model.files == old.files
            assert rig.content(old) == version(1)
            assert in_memory(old)
            lease.release()
        await rig.engine._retirer.idle()
        assert (old.revision, False) not in revisions(rig)
        assert gone(old)
        assert rig.content(rig.engine.model(REF)) == version(moved_to[-1])
        await rig.check_idle(blobs=2 + 2 * (keep + 1), segments=3)


async def test_a_kept_one_that_nobody_leases_leaves_shared_memory(tmp_path: Path) -> None:
    async with running(tmp_path, Origin({REF: served(1)})) as rig:
        lease = await rig.acquire()
        await fetch(rig, 2, Tier.SHM)
        await rig.check_idle(blobs=6, segments=5)
        lease.release()
        await rig.engine._retirer.idle()
        assert rig.content(lease.model) == version(1)
        await rig.check_idle(blobs=6, segments=3)
    assert rig.content(lease.model) == version(1)


async def test_what_moved_back_is_current_again(tmp_path: Path) -> None:
    async with running(tmp_path, Origin({REF: served(1)})) as rig:
        lease = await rig.acquire()
        await fetch(rig, 2)
        again = await fetch(rig, 1, Tier.SHM)
        assert again.revision == lease.model.revision
        assert (again.leases, lease.model.current) == (1, True)
        assert [current for _, current in revisions(rig)] == [True, False]
        assert os.readlink(current_link(again)) == again.revision
        await fetch(rig, 3)
        # The one that was current before is the one that is kept.
        assert [m.revision for m in rig.engine.models()][1:] == [again.revision]
        lease.release()


async def test_blobs_of_other_models_stay(tmp_path: Path) -> None:
    other = "http://origin/other/"
    async with running(tmp_path, Origin({other: served(1)}), keep=0) as rig:
        held = await rig.fetch(other)
        await fetch(rig, 1)
        await fetch(rig, 2)
        assert [m.ref for m in rig.engine.models()] == [REF, other]
        assert rig.content(held) == version(1)
        await rig.check_idle(blobs=6, segments=0)


async def test_what_a_fetch_counts_on_stays_until_it_is_done(tmp_path: Path) -> None:
    """The ref moves back while the bytes of the version that it moves back to would go."""
    async with running(tmp_path, Origin({REF: served(1)}), keep=0) as rig:
        lease = await rig.acquire()
        await fetch(rig, 2)
        back = {**served(1), "b": Served(pattern(PART, "b"))}
        rig.origin.models[REF] = back
        rig.origin.hold(lambda path, offset: path == "b")
        task = asyncio.create_task(rig.fetch())
        await asyncio.to_thread(rig.origin.reached.wait, 10)
        before = rig.origin.starts.copy()
        lease.release()
        await rig.engine._retirer.idle()
        assert len(revisions(rig)) == 2
        rig.origin.release()
        model = await task
        await rig.engine._retirer.idle()
        assert rig.content(model) == {**version(1), "b": back["b"].data}
        assert rig.origin.starts == before
        assert revisions(rig) == [(model.revision, True)]
        await rig.check_idle(blobs=5, segments=3)


async def test_until_the_new_one_is_whole_the_old_one_is_what_there_is(tmp_path: Path) -> None:
    async with running(tmp_path, Origin({REF: served(1)}), keep=0) as rig:
        old = await rig.fetch()
        moved(rig, 2)
        rig.origin.hold(lambda path, offset: path == "only-2")
        task = asyncio.create_task(rig.fetch())
        await asyncio.to_thread(rig.origin.reached.wait, 10)
        assert revisions(rig) == [(old.revision, True)]
        assert os.readlink(current_link(old)) == old.revision
        lease = await rig.acquire()
        assert rig.content(lease.model) == version(1)
        rig.origin.release()
        new = await task
        assert (lease.model.revision, lease.model.current) == (old.revision, False)
        assert os.readlink(current_link(old)) == new.revision
        assert rig.content(lease.model) == version(1)
        lease.release()


async def test_readers_of_current_see_whole_snapshots_only(tmp_path: Path) -> None:
    """Another process resolves the link, again and again, while the ref moves."""
    async with running(tmp_path, Origin({REF: served(1)}), keep=2) as rig:
        first = await rig.fetch()
        link = current_link(first)
        code = (
            "import os,sys\n"
            "from pathlib import Path\n"
            "link, seen = Path(sys.argv[1]), set()\n"
            "print('ready', flush=True)\n"
            "while len(seen) < 3:\n"
            "    at = link.resolve(strict=True)\n"
            "    one = {p.name for p in at.iterdir()}\n"
            "    only = [n for n in one if n.startswith('only-')]\n"
            "    assert len(only) == 1 and one == {'a', 'shared', 'empty', *only}, one\n"
            "    assert all((at / n).exists() for n in one), at\n"
            "    if at.name not in seen:\n"
            "        seen.add(at.name); print(at.name, flush=True)\n"
        )
        reader = subprocess.Popen(  # noqa: ASYNC220 - it starts at once
            [sys.executable, "-c", code, str(link)], stdout=subprocess.PIPE, text=True
        )
        assert reader.stdout is not None
        with reader:
            assert reader.stdout.readline() == "ready\n"
            assert (await asyncio.to_thread(reader.stdout.readline)).strip() == first.revision
            for n in (2, 3):
                model = await fetch(rig, n)
                assert (await asyncio.to_thread(reader.stdout.readline)).strip() == model.revision
        assert reader.returncode == 0


async def test_acquires_while_a_ref_moves_map_one_whole_snapshot(tmp_path: Path) -> None:
    async with running(tmp_path, Origin({REF: served(0)}), keep=0) as rig:
        by_revision: dict[str, int] = {}

        async def worker() -> None:
            while len(by_revision) < 6:
                lease = await rig.acquire()
                model = lease.model
                content = {f.path: _mapped(f.segment) for f in model.files}
                lease.release()
                number = next(int(p.removeprefix("only-")) for p in content if p.startswith("only-"))
                assert content == version(number)
                by_revision.setdefault(model.revision, number)
                await asyncio.sleep(0)

        workers = [asyncio.create_task(worker()) for _ in range(3)]
        n = 0
        while len(by_revision) < 6:
            n += 1
            await fetch(rig, n, Tier.SHM if n % 2 else Tier.NVME)
            await asyncio.sleep(0)
        await asyncio.gather(*workers)
        await rig.engine._retirer.idle()
        assert len(rig.engine.models()) == 1
        await rig.check_idle(blobs=4, segments=len(rig.segments()))


def _mapped(segment: str) -> bytes:
    return (ROOT / segment.lstrip("/")).read_bytes() if segment else b""


async def test_two_acquires_and_a_fetch_of_a_moved_ref(tmp_path: Path) -> None:
    """One snapshot is made, whoever asks for it."""
    async with running(tmp_path, Origin({REF: served(1)})) as rig:
        await rig.fetch()
        rig.origin.starts.clear()
        moved(rig, 2)
        a, b, model = await asyncio.gather(rig.fetch(), rig.fetch(tier=Tier.SHM), rig.acquire())
        assert a.revision == b.revision
        assert isinstance(model, ModelLease)
        assert len(revisions(rig)) == 2
        model.release()
        await rig.engine._retirer.idle()
        assert all(n == 1 for n in rig.origin.starts.values())


async def test_an_origin_that_names_no_version(tmp_path: Path) -> None:
    """The same revision, other bytes: the snapshot that is leased is not altered."""

    def unnamed(n: int) -> dict[str, Served]:
        return {"a": Served(pattern(PART, n), etag="")}

    async with running(tmp_path, Origin({REF: unnamed(1)})) as rig:
        lease = await rig.acquire()
        rig.origin.models[REF] = unnamed(2)
        new = await rig.fetch()
        assert new.revision != lease.model.revision
        assert rig.content(lease.model) == {"a": pattern(PART, 1)}
        assert rig.content(new) == {"a": pattern(PART, 2)}
        assert (await rig.fetch()).revision == new.revision
        rig.origin.models[REF] = unnamed(1)
        assert (await rig.fetch()).revision == lease.model.revision
        lease.release()


@pytest.mark.parametrize("origin_has_it", [True, False])
async def test_an_old_snapshot_is_verified_and_repaired_where_it_can_be(tmp_path: Path, origin_has_it: bool) -> None:
    async with running(tmp_path, Origin()) as rig:
        old = await fetch(rig, 1)
        new = await fetch(rig, 2)
        if origin_has_it:
            rig.origin.models[REF] = {**served(1), **served(2), "a": Served(version(1)["a"])}
        else:

            def refused(path: str, offset: int, length: int) -> None:
                raise SourceUnavailable("gone")

            rig.origin.on_start = refused
        path = rig.blobs.path(sha256(version(1)["a"]))
        path.chmod(0o640)
        path.write_bytes(b"\0" * path.stat().st_size)
        events = rig.engine.watch()
        coming = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        checks = [c async for c in rig.engine.verify() if isinstance(c, FileCheck)]
        assert [c.revision for c in checks] == [new.revision] * 4 + [old.revision] * 4
        damaged = [c for c in checks if c.nvme is not CopyState.SOUND]
        assert [(c.revision, c.path) for c in damaged] == [(old.revision, "a")]
        assert damaged[0].nvme is (CopyState.REPAIRED if origin_has_it else CopyState.LOST)
        event = await coming
        assert (event.kind, event.revision) == (EventKind.DAMAGED, old.revision)
        await events.aclose()
        assert rig.content(rig.engine.model(REF)) == version(2)
        if origin_has_it:
            assert rig.content(old) == version(1)
            assert damaged[0].detail == "was damaged in NVMe"
        else:
            assert "cannot be repaired: gone" in damaged[0].detail
            assert (await rig.engine.status()).verify.lost == 1
            assert (await rig.acquire()).model.revision == new.revision
            # Its turn comes: nobody misses it any more.
            rig.origin.on_start = lambda path, offset, length: None
            await fetch(rig, 3)
            assert len(revisions(rig)) == 2
            assert (await rig.engine.status()).verify.lost == 0
    if not origin_has_it:
        return
    path.unlink()
    async with running(tmp_path, Origin()) as rig:
        # What misses a blob after a start is dropped, unless it is what the ref means.
        assert revisions(rig) == [(new.revision, True)]
        assert gone(old)
        await rig.check_idle(blobs=4, segments=0)


async def test_a_verification_keeps_what_it_reads(tmp_path: Path) -> None:
    async with running(tmp_path, Origin(), keep=0) as rig:
        await fetch(rig, 1)
        async with aclosing(rig.engine.verify(REF)) as steps:
            await anext(steps)
            await fetch(rig, 2)
            assert len(revisions(rig)) == 2
            async for step in steps:
                assert not isinstance(step, FileCheck) or step.nvme is CopyState.SOUND
        await rig.engine._retirer.idle()
        assert len(revisions(rig)) == 1


async def test_a_switch_that_cannot_be_recorded_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, Origin()) as rig:
        old = await fetch(rig, 1)
        moved(rig, 2)

        def full(self: State, record: object) -> None:
            raise DiskFull("no room")

        with monkeypatch.context() as m:
            m.setattr(State, "put_model", full)
            with pytest.raises(DiskFull):
                await rig.fetch()
        assert revisions(rig) == [(old.revision, True)]
        assert os.readlink(current_link(old)) == old.revision
        new = await rig.fetch()
        assert revisions(rig) == [(new.revision, True), (old.revision, False)]


async def test_one_that_cannot_be_dropped_is_dropped_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, Origin(), keep=0) as rig:
        old = await fetch(rig, 1)

        def full(self: State, *args: object) -> None:
            raise DiskFull("no room")

        with monkeypatch.context() as m:
            m.setattr(State, "drop_model", full)
            new = await fetch(rig, 2)
            assert revisions(rig) == [(new.revision, True), (old.revision, False)]
            assert rig.content(old) == version(1)
            await rig.check_idle(blobs=6, segments=0)
        await rig.fetch()
        await rig.engine._retirer.idle()
        assert revisions(rig) == [(new.revision, True)]
        await rig.check_idle(blobs=4, segments=0)


async def move(rig: Rig, ref: str, n: int, tier: Tier = Tier.NVME) -> ModelState:
    """As `fetch`, of a ref whose versions have no bytes of another's."""
    rig.origin.models[ref] = {"x": Served(pattern(PART, f"{ref} {n}"))}
    model = await rig.fetch(ref, tier)
    await rig.engine._retirer.idle()
    return model


async def test_one_that_cannot_be_led_away_keeps_no_other_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, Origin()) as rig:
        old = await move(rig, REF, 1, Tier.SHM)
        link = Path(old.directory) / "x"
        link.unlink()
        link.mkdir()
        await move(rig, REF, 2, Tier.SHM)
        assert f"an old snapshot could not be dropped: {REF}: {link}" in caplog.text
        other = await move(rig, OTHER, 1, Tier.SHM)
        new = await move(rig, OTHER, 2, Tier.SHM)
        assert in_memory(new)
        assert not (ROOT / other.files[0].segment[1:]).exists()
        await rig.check_idle(blobs=4, segments=3)
        assert caplog.text.count("could not be dropped") == 1
        link.rmdir()
        await rig.fetch()
        await rig.engine._retirer.idle()
        await rig.check_idle(blobs=4, segments=2)


async def test_one_that_cannot_be_dropped_keeps_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path, Origin()) as rig:
        for ref in (REF, OTHER):
            for n in (1, 2):
                await move(rig, ref, n)
        blob = rig.blobs.path(sha256(pattern(PART, f"{REF} 1")))
    with immutable(blob):
        async with running(tmp_path, Origin(), keep=0) as rig:
            await rig.engine._retirer.idle()
            assert [current for _, current in revisions(rig)] == [True, True]
            assert f"an old snapshot could not be dropped: {REF}: " in caplog.text


async def test_watchers_are_told(tmp_path: Path) -> None:
    async with running(tmp_path, Origin(), keep=0) as rig:
        old = await fetch(rig, 1)
        events = rig.engine.watch()
        coming = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        await fetch(rig, 2)
        event = await coming
        while event.kind is not EventKind.RETIRED:
            event = await anext(events)
        assert (event.ref, event.revision) == (REF, old.revision)
        await events.aclose()


DYING = """
import asyncio, os, sys
from pathlib import Path
from tests.engine.rig import Origin, running
from tests.engine.test_snapshots import REF, fetch
from weightd.storage.blobs import DirectoryBlobStore
from weightd.storage.snapshots import ModelDirectories
from weightd.storage.state import State

owners = {"State": State, "Directories": ModelDirectories, "Store": DirectoryBlobStore}
owner, (name, when) = owners[sys.argv[2]], sys.argv[3:5]
real = getattr(owner, name)

def dying(*args):
    if when == "after":
        real(*args)
    os._exit(9)

async def main():
    async with running(Path(sys.argv[1]), Origin(), keep=0, owner=sys.argv[5]) as rig:
        await fetch(rig, 1)
        setattr(owner, name, dying)
        await fetch(rig, 2)

asyncio.run(main())
"""
MOMENTS = {
    "before the switch of the link": ("Directories", "switch", "before", 1),
    "after the switch of the link": ("Directories", "switch", "after", 1),
    "before the record": ("State", "put_model", "before", 1),
    "after the record": ("State", "put_model", "after", 2),
    "before the records go": ("State", "drop_model", "before", 2),
    "after the records went": ("State", "drop_model", "after", 2),
    "before the directory goes": ("Directories", "remove", "before", 2),
    "after the directory went": ("Directories", "remove", "after", 2),
    "before a blob goes": ("Store", "delete", "before", 2),
    "after a blob went": ("Store", "delete", "after", 2),
}


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_process_dies_while_a_ref_moves(tmp_path: Path, moment: str) -> None:
    """The next start has one current snapshot, whole, what policy keeps, and nothing else."""
    owner, name, when, current = MOMENTS[moment]
    segments = f"t{os.getpid()}x{list(MOMENTS).index(moment)}"
    dying = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DYING, str(tmp_path), owner, name, when, segments), cwd=Path(__file__).parents[2]
    )
    assert await dying.wait() == 9
    async with running(tmp_path, Origin({REF: served(2)}), keep=0, owner=segments) as rig:
        await rig.engine._retirer.idle()
        [model] = rig.engine.models()
        assert rig.content(model) == version(current)
        assert os.readlink(current_link(model)) == model.revision
        assert {p.name for p in current_link(model).parent.iterdir()} == {"current", model.revision}
        # What a fetch had brought by then, and had not published, is found by the next one.
        committed = 6 if current == 1 else 4
        await rig.check_idle(blobs=committed, segments=0)
        await rig.fetch()
        await rig.engine._retirer.idle()
        assert rig.origin.starts == {}
        assert rig.content(rig.engine.model(REF)) == version(2)
        await rig.check_idle(blobs=4, segments=0)


async def test_rows_that_an_earlier_version_left(tmp_path: Path) -> None:
    """It recorded old snapshots, and never looked at them again."""
    async with running(tmp_path, Origin(), keep=9) as rig:
        made = [await fetch(rig, n) for n in (1, 2, 3)]
    db = sqlite3.connect(tmp_path / "state.db")
    db.execute("ALTER TABLE models DROP COLUMN turn")
    for table in ("segments", "pins", "uses", "delivered"):
        db.execute(f"DROP TABLE {table}")
    db.execute("PRAGMA user_version = 2")
    db.commit()
    db.close()
    async with running(tmp_path, Origin(), keep=1) as rig:
        await rig.engine._retirer.idle()
        assert revisions(rig) == [(made[2].revision, True), (made[1].revision, False)]
        await rig.check_idle(blobs=6, segments=0)


async def test_a_failed_fetch_leaves_the_current_one(tmp_path: Path) -> None:
    async with running(tmp_path, Origin(), keep=0) as rig:
        old = await fetch(rig, 1)
        moved(rig, 2)

        def refuse(path: str, offset: int, length: int) -> None:
            if path == "only-2":
                raise SourceUnavailable("down")

        rig.origin.on_start = refuse
        with pytest.raises(WeightdError):
            await rig.fetch()
        await rig.engine._retirer.idle()
        assert revisions(rig) == [(old.revision, True)]
        assert rig.content(old) == version(1)
