"""Links to what this host holds, as a Hugging Face cache: judged by the client, offline."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub import Hub
from tests.support.hub_repos import Repo, blob_id
from tests.support.serving import run_script
from weightd.core.digest import Digest, blob_name
from weightd.core.errors import AccessDenied, NotFound, PathInTheWay
from weightd.core.hf_layout import Layout, layout
from weightd.storage.hf_cache import Held, etag_of, link_snapshot
from weightd.storage.snapshots import ModelDirectories

FILES = {
    "config.json": b"{}",
    "empty.txt": b"",
    "model.safetensors": bytes(range(256)) * 1000,
    "onnx/deep/model.onnx": b"onnx" * 500,
    "onnx/same.onnx": b"onnx" * 500,
}
LFS = {"model.safetensors", "onnx/deep/model.onnx", "onnx/same.onnx"}

CLIENT = """if True:
    import json, os, sys
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": sys.argv[1], "HF_HUB_DISABLE_TELEMETRY": "1"}
    from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
    repo, revision = "org/name", sys.argv[2]
    snapshot = snapshot_download(repo, revision=revision, local_files_only=True)
    assert snapshot == snapshot_download(repo, revision=revision)
    names = json.loads(sys.argv[3])
    found = {name: hf_hub_download(repo, name, revision=revision) for name in names}
    assert all(path == f"{snapshot}/{name}" for name, path in found.items())
    cache = scan_cache_dir(sys.argv[1])
    (repo,) = cache.repos
    revisions = {r.commit_hash: [sorted(r.refs), len(r.files), r.size_on_disk] for r in repo.revisions}
    print(json.dumps([snapshot, revisions, [str(w) for w in cache.warnings]]))"""

HUB_CACHE = """if True:
    import os, sys
    os.environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    from huggingface_hub import snapshot_download
    endpoint, cache, revision, *patterns = sys.argv[1:]
    snapshot_download("org/name", endpoint=endpoint, cache_dir=cache, revision=revision, token=False,
                      allow_patterns=patterns or None)"""


class Model:
    """What a daemon has of a snapshot: blobs, and a directory of links to them."""

    def __init__(self, state: Path, files: dict[str, bytes]) -> None:
        self.files = files
        self.held: dict[str, Held] = {}
        self.etags: dict[str, str] = {}
        targets = {}
        for name, data in files.items():
            digest = hashlib.sha256(data).hexdigest()
            blob = targets[name] = state / blob_name(Digest(f"sha256:{digest}"))
            blob.parent.mkdir(parents=True, exist_ok=True)
            if not blob.exists():
                blob.write_bytes(data)
                blob.chmod(0o440)
            self.etags[name] = digest if name in LFS else blob_id(data)
        key = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]
        self.directory = ModelDirectories(state / "models").publish("model", key, targets)
        for name, etag in self.etags.items():
            self.held[etag] = Held(len(files[name]), self.directory / name, targets[name])

    @property
    def without_blobs(self) -> dict[str, Held]:
        return {etag: Held(held.size, held.path) for etag, held in self.held.items()}

    def layout(self, commit: str, revision: str = "main") -> Layout:
        return layout("org/name", revision, commit, self.etags)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def repo(hub: Hub) -> Repo:
    repo = hub.repo("org/name")
    repo.commit(FILES, lfs=LFS)
    return repo


@pytest.fixture
def commit(repo: Repo) -> str:
    return repo.refs["refs/heads/main"]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path / "state", FILES)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "hub"


def tree(root: Path) -> dict[str, object]:
    """All of a cache that is not the client's own bookkeeping: links by their text, files by their bytes."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if ".locks" in path.parts or "trees" in path.parts or path.name == "CACHEDIR.TAG":
            continue
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "directory"
    return found


def by_client(cache: Path, revision: str, files: dict[str, bytes]) -> dict[str, list[object]]:
    """The revisions that the client finds offline, after it has found these files in `revision`."""
    answer = run_script(CLIENT, cache, revision, json.dumps(list(files))).stdout
    snapshot, revisions, warnings = json.loads(answer)
    assert warnings == []
    for name, data in files.items():
        assert (Path(snapshot) / name).read_bytes() == data
    assert isinstance(revisions, dict)
    return revisions


