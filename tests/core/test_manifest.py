"""Names from outside, and what makes two snapshots the same."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightd.core.digest import Digest
from weightd.core.errors import ManifestError
from weightd.core.manifest import FileSpec, Validator, check_path, make_manifest

A = Digest("sha256:" + "a" * 64)


@pytest.mark.parametrize(
    "path", ["a", "a/b/c.json", "...", "a b", "ünï", "-rf", "a" * 255, "1_Pooling/config.json", "~", "a:b", ".weight"]
)
def test_good_names(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "is empty"),
        ("/etc/passwd", "is absolute"),
        ("//x", "is absolute"),
        ("..", "climbs out"),
        ("a/../b", "climbs out"),
        ("a/..", "climbs out"),
        (".", "empty or '.'"),
        ("./a", "empty or '.'"),
        ("a//b", "empty or '.'"),
        ("a/", "empty or '.'"),
        ("a\\b", "backslash"),
        ("..\\b", "backslash"),
        ("a\0b", "control character"),
        ("a\nb", "control character"),
        ("a\x7f", "control character"),
        ("\ud800", "Unicode"),
        ("a" * 256, "too long"),
        ("ü" * 128, "too long"),
        ("a/" * 600 + "a", "too long"),
        (".weightd-tmp", "reserved"),
        ("a/.weightd/b", "reserved"),
    ],
)
def test_bad_names(path: str, reason: str) -> None:
    with pytest.raises(ManifestError, match=reason) as e:
        check_path(path)
    assert e.value.remedy


@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(("..", ".", "", "a", "/", "\\", "\0"))).map("/".join)))
def test_whatever_passes_stays_inside(path: str) -> None:
    try:
        check_path(path)
    except ManifestError:
        return
    below = os.path.normpath(f"/root/{path}")
    assert below == f"/root/{path}"
    assert PurePosixPath(below).is_relative_to("/root")
    os.fsencode(path)


def spec(path: str, **fields: object) -> FileSpec:
    return FileSpec(path, **({"size": 1, "url": f"https://h/{path}"} | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "no files"),
        ([spec("a"), spec("a")], "twice"),
        ([spec("a"), spec("a/b")], "directory of another"),
        ([spec("a/b/c"), spec("a")], "directory of another"),
        ([spec("a", size=-1)], "negative"),
        ([spec("../a")], "climbs out"),
    ],
)
def test_lists_that_cannot_be_served(files: list[FileSpec], reason: str) -> None:
    with pytest.raises(ManifestError, match=reason):
        make_manifest("ref", "raw", files)


def test_files_are_sorted_and_summed() -> None:
    manifest = make_manifest("ref", "raw", [spec("b", size=2), spec("a/x", size=3)])
    assert [f.path for f in manifest.files] == ["a/x", "b"]
    assert manifest.size == 5
    assert make_manifest("ref", "raw", [spec("a/x", size=3), spec("b", size=2)]) == manifest


@pytest.mark.parametrize(
    "other",
    [
        spec("b"),
        spec("a", size=2),
        spec("a", digest=A),
        spec("a", validator=Validator(etag='"1"')),
        spec("a", validator=Validator(last_modified="now")),
        spec("a", url="https://h/elsewhere"),
    ],
)
def test_another_version_is_another_revision(other: FileSpec) -> None:
    assert make_manifest("r", "raw", [spec("a")]).revision != make_manifest("r", "raw", [other]).revision


def test_the_digest_is_the_identity_where_it_is_known() -> None:
    one, two = spec("a", digest=A), spec("a", digest=A, url="https://mirror/a", validator=Validator(etag='"2"'))
    assert one.source_key == two.source_key == A
    assert make_manifest("r", "raw", [one]).revision == make_manifest("s", "raw", [two]).revision


def test_without_a_version_there_is_no_source_key() -> None:
    assert spec("a").source_key == ""
    assert spec("a", validator=Validator(etag='"1"')).source_key.startswith("source:")
