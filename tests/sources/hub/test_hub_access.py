"""Who may read what of the scripted Hub: each refusal raises the client's own class."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.support.hub import Hub
from tests.support.hub_repos import Repo

ALICE, BOB = "hf_alice_secret", "hf_bob_secret"


@pytest.fixture
def repo(hub: Hub) -> Repo:
    repo = hub.repo("org/name")
    repo.commit({"config.json": b"{}", "model.safetensors": bytes(1000)})
    hub.token(ALICE, "alice")
    hub.token(BOB, "bob")
    return repo


def refused(hub: Hub, token: str | bool, *, api: bool, revision: str = "main", file: str = "config.json") -> object:
    """The class, status and X-Error-Code with which the client is refused; None when it is not."""
    try:
        if api:
            list(HfApi(endpoint=hub.endpoint, token=token).list_repo_tree("org/name", revision=revision))
        else:
            url = hf_hub_url("org/name", file, revision=revision, endpoint=hub.endpoint)
            get_hf_file_metadata(url, token=token)
    except HfHubHTTPError as e:
        return type(e), e.response.status_code, e.response.headers.get("X-Error-Code", "")
    return None


@pytest.mark.parametrize("api", [True, False])
def test_private(hub: Hub, repo: Repo, api: bool) -> None:
    repo.private, repo.readers = True, {"alice"}
    assert refused(hub, ALICE, api=api) is None
    assert refused(hub, BOB, api=api) == (RepositoryNotFoundError, 404, "RepoNotFound")
    assert refused(hub, False, api=api) == (RepositoryNotFoundError, 401, "RepoNotFound")


@pytest.mark.parametrize("api", [True, False])
def test_missing_repo(hub: Hub, api: bool) -> None:
    hub.token(ALICE, "alice")
    assert refused(hub, ALICE, api=api) == (RepositoryNotFoundError, 404, "RepoNotFound")
    assert refused(hub, False, api=api) == (RepositoryNotFoundError, 401, "RepoNotFound")


@pytest.mark.parametrize("lists", [True, False])
def test_gated(hub: Hub, repo: Repo, lists: bool) -> None:
    repo.gated, repo.gated_lists, repo.readers = "manual", lists, {"alice"}
    for api in (True, False):
        assert refused(hub, ALICE, api=api) is None
        closed = lists or not api
        assert refused(hub, BOB, api=api) == ((GatedRepoError, 403, "GatedRepo") if closed else None)
        assert refused(hub, False, api=api) == ((GatedRepoError, 401, "GatedRepo") if closed else None)
    assert HfApi(endpoint=hub.endpoint, token=ALICE).model_info("org/name").gated == "manual"


@pytest.mark.parametrize("api", [True, False])
def test_disabled(hub: Hub, repo: Repo, api: bool) -> None:
    repo.disabled = True
    assert refused(hub, ALICE, api=api) == (DisabledRepoError, 403, "")


@pytest.mark.parametrize("api", [True, False])
def test_missing_revision(hub: Hub, repo: Repo, api: bool) -> None:
    missing = (RevisionNotFoundError, 404, "RevisionNotFound")
    assert refused(hub, False, api=api, revision="nothing") == missing
    assert refused(hub, False, api=api, revision="refs/pr/7") == missing
    assert refused(hub, False, api=api, revision="0" * 40) == missing


def test_missing_entry(hub: Hub, repo: Repo, tmp_path: Path) -> None:
    assert refused(hub, False, api=False, file="no.json") == (RemoteEntryNotFoundError, 404, "EntryNotFound")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("org/name", "no.json", endpoint=hub.endpoint, cache_dir=tmp_path, token=False)
    # The answer names the commit: the client notes for which there is no such file.
    assert (tmp_path / "models--org--name/.no_exist" / repo.refs["refs/heads/main"] / "no.json").exists()
    with pytest.raises(RemoteEntryNotFoundError):
        list(HfApi(endpoint=hub.endpoint, token=False).list_repo_tree("org/name", "no/folder"))


@pytest.mark.parametrize("api", [True, False])
def test_bad_token(hub: Hub, repo: Repo, api: bool) -> None:
    assert refused(hub, "hf_unknown", api=api) == (HfHubHTTPError, 401, "")


def test_renamed_private(hub: Hub, repo: Repo) -> None:
    """A new name is told to those only who may read."""
    repo.private, repo.readers = True, {"alice"}
    hub.rename(repo, "other/name")
    assert refused(hub, BOB, api=True) == (RepositoryNotFoundError, 404, "RepoNotFound")
    assert refused(hub, ALICE, api=True) is None
    assert refused(hub, ALICE, api=False) is None


def test_token_stays_at_the_hub(hub: Hub, repo: Repo, tmp_path: Path) -> None:
    repo.private, repo.readers = True, {"alice"}
    made = snapshot_download("org/name", endpoint=hub.endpoint, cache_dir=tmp_path, token=ALICE)
    assert {path.name for path in Path(made).iterdir()} == {"config.json", "model.safetensors"}
    assert all(request.headers["authorization"] == f"Bearer {ALICE}" for request in hub.requests)
    assert len(hub.cdn.requests) == 1
    assert not hub.cdn.violations


def test_token_at_the_cdn_is_a_violation(hub: Hub, repo: Repo) -> None:
    url = hf_hub_url("org/name", "model.safetensors", endpoint=hub.endpoint)
    location = get_hf_file_metadata(url, token=False).location
    with pytest.raises(HfHubHTTPError, match="Bad request"):
        get_hf_file_metadata(location, token=ALICE)
    assert hub.cdn.violations == [location.removeprefix(hub.cdn.url()[:-1])]
