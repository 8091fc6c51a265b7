"""Each refusal of a Hub is an error of its own, with what to do; and no token goes anywhere else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.sources.hub.world import CHOSEN, FILES, World
from tests.support.hub import Hub, Mirror
from tests.support.hub_repos import Repo
from tests.support.origin import Fault
from weightd.core.credentials import Credential
from weightd.core.errors import (
    ConfigError,
    RepoDisabled,
    RepoGated,
    RepoNotFound,
    RevisionNotFound,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    TokenRefused,
    WeightdError,
)
from weightd.core.manifest import FileSpec

ALICE, BOB, OTHER = "hf_" + "a" * 30, "hf_" + "b" * 30, "hf_" + "o" * 30


@pytest.fixture(autouse=True)
def _users(hub: Hub) -> None:
    hub.token(ALICE, "alice")
    hub.token(BOB, "bob")


async def refused(world: World, kind: type[WeightdError], text: str = "hf://org/name") -> WeightdError:
    """How resolving, or else reading a file, ends."""
    with pytest.raises(WeightdError) as e:
        await world.contents(text)
    assert type(e.value) is kind, e.value
    assert e.value.remedy
    for token in (ALICE, BOB, OTHER):
        assert token not in f"{e.value!r} {e.value}"
    return e.value


async def test_private(world: World, repo: Repo) -> None:
    repo.private, repo.readers = True, {"alice"}
    error = await refused(world, RepoNotFound)
    assert "does not exist, or is private" in error.message
    assert "HF_TOKEN" in error.remedy
    assert error.ref == "hf://org/name"
    world.token = BOB
    error = await refused(world, RepoNotFound)
    assert "may not see it" in error.message
    assert "another's token" in error.remedy
    world.token = ALICE
    assert set(await world.contents()) == set(CHOSEN)


async def test_missing(world: World) -> None:
    assert "org/name does not exist" in (await refused(world, RepoNotFound)).message
    world.token = ALICE
    assert "org/name does not exist" in (await refused(world, RepoNotFound)).message


@pytest.mark.parametrize("gated_lists", [False, True])
async def test_gated(world: World, repo: Repo, gated_lists: bool) -> None:
    repo.gated, repo.gated_lists, repo.readers = "auto", gated_lists, {"alice"}
    error = await refused(world, RepoGated)
    assert f"Accept the conditions at {world.hub.endpoint}/org/name, then give a token" in error.remedy
    world.token = BOB
    error = await refused(world, RepoGated)
    assert "as the user of the token" in error.remedy
    assert "restricted" in error.message
    world.token = ALICE
    assert set(await world.contents()) == set(CHOSEN)


async def test_disabled(world: World, repo: Repo) -> None:
    repo.disabled = True
    assert "is disabled" in (await refused(world, RepoDisabled)).message


async def test_no_such_revision(world: World, repo: Repo) -> None:
    repo.tag("v1.0", repo.commit({}))
    error = await refused(world, RevisionNotFound, "hf://org/name@v1.1")
    assert error.remedy == "There are v1.0 and others."
    assert "main" in (await refused(world, RevisionNotFound, "hf://org/name@zzzzzzz")).remedy
    unknown = "f" * 40
    assert unknown in (await refused(world, RevisionNotFound, f"hf://org/name@{unknown}")).message


async def test_refs_that_cannot_be_listed(world: World, repo: Repo) -> None:
    world.hub.fault("api/models/org/name/refs", Fault(status=404))
    assert "/tree/main" in (await refused(world, RevisionNotFound, "hf://org/name@v1.1")).remedy


async def test_renamed(world: World, repo: Repo, hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    hub.rename(repo, "new/name")
    with caplog.at_level("INFO", "weightd.sources"):
        manifest = await world.resolve()
    assert "org/name is called new/name now" in caplog.text
    assert manifest.ref == "hf://org/name"
    assert all(f.url.startswith("hf://new/name@") for f in manifest.files)
    assert {f.path: await world.read(f) for f in manifest.files} == {name: FILES[name] for name in CHOSEN}


async def test_deleted_meanwhile(world: World, repo: Repo, hub: Hub) -> None:
    manifest = await world.resolve()
    del hub._repos["org/name"]
    with pytest.raises(RepoNotFound) as e:
        await world.read(manifest.files[0])
    assert e.value.file == manifest.files[0].path


async def test_a_token_that_is_none(world: World, repo: Repo) -> None:
    world.token = OTHER
    error = await refused(world, TokenRefused)
    assert "refuses the token of HF_TOKEN or hf auth login" in error.message
    assert "another Hub" in error.remedy


async def test_403_without_a_code(world: World, repo: Repo, hub: Hub) -> None:
    hub.fault("api/models/*", Fault(status=403))
    assert "fine-grained" in (await refused(world, SourceDenied)).remedy


async def test_a_hub_in_trouble(world: World, repo: Repo, hub: Hub) -> None:
    hub.fault("api/models/*", Fault(status=503), times=2)
    assert set(await world.contents()) == set(CHOSEN)
    assert len(world.waits) == 2
    hub.fault("api/models/*", Fault(status=503))
    await refused(world, SourceUnavailable)
    hub.fault("api/models/*", Fault(hang_up=True))
    await refused(world, SourceUnavailable)


async def test_a_file_that_the_list_has_and_the_commit_has_not(world: World, repo: Repo) -> None:
    repo.commit({}, extra=({"type": "file", "oid": "0" * 40, "size": 5, "path": "z.json"},))
    error = await refused(world, SourceNotFound)
    assert error.file == "z.json"


async def test_the_token_goes_to_the_hub_alone(world: World, repo: Repo, hub: Hub) -> None:
    world.token = ALICE
    await world.contents()
    assert {r.headers.get("authorization") for r in hub.requests} == {f"Bearer {ALICE}"}
    assert hub.cdn.requests
    assert not hub.cdn.violations


async def test_a_mirror_may_send_it_nowhere(world: World, repo: Repo, hub: Hub) -> None:
    """What a token is for is the endpoint; the Hub behind it answers as to anybody."""
    repo.gated, repo.readers = "auto", {"alice"}
    with Mirror(hub) as mirror:
        world.home, world.token = world.home._replace(endpoint=mirror.endpoint), ALICE
        error = await refused(world, RepoGated)
        assert any(r.headers.get("authorization") == f"Bearer {ALICE}" for r in mirror.requests)
    assert not any("authorization" in r.headers for r in hub.requests)
    assert mirror.endpoint in error.remedy


async def test_tokens_of_the_configuration(world: World, repo: Repo, hub: Hub, tmp_path: Path) -> None:
    """The one for the repository, else that of all, else that of the environment."""
    repo.private, repo.readers = True, {"alice"}
    world.token = OTHER
    files = {name: tmp_path / name for name in ("alice", "bob")}
    files["alice"].write_text(f"{ALICE}\n")
    files["bob"].write_text(BOB)
    world.options = msgspec.structs.replace(world.options, token_file=str(files["alice"]))
    assert set(await world.contents()) == set(CHOSEN)
    only = Credential("hf://org/*", token_file=str(files["bob"]))
    world.options = msgspec.structs.replace(world.options, credentials=(only,))
    assert str(files["bob"]) in (await refused(world, RepoNotFound)).message
    world.options = msgspec.structs.replace(world.options, credentials=(Credential("hf://org/name", anonymous=True),))
    assert "or is private" in (await refused(world, RepoNotFound)).message


@pytest.mark.parametrize("text", [b"", b"two words", "hf_ü".encode(), None])
async def test_token_files_that_hold_none(world: World, repo: Repo, tmp_path: Path, text: bytes | None) -> None:
    if text is not None:
        (tmp_path / "token").write_bytes(text)
    world.options = msgspec.structs.replace(world.options, token_file=str(tmp_path / "token"))
    error = await refused(world, SourceDenied)
    assert "two words" not in str(error)


async def test_an_endpoint_of_its_own(world: World, repo: Repo, hub: Hub) -> None:
    """For some repositories: the token that is configured for them goes there."""
    world.home, world.token = world.home._replace(endpoint="http://127.0.0.1:1"), ALICE
    world.options = msgspec.structs.replace(
        world.options, credentials=(Credential("hf://org/*", endpoint=hub.endpoint, anonymous=True),)
    )
    assert set(await world.contents()) == set(CHOSEN)
    assert not any("authorization" in r.headers for r in hub.requests)


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://h", "https://u:s3cr3t@h", "https://", "https://[h"])
async def test_endpoints_that_are_none(world: World, repo: Repo, endpoint: str) -> None:
    world.home = world.home._replace(endpoint=endpoint)
    assert "s3cr3t" not in str(await refused(world, ConfigError))


async def test_a_file_by_a_name_that_moved(world: World, repo: Repo, hub: Hub) -> None:
    """A file that was pinned under the old name is read under the new one."""
    (file,) = (await world.resolve("hf://org/name/config.json")).files
    hub.rename(repo, "new/name")
    assert isinstance(file, FileSpec)
    assert await world.read(file) == FILES["config.json"]
