"""Page tables ahead of time: what is mapped afterwards is asked of the kernel."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.client.twins import NAMES, TWINS
from tests.support.fake_engine import REF, safetensors
from tests.support.serving import Served
from weightd import AsyncClient, Lease, errors
from weightd.client import prefault as module
from weightd.client.mapping import Place, map_private, map_shared
from weightd.client.prefault import prefault

SIZE = 3 << 20
BIG = "big"
PAGE = mmap.PAGESIZE


@pytest.fixture
async def lease(daemon: Served) -> AsyncIterator[Lease]:
    """Of two files, one of 3 MiB, and an empty one."""
    daemon.engine.add(
        BIG,
        {
            "w.safetensors": safetensors({"w": ("U8", [SIZE], bytes(SIZE))}),
            "other.bin": b"x" * (PAGE + 1),
            "empty.txt": b"",
        },
    )
    async with AsyncClient(daemon.socket) as client, client.acquire(BIG) as it:
        yield it


def counted(segment: str, field: str) -> int:
    """Bytes of it in this process's maps: Rss in its page tables, Anonymous its own."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(segment)
        elif inside and line.startswith(f"{field}:"):
            found += int(line.split()[1]) * 1024
    return found


def resident(segment: str) -> int:
    return counted(segment, "Rss")


def anonymous(segment: str) -> int:
    return counted(segment, "Anonymous")


def rounded(size: int) -> int:
    return -(-size // PAGE) * PAGE


def test_all_pages_are_mapped_and_counted(lease: Lease) -> None:
    sizes = {path: f.length for path, f in lease.files.items()}
    big = lease.file("w.safetensors")
    _ = big.buffer
    assert resident(big.segment) == 0
    took = lease.prefault()
    assert lease.prefaulted is took
    assert took.bytes == sum(sizes.values())
    assert took.pages == sum(rounded(size) // PAGE for size in sizes.values())
    assert took.seconds > 0
    for path, size in sizes.items():
        if size:
            assert resident(lease.file(path).segment) == rounded(size)
    assert lease.prefault().bytes == took.bytes, "again costs little, and changes nothing"
    assert lease["w"].sum() == 0


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_some_files_and_the_private_map(lease: Lease, threads: int) -> None:
    big, other = lease.file("w.safetensors"), lease.file("other.bin")
    tensor = lease.torch("w")
    shared = resident(big.segment)
    took = lease.prefault(["w.safetensors"], threads=threads, private=True)
    assert (took.bytes, took.pages) == (big.length, rounded(big.length) // PAGE)
    assert resident(big.segment) == shared + rounded(big.length)
    assert resident(other.segment) == 0
    assert tensor.sum() == 0
    tensor[0] = 7
    assert lease["w"][0] == 0


def test_a_private_map_stays_shared_until_it_is_written(lease: Lease) -> None:
    big = lease.file("w.safetensors")
    _ = big.private
    before = anonymous(big.segment)
    lease.prefault(["w.safetensors"], private=True)
    assert anonymous(big.segment) == before == 0
    big.private[0] = 1
    assert anonymous(big.segment) == PAGE


def test_a_kernel_without_the_call(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(module, "advise", unknown)
    took = lease.prefault()
    for f in lease.files.values():
        if f.length:
            assert resident(f.segment) == rounded(f.length)
    assert took.bytes == sum(f.length for f in lease.files.values())


@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE, PAGE + 1, (1 << 20) + 1, (1 << 20) + PAGE])
def test_touching_reaches_every_page(tmp_path: Path, length: int) -> None:
    path = shm_file("touch", length)
    try:
        view = map_shared(Place(path.name, 0, "/dev/shm"), length)
        module.touch(view)
        assert resident(path.name) == rounded(length)
    finally:
        path.unlink()


def shm_file(name: str, length: int) -> Path:
    path = Path(f"/dev/shm/weightd-test-{os.getpid()}-{name}")
    path.write_bytes(b"x" * length)
    return path


@pytest.mark.parametrize("how", [map_shared, map_private])
def test_a_file_that_begins_within_a_page(how: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 4 * PAGE)
    path = shm_file("offset", 20 * PAGE)
    try:
        view = how(Place(path.name, PAGE + 5, "/dev/shm"), 10 * PAGE)
        took = prefault([view], 3)
        assert (took.bytes, took.pages) == (10 * PAGE, 11)
        assert resident(path.name) == 11 * PAGE
        assert bytes(view) == b"x" * (10 * PAGE)
    finally:
        path.unlink()


@pytest.mark.parametrize("threads", [1, 4])
def test_pages_that_are_gone_are_an_error_and_no_signal(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 4 * PAGE)
    path = shm_file("short", 64 * PAGE)
    try:
        view = map_shared(Place(path.name, 0, "/dev/shm"), 64 * PAGE)
        os.truncate(path, 8 * PAGE)
        with pytest.raises(errors.SizeMismatch, match="lost pages"):
            prefault([view], threads)
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENOMEM, errors.Exhausted), (133, errors.Corruption), (errno.EFAULT, errors.SizeMismatch)],
)
def test_errors_of_the_kernel_are_typed(
    lease: Lease, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[errors.WeightdError]
) -> None:
    def fails(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module, "advise", fails)
    with pytest.raises(kind):
        lease.prefault()


def test_no_thread_no_file_no_lease(lease: Lease) -> None:
    with pytest.raises(errors.InvalidArgument):
        lease.prefault(threads=0)
    with pytest.raises(errors.FileNotInModel):
        lease.prefault(["nope"])
    nothing = lease.prefault([])
    assert (nothing.bytes, nothing.pages) == (0, 0)
    lease.release()
    with pytest.raises(errors.LeaseEnded):
        lease.prefault()


def test_views_are_released(lease: Lease) -> None:
    """Nothing of it holds a map."""
    big = lease.file("w.safetensors")
    lease.prefault()
    assert big.segment in Path("/proc/self/maps").read_text()
    segment = big.segment
    lease.release()
    assert segment not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("twin", TWINS, ids=NAMES)
async def test_at_the_acquire(daemon: Served, twin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client = twin(daemon.socket)
    lease: Lease = await client.acquire(REF, prefault=True)
    assert lease.prefaulted is not None
    assert lease.prefaulted.bytes == sum(f.length for f in lease.files.values())
    plain: Lease = await client.acquire(REF)
    assert plain.prefaulted is None
    plain.release()
    await daemon.engine.wait_leases(1)

    def fails(*_: int) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(module, "advise", fails)
    with pytest.raises(errors.Exhausted):
        await client.acquire(REF, prefault=True)
    await daemon.engine.wait_leases(1)
    lease.release()
    await asyncio.wait_for(client.close(), 20)
