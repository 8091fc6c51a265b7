"""Huge pages on real mounts of each kind, as they were got, and as they are found again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tmpfs import mounted
from weightd.storage import pages
from weightd.storage.pages import HUGE_PAGE
from weightd.storage.segment_files import DirectorySegmentStore
from weightd.storage.tmpfs import TmpfsSegment

pytestmark = pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").exists(), reason="the kernel has no huge pages"
)
GIVES = ("advise", "within_size", "always")
"""Modes of a mount that has huge pages for us."""


@pytest.fixture(params=["never", *GIVES])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(tmp_path: Path, mode: str) -> Iterator[DirectorySegmentStore]:
    with mounted(tmp_path / "shm", f"size=64m,mode=0700,huge={mode}"):
        store = DirectorySegmentStore(tmp_path / "shm", "t")
        yield store
        store.close()


def filled(store: DirectorySegmentStore, size: int) -> TmpfsSegment:
    """Sealed. Skips the test where the kernel has no huge page left for it."""
    before = fallbacks()
    segment = store.create("a", size)
    for offset in range(0, size, HUGE_PAGE):
        length = min(HUGE_PAGE, size - offset)
        segment.prepare(offset, length)
        with segment.view[offset : offset + length] as piece:
            piece[:] = b"h" * length
            segment.let_go(piece)
    segment.seal()
    if segment.huge_bytes < size // HUGE_PAGE * HUGE_PAGE and fallbacks() > before:
        pytest.skip("this host's memory is too fragmented for huge pages")
    return segment


def fallbacks() -> int:
    """How often the kernel wanted a huge page for a file and had none."""
    found = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(found["thp_file_fallback"])


@pytest.mark.parametrize("size", [4096, HUGE_PAGE, 3 << 20, (8 << 20) + 5])
def test_what_was_got_is_told_and_found_again(store: DirectorySegmentStore, mode: str, size: int) -> None:
    whole = size // HUGE_PAGE * HUGE_PAGE
    segment = filled(store, size)
    assert segment.huge_bytes == store.huge_bytes() == (whole if mode in GIVES else 0)
    later = DirectorySegmentStore(store._place.root, "t")
    adopted = later.adopt(segment.name, size, segment.identity)
    assert adopted is not None
    assert later.huge_bytes() == adopted.huge_bytes == segment.huge_bytes
    with adopted.opened() as view:
        assert view.tobytes() == b"h" * size
    assert adopted.mapped() is False
    assert adopted.retire() is None
    assert later.huge_bytes() == 0
    later.close()


@pytest.mark.parametrize("mode", ["never"])
def test_small_pages_of_before_a_remount_are_counted_as_that(store: DirectorySegmentStore) -> None:
    segment = filled(store, 8 << 20)
    subprocess.run(["mount", "-o", "remount,huge=always", store.directory], check=True)
    adopted = store.adopt(segment.name, segment.size, segment.identity)
    assert adopted is not None
    assert adopted.huge_bytes == 0
    assert filled(store, 8 << 20).huge_bytes == 8 << 20


def test_a_file_of_another_is_not_counted(store: DirectorySegmentStore) -> None:
    """By identity, not by name: a path that ends as another one does."""
    segment = filled(store, 4 << 20)
    with segment.opened() as view:
        assert view[0] == ord("h")
        assert pages.pmd_mapped(segment.identity.device, segment.identity.inode + 1) == 0
        assert pages.pmd_mapped(*segment.identity) in (0, HUGE_PAGE)


def test_asking_leaves_no_map_and_no_descriptor(store: DirectorySegmentStore) -> None:
    segment = filled(store, 4 << 20)
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        assert store.adopt(segment.name, segment.size, segment.identity) is not None
    assert os.listdir("/proc/self/fd") == before
    assert segment.path.name not in Path("/proc/self/maps").read_text()