def test_same_as_the_clients_own(hub: Hub, commit: str, model: Model, cache: Path, tmp_path: Path) -> None:
    made = link_snapshot(cache, model.layout(commit), model.held)
    assert (made.hard, made.symbolic, made.kept) == (4, 0, 0)
    run_script(HUB_CACHE, hub.endpoint, tmp_path / "own", "main")
    assert tree(cache) == tree(tmp_path / "own")
    assert (cache / "CACHEDIR.TAG").read_text().splitlines()[0] == (
        (tmp_path / "own/CACHEDIR.TAG").read_text().splitlines()[0]
    )
    for etag, held in model.held.items():
        assert held.blob is not None
        assert (cache / "models--org--name/blobs" / etag).samefile(held.blob)


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("revision", ["main", "refs/pr/1", ""])
def test_client_finds_it_offline(commit: str, model: Model, cache: Path, hard: bool, revision: str) -> None:
    revision = revision or commit
    made = link_snapshot(cache, model.layout(commit, revision), model.held if hard else model.without_blobs)
    assert (made.hard, made.symbolic) == ((4, 0) if hard else (0, 4))
    refs = [] if revision == commit else [revision]
    size = sum(map(len, FILES.values())) - len(FILES["onnx/same.onnx"])
    assert by_client(cache, revision, FILES) == {commit: [refs, len(FILES), size]}


def test_client_goes_on_with_it_online(hub: Hub, repo: Repo, commit: str, model: Model, cache: Path) -> None:
    """It fetches what is new, and nothing that is linked."""
    link_snapshot(cache, model.layout(commit), model.held)
    second = repo.commit({"config.json": b"[]"})
    run_script(HUB_CACHE, hub.endpoint, cache, "main")
    assert not hub.cdn.requests
    assert [found.status for found in hub.asked_of("api/resolve-cache/*") if found.method == "GET"] == [200]
    assert by_client(cache, "main", FILES | {"config.json": b"[]"})[second][0] == ["main"]


def test_hard_links_outlive_the_model(commit: str, model: Model, cache: Path) -> None:
    link_snapshot(cache, model.layout(commit), model.held)
    for held in model.held.values():
        assert held.blob is not None
        held.blob.unlink()
    assert by_client(cache, "main", FILES)


def test_other_file_system(commit: str, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="weightd-test-") as other:
        if Path(other).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("the temporary directory is in shared memory too")
        model = Model(tmp_path / "state", FILES)
        made = link_snapshot(Path(other), model.layout(commit), model.held)
        assert (made.hard, made.symbolic) == (0, 4)
        assert by_client(Path(other), "main", FILES)


def test_again(commit: str, model: Model, cache: Path) -> None:
    link_snapshot(cache, model.layout(commit), model.held)
    before, ref = tree(cache), (cache / "models--org--name/refs/main").stat()
    for held in (model.held, model.without_blobs):
        made = link_snapshot(cache, model.layout(commit), held)
        assert (made.hard, made.symbolic, made.kept) == (0, 0, 4)
    assert tree(cache) == before
    assert (cache / "models--org--name/refs/main").stat().st_ino == ref.st_ino


def test_cache_that_the_client_made(hub: Hub, commit: str, model: Model, cache: Path) -> None:
    run_script(HUB_CACHE, hub.endpoint, cache, "main")
    before = tree(cache)
    assert link_snapshot(cache, model.layout(commit), model.held).kept == 4
    assert tree(cache) == before
    assert not (cache / "models--org--name/blobs" / model.etags["config.json"]).samefile(
        model.directory / "config.json"
    )


def test_snapshot_that_the_client_began(hub: Hub, commit: str, model: Model, cache: Path, tmp_path: Path) -> None:
    run_script(HUB_CACHE, hub.endpoint, cache, "main", "*.json", "onnx/deep/*")
    made = link_snapshot(cache, model.layout(commit), model.held)
    assert (made.hard, made.kept) == (2, 2)
    run_script(HUB_CACHE, hub.endpoint, tmp_path / "own", "main")
    assert tree(cache) == tree(tmp_path / "own")
    assert by_client(cache, "main", FILES)


