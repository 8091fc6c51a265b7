"""Names in a Hugging Face cache, as the client itself makes them."""

from __future__ import annotations

import hashlib

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from weightd.core.errors import InvalidArgument, ManifestError, RefSyntax
from weightd.core.hf_layout import Etag, check_repo, layout

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GIT, LFS = "a" * 40, "b" * 64


def test_layout() -> None:
    made = layout("org/name", "main", COMMIT, {"config.json": GIT, "onnx/deep/m.onnx": LFS, "copy": LFS})
    assert made.repo == repo_folder_name(repo_id="org/name", repo_type="model") == "models--org--name"
    assert made.snapshot == f"models--org--name/snapshots/{COMMIT}"
    assert made.blobs == {f"models--org--name/blobs/{etag}": etag for etag in (GIT, LFS)}
    assert made.links == {
        f"{made.snapshot}/config.json": f"../../blobs/{GIT}",
        f"{made.snapshot}/onnx/deep/m.onnx": f"../../../../blobs/{LFS}",
        f"{made.snapshot}/copy": f"../../blobs/{LFS}",
    }
    assert made.ref == "models--org--name/refs/main"


@pytest.mark.parametrize(
    ("revision", "ref"), [("refs/pr/1", "/refs/refs/pr/1"), ("dev/x", "/refs/dev/x"), (COMMIT, "")]
)
def test_ref(revision: str, ref: str) -> None:
    assert layout("gpt2", revision, COMMIT, {"f": GIT}).ref == (f"models--gpt2{ref}" if ref else "")


@pytest.mark.parametrize("path", ["../up", "/etc/x", "a/../../b", "", "a//b", "new\nline"])
def test_hostile_names(path: str) -> None:
    with pytest.raises(ManifestError):
        layout("org/name", "main", COMMIT, {path: GIT})


@pytest.mark.parametrize("revision", ["../../x", "/x", "a/../b"])
def test_hostile_revisions(revision: str) -> None:
    with pytest.raises(ManifestError):
        layout("org/name", revision, COMMIT, {"f": GIT})


def test_file_in_a_file() -> None:
    with pytest.raises(ManifestError):
        layout("org/name", "main", COMMIT, {"a": GIT, "a/b/c": LFS})


@pytest.mark.parametrize("etag", ["", "../x", "A" * 40, "a" * 41, f"{'a' * 40}\n"])
def test_what_is_no_etag(etag: str) -> None:
    with pytest.raises(ManifestError):
        layout("org/name", "main", COMMIT, {"f": etag})


@pytest.mark.parametrize("commit", ["main", "0123456789abcdef", COMMIT.upper(), f"{COMMIT}\n"])
def test_what_is_no_commit(commit: str) -> None:
    with pytest.raises(InvalidArgument):
        layout("org/name", "main", commit, {"f": GIT})


@pytest.mark.parametrize(
    "repo",
    [
        *("org/name", "gpt2", "a.b_c-d/E.f", "n" * 96, "n" * 97, "a/b/c", "", "/", "a/", "-a/b", "a.", "a--b"),
        *("a/b..c", "a/b.git", "a/b.gitx", "a b", "café", "a/..", "..", "a\n", "a/b@c"),
    ],
)
def test_repositories_are_those_of_the_client(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError:
        with pytest.raises(RefSyntax):
            check_repo(repo)
    else:
        assert check_repo(repo) == repo


def test_etag() -> None:
    git, lfs = Etag(11, lfs=False), Etag(11, lfs=True)
    for piece in (b"hello", b" ", b"world"):
        git.update(piece)
        lfs.update(piece)
    # As `printf 'hello world' | git hash-object --stdin` says.
    assert git.text == "95d09f2b10159347eece71399a7e2e907ea3df4f"
    assert lfs.text == hashlib.sha256(b"hello world").hexdigest()
