"""Verified by the id of the git blob: computed along the front, compared at the end, mended, recorded."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from tests.engine.rig import PART, REF, Origin, Served, one, pattern, running, sha256
from tests.engine.test_crc import BOTH, OPTIONS, PARTS, check, crc
from tests.engine.test_mend import Liar, asked
from weightd.core.digest import git_blob
from weightd.core.errors import CrcMismatch, DigestMismatch, GitIdMismatch
from weightd.core.refs import parse_ref
from weightd.core.verification import Verification
from weightd.engine.api import Tier
from weightd.engine.export import fetch_to

DATA = pattern(PARTS * PART - 7)
OTHER = "http://origin/other/"


def git_id(data: bytes = DATA) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


WRONG = git_id(b"other")


def test_it_is_that_of_git() -> None:
    ended = subprocess.run(["git", "hash-object", "--stdin"], input=DATA, capture_output=True, check=True)
    found = git_blob(len(DATA))
    found.update(DATA)
    assert found.hexdigest() == ended.stdout.decode().strip() == git_id()


@pytest.mark.parametrize("size", [1, PART, PART + 1, len(DATA)])
@pytest.mark.parametrize("ranges", [True, False])
async def test_the_right_id(tmp_path: Path, ranges: bool, size: int) -> None:
    data = DATA[:size]
    async with running(tmp_path, one(data, git_id=git_id(data), ranges=ranges)) as rig:
        model = await rig.fetch(tier=Tier.SHM)
        assert rig.content(model) == {"model.bin": data}
        assert model.files[0].digest == sha256(data)
        await check(rig, Verification.GIT)
        await rig.check_idle(blobs=1, segments=1)
    async with running(tmp_path, Origin()) as rig:
        await check(rig, Verification.GIT)


@BOTH
@pytest.mark.parametrize("ranges", [True, False])
async def test_the_wrong_id(tmp_path: Path, ranges: bool, tier: Tier) -> None:
    async with running(tmp_path, one(DATA, git_id=WRONG, ranges=ranges)) as rig:
        with pytest.raises(GitIdMismatch) as e:
            await rig.fetch(tier=tier)
        assert (e.value.file, e.value.ref) == ("model.bin", REF)
        assert WRONG in e.value.message
        assert git_id() in e.value.message
        assert asked(rig.origin) == (dict.fromkeys(range(PARTS), 2) if ranges else {0: 1})
        await rig.check_idle(blobs=0, segments=0)


async def test_files_without_bytes(tmp_path: Path) -> None:
    empty, wrong = Served(b"", git_id=git_id(b"")), Served(b"", git_id=WRONG)
    async with running(tmp_path, Origin({REF: {"a": empty}, OTHER: {"a": wrong}})) as rig:
        await rig.fetch()
        await check(rig, Verification.GIT)
        with pytest.raises(GitIdMismatch):
            await rig.fetch(OTHER)


@BOTH
async def test_a_part_that_was_damaged_in_transit_is_mended(tmp_path: Path, tier: Tier) -> None:
    """After the source was told to ask its origin itself."""
    liar = Liar({2: 1, 4: 1}, digest=None, git_id=git_id())
    async with running(tmp_path, liar.origin, receivers=1) as rig:
        model = await rig.fetch(tier=tier)
        assert rig.content(model) == {"model.bin": DATA}
        assert rig.origin.distrusted == ["model.bin"]
        await check(rig, Verification.GIT)


async def test_a_sha256_goes_before_it(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA, digest=sha256(DATA), git_id=WRONG)) as rig:
        await rig.fetch()
        await check(rig, Verification.SHA256)
    async with running(tmp_path / "b", one(DATA, digest=sha256(b"other"), git_id=git_id())) as rig:
        with pytest.raises(DigestMismatch):
            await rig.fetch()


async def test_beside_a_crc_both_have_to_be_right(tmp_path: Path) -> None:
    async with running(tmp_path, one(DATA, crc=crc(), git_id=git_id())) as rig:
        await rig.fetch()
        await check(rig, Verification.GIT)
    async with running(tmp_path / "b", one(DATA, crc=crc(b"other"), git_id=git_id())) as rig:
        with pytest.raises(CrcMismatch):
            await rig.fetch()


async def test_what_is_said_of_two_repositories_is_not_put_together(tmp_path: Path) -> None:
    """A SHA-1 can be made to fit two files."""
    served = {"a": Served(DATA, git_id=git_id())}
    async with running(tmp_path, Origin({"hf://org/one": served, "hf://org/two": served})) as rig:
        keys = [(await rig.origin.resolve(parse_ref(r))).files[0].source_key for r in ("hf://org/one", "hf://org/two")]
        assert keys[0] != keys[1]


async def test_exported(tmp_path: Path) -> None:
    good, bad = one(DATA, git_id=git_id()), one(DATA, git_id=WRONG)
    (file,) = await fetch_to(REF, tmp_path / "good", sources=good, options=OPTIONS)
    assert file.verification is Verification.GIT
    assert (tmp_path / "good/model.bin").read_bytes() == DATA
    with pytest.raises(GitIdMismatch):
        await fetch_to(REF, tmp_path / "bad", sources=bad, options=OPTIONS)
    assert bad.distrusted == ["model.bin"]