def test_next_commit(repo: Repo, commit: str, model: Model, cache: Path, tmp_path: Path) -> None:
    link_snapshot(cache, model.layout(commit), model.held)
    files = FILES | {"config.json": b"[1]"}
    second, newer = repo.commit({"config.json": b"[1]"}), Model(tmp_path / "state", files)
    made = link_snapshot(cache, newer.layout(second), newer.held)
    assert (made.hard, made.kept) == (1, 3)
    revisions = by_client(cache, "main", files)
    assert {sha: refs for sha, (refs, *_) in revisions.items()} == {commit: [], second: ["main"]}
    assert by_client(cache, commit, FILES)


class TestInTheWay:
    @pytest.mark.parametrize("data", [b"other", b"[]"])
    def test_other_bytes(self, commit: str, model: Model, cache: Path, data: bytes) -> None:
        """Also of the same size. Nothing is made."""
        blob = cache / "models--org--name/blobs" / model.etags["config.json"]
        blob.parent.mkdir(parents=True)
        blob.write_bytes(data)
        with pytest.raises(PathInTheWay, match=blob.name):
            link_snapshot(cache, model.layout(commit), model.held)
        assert blob.read_bytes() == data
        assert list(blob.parent.iterdir()) == [blob]
        assert not list((cache / "models--org--name/snapshots").iterdir())
        assert not (cache / "models--org--name/refs").exists()

    def test_name_of_the_snapshot(self, commit: str, model: Model, cache: Path) -> None:
        link = cache / "models--org--name/snapshots" / commit / "config.json"
        link.parent.mkdir(parents=True)
        link.write_bytes(b"[]")
        with pytest.raises(PathInTheWay, match=r"config\.json"):
            link_snapshot(cache, model.layout(commit), model.held)
        assert link.read_bytes() == b"[]"
        link.write_bytes(FILES["config.json"])
        link_snapshot(cache, model.layout(commit), model.held)
        assert not link.is_symlink()
        assert by_client(cache, "main", FILES)

    @pytest.mark.parametrize("place", ["", "/blobs", "/snapshots", "/refs", "/snapshots/{}", "/snapshots/{}/onnx"])
    def test_file_for_a_directory(self, commit: str, model: Model, cache: Path, place: str) -> None:
        path = Path(f"{cache}/models--org--name{place.format(commit)}")
        path.parent.mkdir(parents=True)
        path.touch()
        with pytest.raises(PathInTheWay):
            link_snapshot(cache, model.layout(commit), model.held)
        assert [found for found in cache.rglob("*") if not found.is_dir()] == [path]

    @pytest.mark.parametrize("place", ["blobs/{etag}", "snapshots/{commit}/config.json", "refs/main"])
    def test_directory_for_a_file(self, commit: str, model: Model, cache: Path, place: str) -> None:
        named = place.format(etag=model.etags["config.json"], commit=commit)
        path = cache / "models--org--name" / named
        path.mkdir(parents=True)
        with pytest.raises(PathInTheWay):
            link_snapshot(cache, model.layout(commit), model.held)
        assert all(found.is_dir() for found in cache.rglob("*"))

    def test_dead_links_are_replaced(self, commit: str, model: Model, cache: Path) -> None:
        """As those to a model that the daemon dropped."""
        for place in (f"blobs/{model.etags['config.json']}", f"snapshots/{commit}/config.json"):
            path = cache / "models--org--name" / place
            path.parent.mkdir(parents=True)
            path.symlink_to("/nowhere/at/all")
        link_snapshot(cache, model.layout(commit), model.held)
        assert by_client(cache, "main", FILES)

    def test_tag_of_another(self, commit: str, model: Model, cache: Path) -> None:
        cache.mkdir(parents=True)
        (cache / "CACHEDIR.TAG").write_text("mine")
        link_snapshot(cache, model.layout(commit), model.held)
        assert (cache / "CACHEDIR.TAG").read_text() == "mine"


def test_model_that_is_gone(commit: str, model: Model, cache: Path) -> None:
    held = model.held[model.etags["config.json"]]
    assert held.blob is not None
    held.blob.unlink()
    with pytest.raises(NotFound):
        link_snapshot(cache, model.layout(commit), model.held)
    assert not cache.exists()
    with pytest.raises(NotFound):
        etag_of(held.path, lfs=False)


