"""`weightd fetch hf://…`: the daemon and the command line, against a Hub that the unmodified client reads too."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session as close_client
from huggingface_hub import snapshot_download

from tests.e2e.host import WEIGHTD, Host, assert_refused, clean_environment, daemon, safetensors
from tests.support.hub import Hub
from tests.support.hub_repos import Repo
from tests.support.origin import Fault
from tests.support.serving import run_script
from weightd import Client
from weightd.core.verification import Verification

TOKEN = "hf_" + "s" * 30
FILES = {
    "config.json": b'{"model_type": "test"}',
    "LICENSE": b"all of it\n" * 1000,
    "model.safetensors": safetensors(40 << 20, b"hub"),
    "1_Pooling/config.json": b"{}",
}
LEFT_OUT = {"pytorch_model.bin": b"pickled", "tf_model.h5": b"h5", ".gitattributes": b"*.bin filter=lfs\n"}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        hub.token(TOKEN, "alice")
        repo = hub.repo("org/name")
        repo.commit({**FILES, **LEFT_OUT})
        repo.private, repo.readers = True, {"alice"}
        yield hub


@contextmanager
def host_of(hub: Hub, tmp_path: Path, fetch: str = "", cache: str = "off") -> Iterator[Host]:
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    text = f'[hf]\nendpoint = "{hub.endpoint}"\ntoken_file = "{token}"\ncache = "{cache}"\n'
    with daemon(config=f"[fetch]\nretries = 1\nstall_timeout_s = 5.0\n{fetch}{text}") as host:
        yield host


@pytest.fixture(scope="module")
def host(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host_of(hub, tmp_path_factory.mktemp("token")) as host:
        yield host


def tree(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_as_the_client_has_it(hub: Hub, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    theirs = snapshot_download(
        "org/name",
        endpoint=hub.endpoint,
        token=TOKEN,
        cache_dir=tmp_path / "cache",
        ignore_patterns=list(LEFT_OUT),
    )
    close_client()
    ended = host.cli("fetch", "hf://org/name", "--json")
    assert ended.code == 0, ended
    with Client(host.socket) as client, client.acquire("hf://org/name") as lease:
        assert tree(Path(lease.path)) == tree(Path(theirs)) == FILES
        assert Path(lease.path).name == Path(theirs).name, "the revision is the commit"
        levels = {path: file.verification for path, file in lease.files.items()}
        assert levels == {p: Verification.SHA256 if p.endswith(".safetensors") else Verification.GIT for p in FILES}
        assert lease.verification is Verification.GIT
    assert not hub.cdn.violations
    assert TOKEN not in host.text() + ended.out + ended.err


def test_and_back_into_a_cache_of_the_client(host: Host, tmp_path: Path) -> None:
    """What the Hub lists as LFS and what as git blobs is known: the client finds it without the network."""
    host.fetch("hf://org/name@main")
    assert host.cli("link", "--hf-cache", tmp_path, "hf://org/name@main").code == 0
    found = snapshot_download("org/name", cache_dir=tmp_path, local_files_only=True)
    assert tree(Path(found)) == FILES


def test_the_level_in_words(host: Host) -> None:
    host.fetch("hf://org/name")
    assert "git id verified" in host.cli("inspect", "hf://org/name").out
    (model,) = [m for m in host.cli("ls", "--json").objects if m["ref"] == "hf://org/name"]
    assert {f["path"]: f["verification"] for f in model["files"]}["config.json"] == "git"


def run(*args: str | Path, **env: str) -> dict[str, Any]:
    """The last object that the command line prints, in an environment with these variables."""
    known = {k: v for k, v in clean_environment().items() if not k.startswith("HF_")}
    done = subprocess.run(
        [*WEIGHTD, *map(str, args), "--json"], capture_output=True, text=True, timeout=60, env={**known, **env}, cwd="/"
    )
    assert "Traceback" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "text": done.stdout + done.stderr}


def test_the_environment(hub: Hub, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE, as the client reads them."""
    base = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}
    refused = run("fetch", "hf://org/name", "--to", tmp_path / "a", **base)
    assert (refused["kind"], refused["exit_code"]) == ("RepoNotFound", 4)
    assert "or is private" in refused["message"]
    fetched = run("fetch", "hf://org/name", "--to", tmp_path / "a", **base, HF_TOKEN=TOKEN)
    assert fetched["verification"] == "git", fetched
    assert tree(tmp_path / "a") == FILES
    assert TOKEN not in fetched["text"]
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text(TOKEN)
    assert run("fetch", "hf://org/name", "--to", tmp_path / "b", **base)["verification"] == "git"
    offline = run("fetch", "hf://org/name", "--to", tmp_path / "c", **base, HF_HUB_OFFLINE="1")
    assert offline["kind"] == "NotInCache", offline


