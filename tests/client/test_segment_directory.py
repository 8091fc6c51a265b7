"""Segments that are files of a directory, also where a container sees it elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.client.twins import TWINS
from tests.support.fake_engine import DEMO, REF, FakeEngine
from tests.support.serving import DaemonProcess, Served
from weightd import AsyncClient, Client, Lease, errors
from weightd.client.mapping import Place, map_private, map_shared
from weightd.rpc.server import make_server

SEGMENT = "/weightd-test-file"


@pytest.fixture
async def served(short: Path) -> AsyncIterator[Served]:
    """Its segments are files of `<directory>/segments`."""
    directory = short / "segments"
    directory.mkdir()
    engine = FakeEngine(short / "models")
    engine.segment_directory = str(directory)
    engine.add(REF, DEMO)
    server = await make_server(engine, short / "s")
    yield Served(engine, server, short / "s")
    await server.stop()


def whole(lease: Lease) -> dict[str, bytes]:
    return {path: bytes(f.buffer) for path, f in lease.files.items()}


def rights(path: str) -> set[str]:
    """Of the maps of a file."""
    return {line.split()[1] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(path)}


async def test_they_are_mapped_from_where_the_daemon_says(served: Served, short: Path) -> None:
    for twin in TWINS:
        client = twin(served.socket)
        lease: Lease = await client.acquire(REF)
        assert whole(lease) == DEMO
        assert lease.torch("a").sum() == 15
        segment = lease.file("model.safetensors").segment
        assert segment[1:] not in os.listdir("/dev/shm")
        assert rights(f"{short}/segments{segment}") == {"r--s", "rw-p"}, "shared ones cannot be written"
        lease.release()
        await client.close()


async def test_a_container_says_where_it_is(served: Served, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = short / "mounted"
    (short / "segments").rename(elsewhere)
    async with AsyncClient(served.socket) as client, client.acquire(REF) as lease:
        with pytest.raises(errors.ConfigError, match="WEIGHTD_SHM") as caught:
            whole(lease)
        assert caught.value.file == str(short / "segments")
    for options in ({"shm": elsewhere}, {"shm": str(elsewhere)}):
        async with AsyncClient(served.socket, **options) as client, client.acquire(REF) as lease:
            assert whole(lease) == DEMO
    monkeypatch.setenv("WEIGHTD_SHM", str(elsewhere))
    for twin in TWINS:
        client = twin(served.socket)
        lease = await client.acquire(REF)
        assert whole(lease) == DEMO
        lease.release()
        await client.close()
    monkeypatch.setenv("WEIGHTD_SHM", str(short))
    async with AsyncClient(served.socket) as client, client.acquire(REF) as lease:
        with pytest.raises(errors.LeaseEnded, match=r"elsewhere.*WEIGHTD_SHM"):
            whole(lease)


async def test_posix_shared_memory_that_is_mounted_elsewhere(daemon: Served, short: Path) -> None:
    """As a container with a /dev/shm of its own sees the host's."""
    (short / "host-shm").symlink_to("/dev/shm")
    async with AsyncClient(daemon.socket, shm=short / "host-shm") as client, client.acquire(REF) as lease:
        assert whole(lease) == DEMO
    async with AsyncClient(daemon.socket, shm="") as client, client.acquire(REF) as lease:
        assert whole(lease) == DEMO


def test_a_relative_directory_stays_when_the_process_moves(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(short)
    client = Client("s", shm="segments")
    assert client._shm == str(short / "segments")


@pytest.fixture
def segment(short: Path) -> Path:
    path = short / SEGMENT[1:]
    path.write_bytes(b"0123456789")
    return path


def test_what_is_no_segment_is_refused(short: Path, segment: Path) -> None:
    place = Place(SEGMENT, 0, str(short))
    assert bytes(map_shared(place, 10)) == bytes(map_private(place, 10)) == b"0123456789"
    for length in (9, 11):
        with pytest.raises(errors.SizeMismatch):
            map_shared(place, length)
    assert segment.stat().st_size == 10, "never resized"
    segment.rename(short / "real")
    with pytest.raises(errors.LeaseEnded, match="gone"):
        map_shared(place, 10)
    segment.symlink_to(short / "real")
    with pytest.raises(errors.PathInTheWay, match="symlink"):
        map_shared(place, 10)
    for name in ("/../x", "/a/b", "//x", "/", "", "/.", "/.."):
        with pytest.raises(errors.PathInTheWay, match="not the name"):
            map_shared(Place(name, 0, str(short)), 10)
    assert map_shared(Place("", 0, str(short)), 0).nbytes == 0


def test_a_directory_that_is_a_file(short: Path, segment: Path) -> None:
    with pytest.raises(errors.ConfigError):
        map_shared(Place(SEGMENT, 0, str(segment)), 10)


def test_what_is_mapped_cannot_be_written_through_its_map(short: Path, segment: Path) -> None:
    with pytest.raises(TypeError, match="read-only"):
        map_shared(Place(SEGMENT, 0, str(short)), 10)[0] = 1
    map_private(Place(SEGMENT, 0, str(short)), 10)[0] = 1
    assert segment.read_bytes() == b"0123456789"


def test_maps_keep_no_descriptor_open_for_writing(short: Path, segment: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    views = [map_shared(Place(SEGMENT, 0, str(short)), 10) for _ in range(20)]
    flags = [
        Path(f"/proc/self/fdinfo/{fd}").read_text()
        for fd in os.listdir("/proc/self/fd")
        if os.path.realpath(f"/proc/self/fd/{fd}") == str(segment.resolve())
    ]
    for text in flags:  # Python before 3.13 keeps one for each map
        (value,) = (int(line.split()[1], 8) for line in text.splitlines() if line.startswith("flags:"))
        assert value & os.O_ACCMODE == os.O_RDONLY
        assert value & os.O_CLOEXEC
    del views
    assert len(os.listdir("/proc/self/fd")) == before


DENIED = """
import os, sys
from weightd import errors
from weightd.client.mapping import Place, map_shared
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    map_shared(Place(sys.argv[2], 0, sys.argv[1]), 10)
except errors.AccessDenied as e:
    print(e)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_without_rights(short: Path, segment: Path) -> None:
    segment.chmod(0o440)
    done = subprocess.run([sys.executable, "-c", DENIED, short, SEGMENT], capture_output=True, text=True, check=True)
    assert "may not read" in done.stdout
    assert "group" in done.stdout


async def test_a_lease_in_a_directory_is_regained(short: Path) -> None:
    directory = Path("/dev/shm") / f"weightd-test-{os.getpid()}-directory"
    directory.mkdir()
    try:
        process = DaemonProcess(short, "--quiet", "--segments", str(directory))
        try:
            with Client(process.socket) as client:
                lease = client.acquire(REF)
                view = lease["a"]
                process.restart("--quiet", "--segments", str(directory), "--adopt")
                assert whole(lease) == DEMO
                assert view.sum() == 15
        finally:
            process.close()
    finally:
        shutil.rmtree(directory)
