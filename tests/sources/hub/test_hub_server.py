"""The scripted Hub speaks the Hub's protocol: the unmodified huggingface_hub client takes its answers."""

from __future__ import annotations

import hashlib
import http.client
import random
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from huggingface_hub import (
    HfApi,
    RepoFile,
    RepoFolder,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError

from tests.support.hub import Hub
from tests.support.hub_repos import Repo, blob_id
from tests.support.origin import Fault
from tests.support.serving import run_script

WEIGHTS = random.Random(1).randbytes(300_000)
FILES = {
    "config.json": b'{"model_type": "test"}',
    "README.md": b"# A model\n",
    "model.safetensors": WEIGHTS,
    "onnx/deep/model.onnx": WEIGHTS[:1000],
    "a file +%41.txt": "wörds".encode(),
}
LFS = ("model.safetensors", "onnx/deep/model.onnx")


@pytest.fixture
def repo(hub: Hub) -> Repo:
    repo = hub.repo("org/name")
    repo.commit(FILES)
    return repo


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=False)


@pytest.fixture
def slept(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's waits between attempts: they move the Hub's clock, and take no time."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=sleep))
    hub.clock = lambda: 1_800_000_000 + sum(waits)
    return waits


def fetch(hub: Hub, directory: Path, revision: str | None = None, name: str = "org/name") -> Path:
    """A snapshot made by the client."""
    made = snapshot_download(
        name, revision=revision, endpoint=hub.endpoint, cache_dir=directory, token=False, max_workers=2
    )
    return Path(made)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def address(hub: Hub, path: str, revision: str = "main") -> str:
    return hf_hub_url("org/name", path, revision=revision, endpoint=hub.endpoint)


def get(url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Status and body, without the client."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}", headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("resolve_cache", [True, False])
def test_snapshot_is_identical(hub: Hub, repo: Repo, tmp_path: Path, resolve_cache: bool) -> None:
    hub.resolve_cache = resolve_cache
    assert contents(fetch(hub, tmp_path)) == FILES
    blobs = {path.name for path in (tmp_path / "models--org--name/blobs").iterdir()}
    expected = {hashlib.sha256(FILES[name]).hexdigest() for name in LFS}
    assert blobs == expected | {blob_id(FILES[name]) for name in FILES if name not in LFS}
    assert len(hub.cdn.requests) == 2
    assert bool(hub.asked_of("api/resolve-cache/*")) == resolve_cache


def test_snapshot_of_a_directory(hub: Hub, repo: Repo, tmp_path: Path) -> None:
    """What the client laid out is served, by links, to another client."""
    made = fetch(hub, tmp_path / "one")
    other = hub.repo("org/copy")
    other.commit(made)
    assert contents(fetch(hub, tmp_path / "two", name="org/copy")) == FILES


def test_name_without_an_owner(hub: Hub, tmp_path: Path) -> None:
    hub.repo("gpt2").commit(FILES)
    assert contents(fetch(hub, tmp_path, name="gpt2")) == FILES


def test_info(hub: Hub, repo: Repo, api: HfApi) -> None:
    info = api.model_info("org/name", files_metadata=True)
    assert (info.id, info.sha, info.private, info.gated) == ("org/name", repo.refs["refs/heads/main"], False, False)
    found = {file.rfilename: file for file in info.siblings or []}
    assert found.keys() == FILES.keys()
    for name, data in FILES.items():
        assert found[name].size == len(data)
        lfs = found[name].lfs
        assert (lfs.sha256 if lfs else None) == (hashlib.sha256(data).hexdigest() if name in LFS else None)
        assert name in LFS or found[name].blob_id == blob_id(data)
    plain = api.model_info("org/name").siblings or []
    assert [file.size for file in plain] == [None] * len(FILES)


def test_pointer_of_an_lfs_file(repo: Repo) -> None:
    """The id that git gives to the pointer that git-lfs writes."""
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{hashlib.sha256(WEIGHTS).hexdigest()}\nsize 300000\n"
    )
    file = repo.commits[repo.refs["refs/heads/main"]].files["model.safetensors"]
    assert (file.sha1, file.pointer_size) == (blob_id(pointer.encode()), len(pointer))


def test_revisions(hub: Hub, repo: Repo, api: HfApi, tmp_path: Path) -> None:
    first = repo.refs["refs/heads/main"]
    repo.tag("v1", first)
    second = repo.commit({"config.json": b"{}", "README.md": None})
    third = repo.commit({"config.json": b"[]"}, branch="refs/pr/1")
    fourth = repo.commit({"x/config.json": b"[1]"}, branch="dev/new")
    revisions = {"main": second, "v1": first, "refs/pr/1": third, "dev/new": fourth, first: first, first[:7]: first}
    for revision, commit in revisions.items():
        assert api.model_info("org/name", revision=revision).sha == commit
        assert get_hf_file_metadata(address(hub, "x/config.json" if commit == fourth else "config.json", revision))
    assert contents(fetch(hub, tmp_path, "v1")) == FILES
    kept = {name: FILES[name] for name in FILES if name not in ("README.md", "config.json")}
    assert contents(fetch(hub, tmp_path, "main")) == kept | {"config.json": b"{}"}
    assert contents(fetch(hub, tmp_path, "refs/pr/1")) == {"config.json": b"[]"}
    refs = api.list_repo_refs("org/name", include_pull_requests=True)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": second, "dev/new": fourth}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first}
    assert [ref.target_commit for ref in refs.pull_requests or []] == [third]
    assert [found.commit_id for found in api.list_repo_commits("org/name")] == [second, first]


def test_tree(hub: Hub, repo: Repo, api: HfApi) -> None:
    assert {entry.path for entry in api.list_repo_tree("org/name") if isinstance(entry, RepoFolder)} == {"onnx"}
    assert [entry.path for entry in api.list_repo_tree("org/name", "onnx/deep")] == ["onnx/deep/model.onnx"]
    everything = list(api.list_repo_tree("org/name", recursive=True, expand=True))
    assert {entry.path for entry in everything if isinstance(entry, RepoFolder)} == {"onnx", "onnx/deep"}
    files = {entry.path: entry for entry in everything if isinstance(entry, RepoFile)}
    assert files.keys() == FILES.keys()
    assert all(entry.last_commit and entry.security for entry in files.values())
    assert files["model.safetensors"].lfs is not None
    assert files["model.safetensors"].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    info = api.get_paths_info("org/name", ["onnx", "config.json", "nothing"])
    assert [type(entry) for entry in info] == [RepoFile, RepoFolder]


@pytest.mark.parametrize(("page_size", "pages"), [(1000, 2), (100, 13)])
def test_pages(hub: Hub, api: HfApi, page_size: int, pages: int) -> None:
    names = {f"part {number:04}/&=?.json" if number % 2 else f"{number:04}.json" for number in range(823)}
    hub.repo("org/name").commit(dict.fromkeys(names, b"{}"))
    hub.page_size = page_size
    found = list(api.list_repo_tree("org/name", recursive=True))
    assert {entry.path for entry in found if isinstance(entry, RepoFile)} == names
    assert len(found) == 823 + 411
    assert len(hub.asked_of("api/models/org/name/tree/main")) == pages


def test_file_metadata(hub: Hub, repo: Repo, api: HfApi) -> None:
    commit = repo.refs["refs/heads/main"]
    lfs = get_hf_file_metadata(address(hub, "model.safetensors"))
    assert (lfs.commit_hash, lfs.size, lfs.etag) == (commit, len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    assert lfs.location.startswith(hub.cdn.url())
    plain = get_hf_file_metadata(address(hub, "config.json"))
    assert (plain.commit_hash, plain.size, plain.etag) == (commit, 22, blob_id(FILES["config.json"]))
    assert plain.location.startswith(f"{hub.endpoint}/api/resolve-cache/")
    assert api.file_exists("org/name", "config.json")
    assert not api.file_exists("org/name", "nothing.json")


def test_ranges_of_plain_files(hub: Hub, repo: Repo) -> None:
    location = get_hf_file_metadata(address(hub, "config.json")).location
    assert get(location, {"Range": "bytes=2-5"}) == (206, FILES["config.json"][2:6])


def test_etag_of_the_cdn_is_no_digest(hub: Hub, repo: Repo, api: HfApi) -> None:
    """As the Hub's: 64 digits, and not the file's."""
    file = repo.commits[repo.refs["refs/heads/main"]].files["model.safetensors"]
    assert len(file.content.etag.strip('"')) == 64
    assert file.sha256 not in file.content.etag


def test_list_that_lies(hub: Hub, repo: Repo, api: HfApi, tmp_path: Path) -> None:
    hostile = {"../up": b"1", "/etc/x": b"2", "a/../../b": b"3", "new\nline\x1b": b"4"}
    duplicate = {"type": "file", "path": "config.json", "size": 5, "oid": "0" * 40}
    repo.commit(hostile, extra=(duplicate,))
    found = [entry for entry in api.list_repo_tree("org/name", recursive=True) if isinstance(entry, RepoFile)]
    assert hostile.keys() <= {entry.path for entry in found}
    assert [entry.size for entry in found if entry.path == "config.json"] == [22, 5]
    with pytest.raises(ValueError, match="Invalid filename"):
        fetch(hub, tmp_path)


def test_branch_moves_between_list_and_files(hub: Hub, repo: Repo, tmp_path: Path) -> None:
    hub.before("org/name/resolve/*", lambda: repo.commit(dict.fromkeys(FILES, b"other bytes")))
    assert contents(fetch(hub, tmp_path)) == FILES
    assert api_sha(hub) != (tmp_path / "models--org--name/refs/main").read_text()


def api_sha(hub: Hub) -> str | None:
    return HfApi(endpoint=hub.endpoint, token=False).model_info("org/name").sha


def test_renamed(hub: Hub, repo: Repo, api: HfApi, tmp_path: Path) -> None:
    hub.rename(repo, "neworg/newname")
    assert api.model_info("org/name").id == "neworg/newname"
    assert contents(fetch(hub, tmp_path)) == FILES
    listed = [request for request in hub.requests if "/tree/" in request.path]
    assert [request.status for request in listed] == [307, 200]
    assert "recursive=" in listed[1].target
    assert list(api.list_repo_tree("neworg/newname"))


def test_mirror(hub: Hub, repo: Repo, tmp_path: Path) -> None:
    """The client follows a mirror back to the Hub that it knows."""
    script = """if True:
        import os, sys
        os.environ |= {"HF_ENDPOINT": sys.argv[2], "HF_HOME": sys.argv[3], "HF_HUB_DISABLE_XET": "1"}
        os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        from huggingface_hub import snapshot_download
        print(snapshot_download("org/name", endpoint=sys.argv[1], token=False))"""
    from tests.support.hub import Mirror

    with Mirror(hub) as mirror:
        made = run_script(script, mirror.endpoint, hub.endpoint, tmp_path).stdout.strip()
        assert {request.status for request in mirror.requests if "/resolve/" in request.path} == {308}
    assert contents(Path(made)) == FILES


def test_xet(hub: Hub, api: HfApi) -> None:
    digits = "ab" * 32
    hub.repo("org/name").commit({"model.safetensors": WEIGHTS}, xet={"model.safetensors": digits})
    found = get_hf_file_metadata(address(hub, "model.safetensors"), endpoint=hub.endpoint).xet_file_data
    assert found is not None
    assert found.file_hash == digits
    assert get(found.refresh_route)[0] == 200
    assert [entry.xet_hash for entry in api.list_repo_tree("org/name") if isinstance(entry, RepoFile)] == [digits]


@pytest.mark.parametrize("status", [400, 403])
def test_only_by_xet(hub: Hub, repo: Repo, tmp_path: Path, status: int) -> None:
    hub.cdn.largest, hub.cdn.too_large = 200_000, status
    with pytest.raises(HfHubHTTPError) as caught:
        fetch(hub, tmp_path)
    assert caught.value.response.status_code == status
    hf_hub_download("org/name", "onnx/deep/model.onnx", endpoint=hub.endpoint, cache_dir=tmp_path, token=False)


class TestSignedAddresses:
    @pytest.mark.parametrize("style", ["cloudfront", "amz"])
    def test_expiry(self, hub: Hub, repo: Repo, style: str) -> None:
        now = [1_800_000_000.0]
        hub.clock = lambda: now[0]
        hub.cdn.style, hub.cdn.life = style, 60
        location = get_hf_file_metadata(address(hub, "model.safetensors")).location
        now[0] += 59
        assert get(location, {"Range": "bytes=5-9"}) == (206, WEIGHTS[5:10])
        now[0] += 1
        assert get(location)[0] == 403

    def test_uses(self, hub: Hub, repo: Repo) -> None:
        hub.cdn.uses = 2
        location = get_hf_file_metadata(address(hub, "model.safetensors")).location
        assert [get(location)[0] for _ in range(3)] == [200, 200, 403]

    def test_revoked(self, hub: Hub, repo: Repo) -> None:
        location = get_hf_file_metadata(address(hub, "model.safetensors")).location
        hub.cdn.expire()
        assert get(location)[0] == 403
        assert get(get_hf_file_metadata(address(hub, "model.safetensors")).location)[0] == 200

    @pytest.mark.parametrize(("old", "new"), [("%2F", "/"), ("Expires=1", "Expires=2"), ("Signature=", "Signature=0")])
    def test_tampered(self, hub: Hub, repo: Repo, old: str, new: str) -> None:
        location = get_hf_file_metadata(address(hub, "model.safetensors")).location
        assert old in location
        assert get(location.replace(old, new))[0] == 403

    def test_client_with_an_address_that_expired(self, hub: Hub, repo: Repo, tmp_path: Path) -> None:
        hub.cdn.life = 0
        with pytest.raises(HfHubHTTPError) as caught:
            fetch(hub, tmp_path)
        assert caught.value.response.status_code == 403


class TestQuotas:
    def test_headers(self, hub: Hub, repo: Repo, api: HfApi) -> None:
        hub.clock = lambda: 1_800_000_000
        hub.limit("api", 500)
        assert get(hub.url("api/models/org/name"))[0] == 200
        told = get_headers(hub, "api/models/org/name")
        assert told["ratelimit"] == '"api";r=498;t=300'
        assert told["ratelimit-policy"] == '"fixed window";"api";q=500;w=300'
        assert get_headers(hub, "org/name/resolve/main/config.json")["ratelimit"].startswith('"resolvers";')

    def test_client_waits_for_the_next_window(
        self, hub: Hub, repo: Repo, api: HfApi, slept: list[float], tmp_path: Path
    ) -> None:
        hub.page_size = 2
        hub.limit("api", 3, window=60)
        assert len(list(api.list_repo_tree("org/name", recursive=True))) == 7
        assert slept == [61]
        assert [request.status for request in hub.requests] == [200, 200, 200, 429, 200]

    def test_spent(self, hub: Hub, repo: Repo, api: HfApi) -> None:
        hub.limit("api", 1)
        hub.token("hf_other", "other")
        api.model_info("org/name")
        with pytest.raises(HfHubHTTPError, match="you have reached your 'api' rate limit"):
            api.model_info("org/name")
        assert HfApi(endpoint=hub.endpoint, token="hf_other").model_info("org/name")
        assert get_hf_file_metadata(address(hub, "config.json"))

    def test_resolves_are_counted(self, hub: Hub, repo: Repo, tmp_path: Path) -> None:
        fetch(hub, tmp_path)
        # HEAD for each; the GETs go to the places that these name.
        assert hub.resolves == len(FILES)


def get_headers(hub: Hub, path: str) -> dict[str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=10)
    try:
        connection.request("HEAD", f"/{path}")
        return {name.lower(): value for name, value in connection.getresponse().getheaders()}
    finally:
        connection.close()


class TestFaults:
    def test_burst_of_503(self, hub: Hub, repo: Repo, slept: list[float], tmp_path: Path) -> None:
        hub.fault("*/resolve/*/model.safetensors", Fault(status=503), times=2)
        hub.fault("api/models/org/name/tree/*", Fault(status=502), times=1)
        assert contents(fetch(hub, tmp_path)) == FILES
        assert [request.status for request in hub.asked_of("*/resolve/*/model.safetensors")] == [503, 503, 302]

    def test_stall(self, hub: Hub, repo: Repo, tmp_path: Path) -> None:
        hub.fault("*/resolve/*", Fault(stall_head=True))
        with pytest.raises(Exception, match="timed out"):
            get_hf_file_metadata(address(hub, "config.json"), timeout=0.2)

    def test_cdn_that_breaks_off(self, hub: Hub, repo: Repo, slept: list[float], tmp_path: Path) -> None:
        hub.cdn.fault("*", Fault(short=1000), times=1)
        assert contents(fetch(hub, tmp_path)) == FILES
