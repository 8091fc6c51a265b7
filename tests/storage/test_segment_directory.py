"""Which directories can hold segments, and what is said of those that cannot."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tmpfs import mounted
from weightd.core.errors import ConfigError, PathInTheWay, WeightdError
from weightd.storage.segment_files import DirectorySegmentStore


@pytest.fixture
def shm(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "shm", "size=8m,mode=0750"):
        yield tmp_path / "shm"


def leading_below(directory: Path) -> list[str]:
    """What descriptors of this process lead to, there: those of other tests may end at any moment."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [path for path in found if path.startswith(str(directory))]


def refused(directory: Path, error: type[WeightdError], match: str) -> str:
    """The remedy. No descriptor stays."""
    with pytest.raises(error, match=match) as e:
        DirectorySegmentStore(directory, "t")
    assert not leading_below(directory)
    return e.value.remedy


def test_a_directory_below_the_mount(shm: Path) -> None:
    below = shm / "below"
    below.mkdir(0o700)
    store = DirectorySegmentStore(below, "t")
    store.create("a", 5).unlink()
    store.close()
    store.close()
    assert not leading_below(shm)


def test_a_mount_behind_a_symlink_of_its_parent(shm: Path, tmp_path: Path) -> None:
    """As /var/run is; huge pages are asked of the mount itself."""
    (tmp_path / "run").symlink_to(tmp_path)
    store = DirectorySegmentStore(tmp_path / "run" / "shm", "t")
    assert store.total() == 8 << 20
    subprocess.run(["mount", "-o", "remount,huge=advise", shm], check=True)
    assert store._place.huge == "advise"
    store.close()


def test_its_descriptor_stays_for_as_long_as_a_segment_needs_it(shm: Path) -> None:
    segment = DirectorySegmentStore(shm, "t").create("a", 5)
    gc.collect()
    assert leading_below(shm)
    segment.seal()
    segment.unlink()
    assert list(shm.iterdir()) == []
    del segment
    gc.collect()
    assert not leading_below(shm)


def test_a_closed_store_finds_its_segments_by_their_path(shm: Path) -> None:
    store = DirectorySegmentStore(shm, "t")
    segment = store.create("a", 5)
    store.close()
    segment.seal()
    segment.unlink()
    assert list(shm.iterdir()) == []


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755, 0o1777, 0o1770])
def test_modes_that_keep_others_from_removing(shm: Path, mode: int) -> None:
    shm.chmod(mode)
    DirectorySegmentStore(shm, "t").close()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o757, 0o2770])
def test_modes_that_let_others_remove(shm: Path, mode: int) -> None:
    shm.chmod(mode)
    assert refused(shm, ConfigError, f"has mode {mode:04o}: others could") == f"chmod 0750 {shm}"


def test_a_setgid_directory_gives_no_group(shm: Path) -> None:
    """Segments have the group that they are published to, and are adopted with it."""
    os.chown(shm, -1, 65534)
    shm.chmod(0o2750)
    store = DirectorySegmentStore(shm, "t")
    segment = store.create("a", 5)
    segment.prepare(0, 5)
    segment.seal()
    assert segment.path.stat().st_gid == os.getegid()
    assert store.adopt(segment.name, 5, segment.identity) is not None
    store.close()


def test_what_is_not_there(tmp_path: Path) -> None:
    remedy = refused(tmp_path / "none", ConfigError, "there is no directory")
    assert f"mount -t tmpfs -o size=80%,huge=within_size,mode=0750,uid={os.geteuid()}" in remedy


def test_what_is_on_a_disk(tmp_path: Path) -> None:
    refused(tmp_path, ConfigError, "not on a tmpfs")


def test_what_is_relative(tmp_path: Path) -> None:
    refused(Path("shm"), ConfigError, "is not absolute")


def test_a_symlink_or_a_file(shm: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(shm)
    (shm / "file").touch()
    for path in (tmp_path / "link", shm / "file"):
        refused(path, PathInTheWay, "is not a directory")


def test_what_belongs_to_another_user(shm: Path) -> None:
    os.chown(shm, 65534, -1)
    assert refused(shm, ConfigError, "belongs to user 65534").startswith("Make it weightd's: chown 0 ")


def test_what_is_mounted_read_only(shm: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", shm], check=True)
    refused(shm, ConfigError, "may not be written")


OTHER = """
import os, sys
from pathlib import Path
from weightd.core.errors import WeightdError
from weightd.storage.segment_files import DirectorySegmentStore
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    DirectorySegmentStore(Path(sys.argv[1]), "t")
except WeightdError as e:
    print(type(e).__name__, e.message)
"""


@pytest.mark.parametrize(
    ("owner", "mode", "error"),
    [
        (0, 0o755, "ConfigError"),
        (0, 0o700, "AccessDenied"),
        (65534, 0o500, "ConfigError"),
        (65534, 0o300, "AccessDenied"),
    ],
)
def test_what_this_user_may_not_use(shm: Path, owner: int, mode: int, error: str) -> None:
    shm.chmod(mode)
    os.chown(shm, owner, -1)
    for parent in shm.parents:
        if parent.stat().st_mode & 0o055 != 0o055 and "pytest" in str(parent):
            parent.chmod(0o755)
    run = subprocess.run([sys.executable, "-c", OTHER, shm], capture_output=True, text=True, timeout=60)
    assert run.stdout.startswith(error), run
