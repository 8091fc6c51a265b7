"""fetch_to: verified files under their own names, all or none, and nothing else."""

# ruff: noqa: ASYNC240 - a test may block its own loop

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.engine.rig import MIB, PART, REF, SECONDS, Origin, Served, moving_threads, pattern, safetensors, sha256
from weightd.core.errors import (
    DigestMismatch,
    FormatError,
    InvalidArgument,
    PathInTheWay,
    SourceNotFound,
    SourceUnavailable,
)
from weightd.core.progress import Phase, Progress
from weightd.core.verification import Verification
from weightd.engine.export import ExportedFile, fetch_to
from weightd.engine.transfer import TransferOptions

DATA = pattern(9 * PART + 1)
FILES = {
    "config.json": b"{}",
    "sub/model.safetensors": safetensors(5 * PART),
    "big.bin": DATA,
    "copy.bin": DATA,
    "empty": b"",
}
HERE = str(Path(__file__).parents[2])
OPTIONS = TransferOptions(part_size=PART)


def origin(**changes: Served) -> Origin:
    return Origin({REF: {p: Served(d) for p, d in FILES.items()} | changes})


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if not p.is_dir()}


async def export(source: Origin, directory: Path, **options: object) -> list[ExportedFile]:
    async with asyncio.timeout(SECONDS):
        return await fetch_to(REF, directory, sources=source, **({"options": OPTIONS} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("ranges", [True, False])
async def test_leaves_the_files_and_says_how_far_they_are_verified(tmp_path: Path, ranges: bool) -> None:
    out = tmp_path / "a" / "out"
    files = {p: Served(d, sha256(d) if p == "big.bin" else None, ranges=ranges) for p, d in FILES.items()}
    progress: list[Progress] = []
    result = await export(Origin({REF: files}), out, on_progress=progress.append)
    assert tree(out) == FILES
    assert {(f.path, f.size, f.digest) for f in result} == {(p, len(d), sha256(d)) for p, d in FILES.items()}
    assert {f.path for f in result if f.verification is Verification.SHA256} == {"big.bin"}
    assert progress[0].phase is Phase.RESOLVING
    assert progress[-1].done == progress[-1].total == sum(map(len, FILES.values()))
    assert moving_threads() == []


async def test_replaces_what_was_there_and_touches_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"older, and longer")
    (tmp_path / "mine.txt").write_bytes(b"mine")
    await export(origin(), tmp_path)
    await export(origin(), tmp_path)
    assert tree(tmp_path) == FILES | {"mine.txt": b"mine"}


@pytest.mark.parametrize(
    ("path", "served", "error"),
    [
        ("big.bin", Served(DATA, sha256(b"other")), DigestMismatch),
        ("empty", Served(b"", sha256(b"other")), DigestMismatch),
        ("x.safetensors", Served(safetensors(3 * PART)[:-1]), FormatError),
        ("empty.safetensors", Served(b""), FormatError),
    ],
)
async def test_all_or_nothing(tmp_path: Path, path: str, served: Served, error: type[Exception]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_bytes(b"mine")
    with pytest.raises(error) as caught:
        await export(origin(**{path: served}), tmp_path / "out")
    assert caught.value.file == path  # type: ignore[attr-defined]
    assert tree(tmp_path) == {"out/config.json": b"mine"}
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "config.json"]
    assert moving_threads() == []


async def test_the_origin_fails(tmp_path: Path) -> None:
    source = origin()

    def down(path: str, offset: int, length: int) -> None:
        if path == "copy.bin" and offset >= 5 * PART:
            raise SourceUnavailable("down")

    source.on_read = down
    out = tmp_path / "x" / "out"
    with pytest.raises(SourceUnavailable, match="goes on from there"):
        await export(source, out, options=TransferOptions(part_size=PART, attempts=1, receivers=1))
    assert [p.name[:9] for p in out.iterdir()] == [".weightd-"]
    source.on_read = lambda path, offset, length: None
    source.starts.clear()
    await export(source, out)
    assert tree(out) == FILES
    assert ("copy.bin", 4 * PART, PART) not in source.starts
    assert ("copy.bin", 5 * PART, PART) in source.starts
    shutil.rmtree(tmp_path / "x")
    with pytest.raises(SourceNotFound):
        await fetch_to("http://origin/no/", tmp_path / "out", sources=source)
    with pytest.raises(InvalidArgument):
        await export(source, tmp_path / "out", sha256=sha256(b""))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["config.json", "sub", "sub/model.safetensors"])
async def test_a_symlink_in_the_way(tmp_path: Path, place: str) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    (out / place).parent.mkdir(parents=True)
    (out / place).symlink_to(outside)
    source = origin()
    with pytest.raises(PathInTheWay) as caught:
        await export(source, out)
    assert caught.value.ref == REF
    assert source.starts == {}
    assert list(outside.iterdir()) == []
    assert (out / place).is_symlink()


