"""What a worker does with a lease: tensors, files, and what it must not be able to do."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import posix_ipc
import pytest

from tests.support.fake_engine import DEMO, REF, floats, safetensors
from tests.support.serving import Served
from weightd import AsyncClient, Lease, errors
from weightd.client.mapping import Place, map_private, map_shared
from weightd.core.verification import Verification


@pytest.fixture
async def client(daemon: Served) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(daemon.socket) as it:
        yield it


@pytest.fixture
async def lease(client: AsyncClient) -> AsyncIterator[Lease]:
    async with client.acquire(REF) as it:
        yield it


async def acquire(daemon: Served, client: AsyncClient, files: dict[str, bytes]) -> Lease:
    daemon.engine.add("other", files)
    return await client.acquire("other")


def test_what_a_lease_tells(lease: Lease, daemon: Served) -> None:
    assert (lease.ref, lease.revision, lease.format) == (REF, "0123456789abcdef", "safetensors")
    assert lease.path == daemon.engine.directory / REF
    assert (lease.path / "config.json").read_bytes() == DEMO["config.json"]
    assert lease.verification is Verification.SIZE
    assert set(lease) == set(lease.tensors()) == {"a", "layer.weight", "empty"}
    assert "a" in lease
    assert "b" not in lease
    assert repr(lease) == "<Lease demo 0123456789abcdef 3 files, alive>"


def test_files(lease: Lease) -> None:
    assert {path: bytes(f.buffer) for path, f in lease.files.items()} == DEMO
    config = lease.file("config.json")
    assert (config.length, config.verification) == (13, Verification.SIZE)
    with config.open() as f:
        assert f.read(3) == b'{"h'
        assert f.seek(-1, io.SEEK_END) == 12
        assert f.read() == b"}"
        assert f.read() == b""
        with pytest.raises(ValueError, match="negative"):
            f.seek(-1)
    assert lease.file("empty.txt").open().read() == b""
    with pytest.raises(errors.FileNotInModel, match=r"config\.json"):
        lease.file("nope")


def test_the_header_tells_where_a_tensor_is(lease: Lease) -> None:
    info, file = lease.tensors()["a"]
    assert (info.dtype, info.shape, info.length, file.path) == ("F32", (2, 3), 24, "model.safetensors")
    assert bytes(file.buffer[info.offset : info.offset + info.length]) == floats(6)


def test_numpy_views_are_of_the_shared_pages_and_cannot_be_written(lease: Lease) -> None:
    view = lease["a"]
    assert view.dtype == np.float32
    assert np.shares_memory(view, lease["a"])
    assert lease["empty"].shape == (0,)
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.setflags(write=True)
    with pytest.raises(TypeError, match="read-only"):
        lease.file("config.json").buffer[0] = 1


def test_the_segment_cannot_be_opened_for_writing_by_others_nor_mapped_writable(lease: Lease) -> None:
    import mmap

    segment = lease.file("model.safetensors").segment
    shm = posix_ipc.SharedMemory(segment, read_only=True)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(shm.fd, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(OSError):
            os.ftruncate(shm.fd, 0)
    finally:
        shm.close_fd()


def test_a_write_to_a_torch_tensor_reaches_nobody(lease: Lease) -> None:
    tensor = lease.torch("a")
    tensor[0, 0] = 99
    assert lease.torch("a")[0, 0] == 99  # this process's own page
    assert lease["a"][0, 0] == 0
    with open(f"/dev/shm{lease.file('model.safetensors').segment}", "rb") as f:  # noqa: PTH123
        assert f.read() == DEMO["model.safetensors"]


def test_state_dict(lease: Lease) -> None:
    state = lease.state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == {"a": (2, 3), "layer.weight": (4,), "empty": (0,)}
    assert state["layer.weight"].tolist() == [10, 11, 12, 13]


def test_views_outlive_the_release_and_new_ones_are_refused(lease: Lease) -> None:
    view, tensor, buffer = lease["a"], lease.torch("a"), lease.file("config.json").buffer
    lease.release()
    assert view.sum() == tensor.sum() == 15
    assert bytes(buffer) == DEMO["config.json"]
    for again in (
        lambda: lease["a"],
        lambda: lease.torch("a"),
        lease.state_dict,
        lambda: lease.file("config.json").buffer,
        lease.file("config.json").open,
    ):
        with pytest.raises(errors.LeaseEnded):
            again()
    assert "released" in repr(lease)


def test_the_map_goes_with_the_last_view(lease: Lease) -> None:
    def mapped() -> bool:
        return lease.file("model.safetensors").segment in Path("/proc/self/maps").read_text()

    view = lease["a"][1:]
    tensor = lease.torch("a")
    lease.release()
    assert mapped()
    del view
    assert mapped()
    del tensor
    assert not mapped()


def test_nothing_is_mapped_before_it_is_asked_for(lease: Lease) -> None:
    assert "/weightd-test" not in Path("/proc/self/maps").read_text()
    assert lease["a"].sum() == 15
    maps = Path("/proc/self/maps").read_text()
    assert lease.file("model.safetensors").segment in maps
    assert lease.file("config.json").segment not in maps


def test_an_unknown_tensor_is_told_its_neighbours(lease: Lease) -> None:
    with pytest.raises(errors.TensorNotFound, match=r"Did you mean 'layer\.weight'"):
        lease["layer.wieght"]
    with pytest.raises(errors.TensorNotFound, match="lists all names"):
        lease.torch("zzzzzzzz")


async def test_shards_are_one_model_and_a_name_in_two_is_refused(daemon: Served, client: AsyncClient) -> None:
    one, two = (safetensors({name: ("F32", [2], floats(2, i))}) for i, name in enumerate("xy"))
    async with await acquire(daemon, client, {"m-1.safetensors": one, "m-2.safetensors": two}) as lease:
        assert {n: t.tolist() for n, t in lease.state_dict().items()} == {"x": [0, 1], "y": [1, 2]}
    async with await acquire(daemon, client, {"m-1.safetensors": one, "m-2.safetensors": one}) as lease:
        with pytest.raises(errors.FormatError, match=r"'x' is in m-1\.safetensors"):
            lease.tensors()


async def test_a_model_without_safetensors_says_so(daemon: Served, client: AsyncClient) -> None:
    async with await acquire(daemon, client, {"weights.bin": b"abc"}) as lease:
        assert lease.state_dict() == {}
        with pytest.raises(errors.TensorNotFound, match=r"lease\.files"):
            lease["a"]


async def test_threads_share_a_lease(lease: Lease) -> None:
    sums: list[float] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        sums.extend(float(lease["a"].sum()) for _ in range(50))

    await asyncio.gather(*(asyncio.to_thread(work) for _ in range(4)))
    assert sums == [15.0] * 200


async def test_a_segment_that_is_gone_or_of_another_size(daemon: Served, client: AsyncClient) -> None:
    async with await acquire(daemon, client, {"w.bin": b"0123456789"}) as lease:
        name = lease.file("w.bin").segment
        with pytest.raises(errors.SizeMismatch, match="10 bytes"):
            map_shared(Place(name), 11)
        with pytest.raises(errors.SizeMismatch):
            map_shared(Place(name), 9)
        assert len(map_shared(Place(name), 10)) == 10
    with pytest.raises(errors.LeaseEnded, match="gone"):
        map_shared(Place("/weightd-test-no-such-segment"), 1)


def test_a_file_within_a_segment_and_a_private_map(lease: Lease) -> None:
    page = os.sysconf("SC_PAGESIZE")
    name = f"/weightd-test-{os.getpid()}-offset"
    shm = posix_ipc.SharedMemory(name, posix_ipc.O_CREX)
    try:
        with os.fdopen(shm.fd, "wb") as f:
            f.write(b"x" * (page + 5) + b"hello" + b"y" * 100)
        for offset, length, expected in ((page + 5, 5, b"hello"), (page, 6, b"xxxxxh"), (3, 2, b"xx")):
            assert bytes(map_shared(Place(name, offset), length)) == expected
        private = map_private(Place(name, page + 5), 5)
        private[0:1] = b"J"
        assert bytes(private) == b"Jello"
        assert bytes(map_shared(Place(name, page + 5), 5)) == b"hello"
    finally:
        posix_ipc.unlink_shared_memory(name)


def test_an_empty_file_needs_no_segment() -> None:
    assert map_shared(Place(""), 0).readonly
    assert not map_private(Place(""), 0).readonly
