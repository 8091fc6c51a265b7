"""Files left in a user's directory: all or none, never through a symlink, nothing behind."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage.suites import IMPOSSIBLE, aligned, pattern
from weightd.core.errors import DiskFull, ManifestError, PathInTheWay
from weightd.storage.exports import ExportDirectory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "a" / "out"


@pytest.fixture
def export(root: Path) -> Iterator[ExportDirectory]:
    export = ExportDirectory(root)
    export.open()
    yield export
    export.close()


def write(export: ExportDirectory, files: dict[str, bytes]) -> dict[str, object]:
    ingests = {}
    for path, data in files.items():
        ingests[path] = export.ingest(path, len(data))
        ingests[path].write(0, aligned(data))
    return ingests


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


FILES = {"config.json": b"{}", "sub/dir/model.safetensors": pattern(70_001), "empty": b""}


def test_appears_under_its_own_names(export: ExportDirectory, root: Path) -> None:
    ingests = write(export, FILES)
    assert [p for p in tree(root) if not p.startswith(".weightd-")] == []
    export.publish(ingests)
    export.close()
    assert tree(root) == FILES
    assert {p.stat().st_mode & 0o777 for p in root.rglob("*") if p.is_file()} == {0o644}


def test_replaces_an_older_file(export: ExportDirectory, root: Path) -> None:
    (root / "config.json").write_bytes(b"old and longer")
    (root / "mine").write_bytes(b"mine")
    export.publish(write(export, FILES))
    export.close()
    assert tree(root) == FILES | {"mine": b"mine"}


def test_nothing_stays_of_what_was_not_published(export: ExportDirectory, root: Path) -> None:
    write(export, FILES)
    export.close()
    export.close()
    assert not root.parent.exists()


def test_directories_that_were_there_stay(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    export = ExportDirectory(tmp_path / "a" / "b" / "c")
    export.open()
    write(export, FILES)
    export.close()
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("place", ["config.json", "sub", "sub/dir", "sub/dir/model.safetensors"])
@pytest.mark.parametrize("kind", ["symlink", "dangling", "other"])
def test_something_in_the_way(export: ExportDirectory, root: Path, tmp_path: Path, place: str, kind: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    if kind == "other":
        directory = place.endswith((".json", ".safetensors"))
        (root / place).mkdir() if directory else (root / place).touch()
    else:
        (root / place).symlink_to(outside if kind == "symlink" else tmp_path / "nowhere")
    with pytest.raises(PathInTheWay):
        write(export, FILES)
    assert list(outside.iterdir()) == []
    assert not (tmp_path / "nowhere").exists()


def test_a_symlink_that_appears_before_publishing_hides_no_file(
    export: ExportDirectory, root: Path, tmp_path: Path
) -> None:
    ingests = write(export, FILES)
    (root / "sub").symlink_to(tmp_path)
    with pytest.raises(PathInTheWay):
        export.publish(ingests)
    for ingest in ingests.values():
        ingest.abort()
    export.close()
    assert tree(root) == {}
    assert not (tmp_path / "dir").exists()


def test_a_name_that_climbs_out(export: ExportDirectory) -> None:
    for name in ("../x", "/etc/passwd", "a/../../x", ".weightd-1/x", ""):
        with pytest.raises(ManifestError):
            export.ingest(name, 1)


def test_no_room(export: ExportDirectory, root: Path) -> None:
    with pytest.raises(DiskFull):
        export.ingest("x", IMPOSSIBLE)
    export.close()
    assert not root.exists()


@pytest.mark.parametrize("kind", ["file", "dangling", "below a file"])
def test_no_directory(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "x"
    if kind == "dangling":
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.touch()
    export = ExportDirectory(place / "y" if kind == "below a file" else place)
    with pytest.raises(PathInTheWay):
        export.open()
    export.close()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


BIG = pattern(3 * 4096)
ABANDON = """
import os, sys
from pathlib import Path
from tests.storage.suites import aligned, pattern
from weightd.storage.exports import ExportDirectory
export = ExportDirectory(Path(sys.argv[1]))
export.open()
ingest = export.ingest("model.bin", 3 * 4096, ["source:1"], 4096)
ingest.write(0, aligned(pattern(4096)))
ingest.record({0: b"0" * 16})
print("ready", flush=True)
sys.stdin.read()
os._exit(1)
"""


def resumed(root: Path) -> dict[int, bytes]:
    export = ExportDirectory(root)
    export.open()
    try:
        return dict(export.ingest("model.bin", len(BIG), ["source:1"], 4096).held)
    finally:
        export.close()


def test_what_was_kept_is_resumed_by_the_next_one(export: ExportDirectory, root: Path) -> None:
    ingest = export.ingest("model.bin", len(BIG), ["source:1"], 4096)
    ingest.record({0: b"0" * 16})
    assert ingest.keep()
    assert export.close(keep=True)
    assert resumed(root) == {0: b"0" * 16}
    assert not root.exists() or list(root.iterdir()) == []


def test_nothing_is_kept_where_nothing_can_be_resumed(export: ExportDirectory, root: Path) -> None:
    assert not export.ingest("model.bin", len(BIG), [], 4096).keep()
    assert not export.close(keep=True)
    assert not root.exists()


def test_what_a_dead_process_left_is_taken_over_and_a_live_ones_not(root: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ABANDON, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert resumed(root) == {}
    process.communicate()
    assert resumed(root) == {0: b"0" * 16}
    assert list(root.iterdir()) == []


def test_a_directory_that_another_host_locks_is_left_alone(export: ExportDirectory, root: Path) -> None:
    other = root / ".weightd-01234567-1-1-abc"
    other.mkdir()
    lock = os.open(other, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert resumed(root) == {}
    assert other.is_dir()
    os.close(lock)
    assert resumed(root) == {}
    assert not other.exists()


def test_directories_of_the_user_are_not_touched(export: ExportDirectory, root: Path) -> None:
    (root / ".weightd-notes").mkdir()
    (root / ".weightd-00000000-0-0-link").symlink_to(root / ".weightd-notes")
    assert resumed(root) == {}
    assert (root / ".weightd-notes").is_dir()
    assert (root / ".weightd-00000000-0-0-link").is_symlink()