def test_blob_that_is_in_shared_memory_only(commit: str, model: Model, cache: Path, tmp_path: Path) -> None:
    """The directory of the model leads to it."""
    held = model.held[model.etags["config.json"]]
    assert held.blob is not None
    held.blob.rename(tmp_path / "segment")
    held.path.unlink()
    held.path.symlink_to(tmp_path / "segment")
    made = link_snapshot(cache, model.layout(commit), model.held)
    assert (made.hard, made.symbolic) == (3, 1)
    assert by_client(cache, "main", FILES)


BY_ANOTHER_USER = """if True:
    import json, os, sys
    from pathlib import Path
    from weightd.core.hf_layout import layout
    from weightd.storage.hf_cache import Held, link_snapshot
    etags, held = json.loads(sys.argv[3])
    held = {etag: Held(size, Path(path), Path(blob)) for etag, (size, path, blob) in held.items()}
    if len(sys.argv) > 4:
        os.setgroups([]), os.setgid(65534), os.setuid(65534)
    try:
        made = link_snapshot(Path(sys.argv[1]), layout("org/name", "main", sys.argv[2], etags), held)
    except Exception as e:
        print(type(e).__name__)
    else:
        print(made.hard, made.symbolic, made.kept)"""


def arguments(cache: Path, commit: str, model: Model) -> list[object]:
    held = {etag: (held.size, str(held.path), str(held.blob)) for etag, held in model.held.items()}
    return [cache, commit, json.dumps([model.etags, held])]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize(("mode", "answer"), [(0o444, "0 4 0"), (0o440, AccessDenied.__name__)])
def test_user_who_is_not_the_daemon(commit: str, mode: int, answer: str) -> None:
    """fs.protected_hardlinks: no hard link to a file that one may not write."""
    with tempfile.TemporaryDirectory(prefix="weightd-test-") as home:
        Path(home).chmod(0o755)
        model = Model(Path(home) / "state", FILES)
        for held in model.held.values():
            assert held.blob is not None
            held.blob.chmod(mode)
        cache = Path(home) / "cache"
        cache.mkdir()
        cache.chmod(0o777)
        if Path("/proc/sys/fs/protected_hardlinks").read_text().strip() == "0":
            pytest.skip("fs.protected_hardlinks is off")
        done = run_script(BY_ANOTHER_USER, *arguments(cache, commit, model), "drop")
        assert done.stdout.strip() == answer


def test_two_at_once(commit: str, model: Model, cache: Path) -> None:
    command = [sys.executable, "-c", BY_ANOTHER_USER, *map(str, arguments(cache, commit, model))]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    told = [tuple(map(int, run.communicate(timeout=60)[0].split())) for run in runs]
    assert sorted(told) == [(0, 0, 4)] * 3 + [(4, 0, 0)]
    assert not list(cache.rglob(".weightd-*"))
    assert by_client(cache, "main", FILES)


CRASH = """if True:
    import os, sys
    left = int(os.environ["CRASH_AT"])
    def hook(event, args):
        global left
        if event in ("os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir"):
            left -= 1
            if left == 0:
                os._exit(9)
    sys.addaudithook(hook)
"""


def test_crash_at_every_step(commit: str, model: Model, tmp_path: Path) -> None:
    """A process ends before each of its changes in turn: no ref without its snapshot, no half snapshot, and the same
    command goes on."""
    link_snapshot(tmp_path / "whole", model.layout(commit), model.held)
    whole = tree(tmp_path / "whole")
    snapshot = {name for name in whole if f"/snapshots/{commit}/" in name}
    for step in range(1, 100):
        cache = tmp_path / f"cache{step}"
        done = subprocess.run(
            [sys.executable, "-c", CRASH + BY_ANOTHER_USER.removeprefix("if True:\n")]
            + [str(a) for a in arguments(cache, commit, model)],
            env={**os.environ, "CRASH_AT": str(step)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode == 0:
            break
        assert done.returncode == 9, done.stderr
        left = tree(cache)
        found = {name for name in left if f"/snapshots/{commit}/" in name and "/.weightd-" not in name}
        assert found in (set(), snapshot)
        assert "models--org--name/refs/main" not in left or found == snapshot
        assert all(whole[n] == data for n, data in left.items() if n in whole)
        link_snapshot(cache, model.layout(commit), model.held)
        assert tree(cache) == whole
    assert 15 < step < 99