@pytest.mark.parametrize("moment", ["first read", "last read", "start"])
async def test_cancelled(tmp_path: Path, moment: str) -> None:
    source = origin()
    source.hold(lambda path, offset: moment == "first read" or (path == "copy.bin" and offset >= 9 * PART))
    task = asyncio.create_task(export(source, tmp_path / "a" / "out"))
    if moment == "start":
        for _ in range(4):
            await asyncio.sleep(0)
    else:
        await asyncio.to_thread(source.reached.wait, SECONDS)
    task.cancel()
    async with asyncio.timeout(SECONDS):
        await asyncio.wait([task])
    assert task.cancelled()
    assert [p for p in tree(tmp_path) if "/.weightd-" not in p] == []
    if moment == "last read":
        source.release()
        source.starts.clear()
        await export(source, tmp_path / "a" / "out")
        assert tree(tmp_path / "a" / "out") == FILES
        assert source.starts.total() <= 4
    else:
        assert list(tmp_path.iterdir()) == []
    assert moving_threads() == []


@pytest.mark.parametrize("age", [0, 8 * 86400])
async def test_what_was_kept_of_a_version_that_is_no_more(tmp_path: Path, age: int) -> None:
    """It may be another command's, and so stays; after a week it goes."""
    source, new = origin(), pattern(20 * PART, "new")
    source.hold(lambda path, offset: path == "copy.bin" and offset >= 9 * PART)
    task = asyncio.create_task(export(source, tmp_path))
    await asyncio.to_thread(source.reached.wait, SECONDS)
    task.cancel()
    await asyncio.wait([task])
    source.release()
    ledgers = list(tmp_path.glob(".weightd-*/*/ledger"))
    assert ledgers
    for ledger in ledgers:
        os.utime(ledger, (ledger.stat().st_mtime - age,) * 2)
    source.models = {REF: {"model.bin": Served(new)}}
    await export(source, tmp_path)
    assert (tmp_path / "model.bin").read_bytes() == new
    assert len(list(tmp_path.glob(".weightd-*/*/ledger"))) == (0 if age else len(ledgers))


async def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """48 MiB by slabs of 12 x 64 KiB, in a process of its own: its peak is compared with the same without a file."""
    code = (
        "import asyncio, resource, sys; from pathlib import Path; sys.path.insert(0, {here!r})\n"
        "from tests.engine.rig import *; from weightd.engine.export import fetch_to\n"
        "data = bytes(48 * MIB)\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "asyncio.run(fetch_to(REF, Path({out!r}) / '1', sources=one(data[:8 * PART]), options=TransferOptions(PART)))\n"
        "before = peak()\n"
        "asyncio.run(fetch_to(REF, Path({out!r}) / '2', sources=one(data), options=TransferOptions(PART)))\n"
        "print(peak() - before)"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code.format(here=HERE, out=str(tmp_path)), stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    assert int(output) < 16 * MIB


async def test_an_unwritable_directory(tmp_path: Path) -> None:
    """As a user who may not write there."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user, whom file modes stop")
    (tmp_path / "out").mkdir()
    code = (
        "import asyncio, os, sys; from pathlib import Path; sys.path.insert(0, {here!r})\n"
        "from tests.engine.rig import *; from weightd.engine.export import fetch_to\n"
        "from weightd.core.errors import AccessDenied\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "for name in ('out', 'out/below'):\n"
        "  try: asyncio.run(fetch_to(REF, Path({out!r}) / name, sources=one(b'x')))\n"
        "  except AccessDenied as e: print('denied', bool(e.ref), bool(e.remedy))\n"
    )
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_mode & 0o005 != 0o005 and directory.is_relative_to("/tmp"):
            os.chmod(directory, 0o755)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code.format(here=HERE, out=str(tmp_path)),
        stdout=subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert output == b"denied True True\n" * 2
    assert list((tmp_path / "out").iterdir()) == []


async def test_threads_end(tmp_path: Path) -> None:
    before = threading.active_count()
    for i in range(5):
        await export(origin(), tmp_path / str(i))
    assert threading.active_count() <= before + (os.cpu_count() or 1) + 4
    assert moving_threads() == []


def breaking(source: Origin, path: str) -> None:
    """From its sixth part on this file cannot be had."""

    def broken(asked: str, offset: int, length: int) -> None:
        if asked == path and offset >= 5 * PART:
            raise SourceUnavailable("reset by peer")

    source.on_start = broken


async def test_what_is_kept_of_another_version_goes_when_one_is_there(tmp_path: Path) -> None:
    source, options = origin(), TransferOptions(PART, receivers=1, attempts=1)
    breaking(source, "big.bin")
    with pytest.raises(SourceUnavailable):
        await export(source, tmp_path, options=options)
    breaking(source, "")
    source.models[REF]["big.bin"] = Served(pattern(9 * PART + 1, "new"), etag="v2")
    await export(source, tmp_path)
    assert tree(tmp_path) == FILES | {"big.bin": pattern(9 * PART + 1, "new")}


async def test_what_is_kept_of_another_model_stays(tmp_path: Path) -> None:
    other = "http://origin/other/"
    source, options = (
        Origin({other: {"other.bin": Served(DATA)}, REF: {"x": Served(b"x")}}),
        TransferOptions(PART, 1, attempts=1),
    )
    breaking(source, "other.bin")
    with pytest.raises(SourceUnavailable):
        await fetch_to(other, tmp_path, sources=source, options=options)
    breaking(source, "")
    await export(source, tmp_path)
    source.starts.clear()
    await fetch_to(other, tmp_path, sources=source, options=options)
    assert {offset // PART for _, offset, _ in source.starts} == set(range(5, 10))
    assert tree(tmp_path) == {"other.bin": DATA, "x": b"x"}