def test_refusals_reach_the_command_line(host: Host, hub: Hub) -> None:
    gated: Repo = hub.repo("org/gated")
    gated.commit({"model.safetensors": safetensors(seed=b"gated")})
    gated.gated = "manual"
    before = len(host.held())
    refused = host.cli("fetch", "hf://org/gated", "--json")
    assert_refused(refused, 5, "RepoGated", "org/gated is gated", f"{hub.endpoint}/org/gated")
    assert_refused(host.cli("fetch", "hf://org/nothing", "--json"), 4, "RepoNotFound", "org/nothing", "token")
    refused = host.cli("fetch", "hf://org/name@v9", "--json")
    assert_refused(refused, 4, "RevisionNotFound", "no revision 'v9'", "There are main")
    assert_refused(host.cli("fetch", "hf://datasets/org/name", "--json"), 3, "RefSyntax", "only models")
    assert len(host.held()) == before


def test_bytes_that_are_not_what_the_list_says(host: Host, hub: Hub) -> None:
    """Of a git blob: mended where the second answer is right, else refused."""
    repo = hub.repo("org/lies")
    commit = repo.commit({"config.json": b'{"a": 1}', "model.safetensors": safetensors(seed=b"lies")})
    wrong = Fault(status=206, body=b'{"a": 2}', headers={"Content-Range": "bytes 0-7/8"})
    hub.fault(f"api/resolve-cache/models/org/lies/{commit}/config.json", wrong, times=1)
    host.fetch("hf://org/lies")
    with Client(host.socket) as client, client.acquire("hf://org/lies") as lease:
        assert Path(lease.path, "config.json").read_bytes() == b'{"a": 1}'
    assert "config.json: 1 of 1 parts were wrong and were fetched again" in host.text()
    file = replace(repo.commits[commit].files["config.json"], sha1="f" * 40)
    lying = repo.commit({"config.json": file})
    refused = host.cli("fetch", f"hf://org/lies@{lying}", "--json")
    assert_refused(refused, 10, "GitIdMismatch", "config.json", "f" * 40)


def test_from_the_cache_of_the_host(hub: Hub, tmp_path: Path) -> None:
    """The daemon takes from there what it can, and fetches what is wrong there."""
    cache = tmp_path / "hub"
    path = snapshot_download("org/name", endpoint=hub.endpoint, token=TOKEN, cache_dir=cache)
    close_client()
    Path(path, "config.json").resolve().write_bytes(bytes(len(FILES["config.json"])))
    with host_of(hub, tmp_path, cache=str(cache)) as host:
        before = hub.resolves, len(hub.cdn.requests)
        host.fetch("hf://org/name")
        with Client(host.socket) as client, client.acquire("hf://org/name") as lease:
            assert tree(Path(lease.path)) == FILES
        assert (hub.resolves, len(hub.cdn.requests)) == (before[0] + 1, before[1])
        assert "the Hugging Face cache has a wrong config.json" in host.text()


