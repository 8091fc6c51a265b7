"""Directories in which every file name resolves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from weightd.core.errors import ManifestError, PathInTheWay
from weightd.storage.snapshots import ModelDirectories


@pytest.fixture
def directories(tmp_path: Path) -> ModelDirectories:
    return ModelDirectories(tmp_path / "state" / "models")


@pytest.fixture
def blobs(tmp_path: Path) -> dict[str, Path]:
    places = {}
    for name in ("a", "b"):
        places[name] = tmp_path / "state" / "blobs" / name
        places[name].parent.mkdir(parents=True, exist_ok=True)
        places[name].write_text(name)
    return places


def read(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): p.read_text() for p in directory.rglob("*") if p.is_file()}


def test_every_name_resolves(directories: ModelDirectories, blobs: dict[str, Path]) -> None:
    made = directories.publish("model", "rev", {"x": blobs["a"], "sub/y": blobs["b"], "z": blobs["a"]})
    assert made == directories.path("model", "rev")
    assert read(made) == {"x": "a", "sub/y": "b", "z": "a"}


def test_it_can_be_moved_with_the_state(directories: ModelDirectories, blobs: dict[str, Path], tmp_path: Path) -> None:
    directories.publish("model", "rev", {"sub/y": blobs["b"]})
    (tmp_path / "state").rename(tmp_path / "moved")
    assert read(tmp_path / "moved/models/model/rev") == {"sub/y": "b"}


def test_links_are_switched_and_nothing_stays(directories: ModelDirectories, blobs: dict[str, Path]) -> None:
    for target in ("a", "b", "b", "a"):
        directory = directories.publish("model", "rev", {"x": blobs[target], "y": blobs["a"]})
        assert read(directory) == {"x": target, "y": "a"}
    assert os.listdir(directory.parent) == ["rev"]


def test_current_leads_to_one_revision_or_another(
    directories: ModelDirectories, blobs: dict[str, Path], tmp_path: Path
) -> None:
    directories.publish("model", "one", {"x": blobs["a"]})
    directories.publish("model", "two", {"x": blobs["b"]})
    link = directories.path("model", "current")
    for revision, text in (("one", "a"), ("two", "b"), ("two", "b"), ("one", "a")):
        directories.switch("model", revision)
        assert (os.readlink(link), (link / "x").read_text()) == (revision, text)
    assert sorted(os.listdir(link.parent)) == ["current", "one", "two"]
    (tmp_path / "state").rename(tmp_path / "moved")
    assert (tmp_path / "moved/models/model/current/x").read_text() == "a"


def test_what_is_no_link_is_not_switched(directories: ModelDirectories, blobs: dict[str, Path]) -> None:
    directories.publish("model", "one", {"x": blobs["a"]})
    (directories.root / "model" / "current").mkdir()
    with pytest.raises(PathInTheWay, match="not a symlink"):
        directories.switch("model", "one")


def test_a_directory_goes_and_what_it_led_to_stays(directories: ModelDirectories, blobs: dict[str, Path]) -> None:
    directories.publish("model", "one", {"x": blobs["a"], "sub/y": blobs["b"]})
    directories.publish("model", "two", {"x": blobs["a"]})
    for _ in range(2):
        directories.remove("model", "one")
        assert os.listdir(directories.root / "model") == ["two"]
    assert {p.read_text() for p in blobs.values()} == {"a", "b"}


def test_directories_of_no_snapshot_go_at_the_start(directories: ModelDirectories, blobs: dict[str, Path]) -> None:
    for revision in ("one", "two", "three"):
        directories.publish("model", revision, {"x": blobs["a"], "sub/y": blobs["b"]})
    (directories.path("model", "three") / "sub" / "note.txt").write_text("somebody's")
    directories.switch("model", "one")
    directories.drop_others({("model", "one")})
    assert sorted(os.listdir(directories.root / "model")) == ["current", "one", "three"]


def test_links_into_shared_memory_are_absolute(directories: ModelDirectories) -> None:
    directory = directories.publish("model", "rev", {"x": Path("/dev/shm/weightd-x")})
    assert os.readlink(directory / "x") == "/dev/shm/weightd-x"


def test_half_built_ones_go(directories: ModelDirectories, blobs: dict[str, Path]) -> None:
    directory = directories.publish("model", "rev", {"x": blobs["a"]})
    (directory.parent / ".weightd-1").mkdir()
    (directory.parent / ".weightd-1/x").symlink_to("y")
    (directory.parent / ".weightd-2").symlink_to("y")
    directories.drop_leftovers()
    assert os.listdir(directory.parent) == ["rev"]
    assert read(directory) == {"x": "a"}


@pytest.mark.parametrize("kind", ["file", "symlink", "dangling"])
def test_something_in_the_way(directories: ModelDirectories, blobs: dict[str, Path], tmp_path: Path, kind: str) -> None:
    place = directories.path("model", "rev")
    place.parent.mkdir()
    if kind == "file":
        place.touch()
    else:
        place.symlink_to(tmp_path if kind == "symlink" else "nowhere")
    with pytest.raises(PathInTheWay):
        directories.publish("model", "rev", {"x": blobs["a"]})
    assert os.listdir(place.parent) == ["rev"]


def test_a_directory_in_the_place_of_a_link(directories: ModelDirectories, blobs: dict[str, Path]) -> None:
    directory = directories.publish("model", "rev", {"x": blobs["a"]})
    (directory / "x").unlink()
    (directory / "x").mkdir()
    with pytest.raises(PathInTheWay):
        directories.publish("model", "rev", {"x": blobs["a"]})
    assert os.listdir(directory.parent) == ["rev"]


def test_a_file_in_the_place_of_all_models(tmp_path: Path) -> None:
    (tmp_path / "models").touch()
    with pytest.raises(PathInTheWay):
        ModelDirectories(tmp_path / "models")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_a_name_that_climbs_out(directories: ModelDirectories, blobs: dict[str, Path], name: str) -> None:
    with pytest.raises(ManifestError):
        directories.publish("model", "rev", {"ok": blobs["a"], name: blobs["a"]})
    assert os.listdir(directories.root / "model") == []
