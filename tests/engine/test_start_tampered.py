"""What somebody did to one model's files keeps no other from being served by the next start."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.engine.rig import PART, REF, Origin, Rig, Served, pattern, running, sha256
from tests.support.immutable import immutable
from weightd.core.errors import PathInTheWay
from weightd.engine.api import Tier
from weightd.storage.segments import ROOT

OTHER = "http://origin/other/"
DATA, OTHER_DATA = pattern(2 * PART, "one"), pattern(2 * PART, "other")
OWNER = "t" + secrets.token_hex(6)
KEEP = {"keep_segments": True}

Tamper = Callable[[Path], Path]
"""Of the directory of a snapshot; returns what is to be named."""


def two() -> Origin:
    return Origin({REF: {"model.bin": Served(DATA)}, OTHER: {"other.bin": Served(OTHER_DATA)}})


def in_place_of_a_link(directory: Path) -> Path:
    link = directory / "model.bin"
    link.unlink()
    link.mkdir()
    return link


def in_place_of_current(directory: Path) -> Path:
    current = directory.parent / "current"
    current.unlink()
    current.mkdir()
    (current / "x").touch()
    return current


def in_place_of_the_directory(directory: Path) -> Path:
    directory.rename(directory.with_name("moved"))
    directory.symlink_to("moved")
    return directory


def in_place_of_the_key(directory: Path) -> Path:
    directory.parent.rename(directory.parent.with_name("moved"))
    directory.parent.touch()
    return directory.parent


async def serves(rig: Rig, ref: str, content: dict[str, bytes]) -> None:
    lease = await rig.acquire(ref)
    assert rig.content(lease.model) == content
    lease.release()


@pytest.mark.parametrize("tier", list(Tier))
@pytest.mark.parametrize(
    "tamper", [in_place_of_a_link, in_place_of_current, in_place_of_the_directory, in_place_of_the_key]
)
async def test_a_model_directory(tmp_path: Path, tamper: Tamper, tier: Tier, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path, two(), owner=OWNER, residency=KEEP) as rig:
        model, _ = await rig.fetch(REF, tier), await rig.fetch(OTHER, tier)
    wrong = tamper(Path(model.directory))
    async with running(tmp_path, Origin(), owner=OWNER) as rig:
        assert f"{REF} is not shown in its directory: {wrong}" in caplog.text
        assert {m.ref for m in rig.engine.models()} == {REF, OTHER}
        await serves(rig, OTHER, {"other.bin": OTHER_DATA})
        if tamper is not in_place_of_current:
            with pytest.raises(PathInTheWay, match=str(wrong)):
                await rig.acquire(REF)
        if wrong.is_dir() and not wrong.is_symlink():
            shutil.rmtree(wrong)
        else:
            wrong.unlink()
        await serves(rig, REF, {"model.bin": DATA})
        await rig.check_idle(blobs=2, segments=2)


@contextmanager
def leftover(root: Path) -> Iterator[Path]:
    """Half built, and somebody put a file there that cannot be removed."""
    place = root / "models" / "key" / ".weightd-left"
    place.mkdir(parents=True)
    (place / "x").touch()
    with immutable(place / "x"):
        yield place


@contextmanager
def unknown(root: Path) -> Iterator[Path]:
    """Of no snapshot, and cannot be removed."""
    place = root / "models" / "key" / "revision"
    place.mkdir(parents=True)
    with immutable(place.parent):
        yield place


@contextmanager
def unrecorded(root: Path) -> Iterator[Path]:
    """A blob without a record that cannot be removed."""
    place = root / "blobs" / "sha256" / "ab" / ("ab" * 32)
    place.parent.mkdir()
    place.touch()
    with immutable(place):
        yield place


@contextmanager
def directory(root: Path) -> Iterator[Path]:
    """Where a blob might be."""
    place = root / "blobs" / "sha256" / "ab" / ("ab" * 32)
    place.mkdir(parents=True)
    yield place


@contextmanager
def stray(root: Path) -> Iterator[Path]:
    """Beside the ingests."""
    place = root / "ingest" / "x"
    place.touch()
    with immutable(place):
        yield place


@pytest.mark.parametrize("left", [stray, leftover, unknown, unrecorded, directory])
async def test_what_is_left_and_cannot_be_removed(
    tmp_path: Path, left: Callable[[Path], AbstractContextManager[Path]], caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, two()) as rig:
        await rig.fetch(REF)
    with left(tmp_path) as place:
        async with running(tmp_path, Origin(), owner=OWNER) as rig:
            assert f"{place} is left over, and cannot be removed" in caplog.text
            caplog.clear()
            await serves(rig, REF, {"model.bin": DATA})


async def test_a_segment_that_cannot_be_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = ROOT / f"weightd-{OWNER}-left-x"
    place.touch()
    try:
        with immutable(place):
            async with running(tmp_path, two(), owner=OWNER, residency=KEEP) as rig:
                assert f"{place} is left over, and cannot be removed" in caplog.text
                assert rig.content(await rig.fetch(REF)) == {"model.bin": DATA}
    finally:
        place.unlink()


async def test_an_old_snapshot_that_cannot_be_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    origin = two()
    old = {path: pattern(PART, path) for path in ("lost", "stays")}
    origin.models[REF] = {path: Served(data) for path, data in old.items()}
    async with running(tmp_path, origin) as rig:
        await rig.fetch(REF)
        origin.models[REF] = {"model.bin": Served(DATA)}
        await rig.fetch(REF)
        lost, stays = (rig.blobs.path(sha256(data)) for data in old.values())
    lost.unlink()
    with immutable(stays):
        async with running(tmp_path, Origin()) as rig:
            assert f"{REF} is not removed as a whole: " in caplog.text
            await serves(rig, REF, {"model.bin": DATA})