@pytest.mark.parametrize("processes", [0, 2])
def test_an_address_that_ends_in_mid_fetch(hub: Hub, tmp_path: Path, processes: int) -> None:
    """It is renewed once, for all requests that are still to come."""
    ref = "hf://org/name/model.safetensors"
    with host_of(hub, tmp_path, f'processes = {processes}\nmax_rate = "20MiB"\n') as host:
        before, asked = hub.resolves, len(hub.cdn.requests)
        with ThreadPoolExecutor(1) as thread:
            fetched = thread.submit(host.fetch, ref)
            hub.cdn.wait_for(asked + 3)
            hub.cdn.expire()
            fetched.result(60)
        with Client(host.socket) as client, client.acquire(ref) as lease:
            assert Path(lease.path, "model.safetensors").read_bytes() == FILES["model.safetensors"]
        assert 403 in {r.status for r in hub.cdn.requests[asked:]}
        assert hub.resolves - before == 2


def test_what_is_the_same_is_not_fetched_again(host: Host, hub: Hub) -> None:
    """A new commit costs what it changed; and its directory is another."""
    repo = hub.repo("org/moving")
    first = repo.commit(FILES)
    host.fetch("hf://org/moving")
    before = len(hub.asked_of("org/moving/resolve/*")), len(hub.cdn.requests)
    second = repo.commit({"config.json": b'{"model_type": "changed"}'})
    host.fetch(f"hf://org/moving@{second}")
    with Client(host.socket) as client, client.acquire(f"hf://org/moving@{second}") as lease:
        assert tree(Path(lease.path)) == FILES | {"config.json": b'{"model_type": "changed"}'}
        assert lease.revision == second != first
    asked = hub.asked_of("org/moving/resolve/*")[before[0] :]
    assert {r.path.rpartition("/")[2] for r in asked} == {"config.json"}
    assert len(hub.cdn.requests) == before[1]


OFFLINE = """if True:
    import os, sys
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": sys.argv[1], "HF_HUB_DISABLE_TELEMETRY": "1"}
    from huggingface_hub import snapshot_download
    print(snapshot_download("org/name"))"""


def test_linked_as_a_cache_of_the_client(hub: Hub, host: Host, tmp_path: Path) -> None:
    """Without the network the unmodified client finds what the daemon holds; and it is what it would hold itself."""
    assert host.cli("fetch", "hf://org/name").code == 0
    cache = tmp_path / "linked"
    with Client(host.socket) as client:
        commit = client.model("hf://org/name").revision
    snapshot = f"{cache}/models--org--name/snapshots/{commit}"
    told = host.cli("link", "hf://org/name", "--hf-cache", str(cache))
    assert told.code == 0, told
    assert told.out.startswith("hf://org/name: 4 files, ")
    assert told.out.endswith(f": {snapshot}\n")
    (again,) = host.cli("link", "hf://org/name", "--hf-cache", str(cache), "--json").objects
    assert (again["kept"], again["hard_links"], again["symlinks"]) == (4, 0, 0)
    assert (again["revision"], again["directory"]) == (commit, snapshot)
    assert run_script(OFFLINE, cache).stdout.strip() == snapshot
    assert tree(Path(snapshot)) == FILES
    snapshot_download(
        "org/name", endpoint=hub.endpoint, token=TOKEN, cache_dir=tmp_path / "own", ignore_patterns=list(LEFT_OUT)
    )
    close_client()
    blobs = [{b.name for b in (root / "models--org--name/blobs").iterdir()} for root in (cache, tmp_path / "own")]
    assert blobs[0] == blobs[1]


def test_what_a_fetch_costs_of_the_quotas(hub: Hub, tmp_path: Path) -> None:
    """Each file in LFS one request of the resolvers, however many ranges; the status tells it."""
    before = hub.resolves
    hub.limit("resolvers", 50)
    with host_of(hub, tmp_path) as host:
        assert host.cli("fetch", "hf://org/name", "--tier", "nvme").code == 0
        status = host.status()
        spent = {quota["bucket"]: quota for quota in status["quotas"]}
        asked = hub.resolves - before
        left = spent["resolvers"].pop("left")
        assert spent["resolvers"] == {
            "origin": hub.endpoint.partition("://")[2],
            "bucket": "resolvers",
            "requests": asked,
            "waits": 0,
        }
        assert 0 < asked <= len(FILES)
        # Of the answer that came last, which need not be the last that was given.
        assert 50 - asked <= left < 50
        assert f"{asked} requests of its quota resolvers, {left} left" in host.cli("status").out
