"""What tenants reach of the files, as `TenantFiles` makes it and takes it back."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.engine.rig import sha256
from weightd.core.allow import AllowList
from weightd.core.digest import Digest
from weightd.core.tenants import Tenant, Tenants
from weightd.storage import acl
from weightd.storage.tenant_files import Due, TenantFiles

ONE, TWO, OWN = 61_101, 61_102, 61_100
D = sha256(b"x")


def tenants(**gids: int) -> Tenants:
    return Tenants(Tenant(name, gid, AllowList()) for name, gid in gids.items())


def files(state: Path, **gids: int) -> TenantFiles:
    """Opened."""
    found = TenantFiles(state, tenants(**gids), OWN)
    found.open()
    return found


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    (path / "models").mkdir(parents=True, mode=0o755)
    path.chmod(0o750)
    return path


def blob(state: Path, content: bytes = b"x", name: str = "blob") -> Path:
    path = state / name
    path.write_bytes(content)
    path.chmod(0o440)
    return path


def test_without_tenants_nothing_is_made(state: Path) -> None:
    assert not TenantFiles(state, Tenants(), OWN).needed
    assert TenantFiles(state, tenants(a=ONE), OWN).needed


def test_what_is_open_to_whom(state: Path) -> None:
    files(state, a=ONE, b=TWO)
    passing = {ONE: acl.PASS, TWO: acl.PASS}
    assert acl.groups(state) == acl.groups(state / "tenants") == passing
    assert acl.groups(state / "tenants/a") == {ONE: acl.LIST}
    assert acl.groups(state / "tenants/b/models") == {TWO: acl.LIST}
    assert acl.groups(state / "models") == {OWN: acl.LIST}
    for path in (state, state / "models", state / "tenants", state / "tenants/a"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o007


def test_a_tenant_that_is_gone_or_has_another_group_finds_nothing(state: Path) -> None:
    for name in "ab":
        files(state, a=ONE, b=TWO).trees[name].publish("m", "r", {"f": blob(state)})
    again = files(state, a=ONE, b=61_103)
    assert (state / "tenants/a/models/m/r").is_dir()
    assert not (state / "tenants/b/models/m").exists()
    assert acl.groups(state / "tenants/b/blobs") == {61_103: acl.LIST}
    assert acl.groups(state) == {ONE: acl.PASS, 61_103: acl.PASS}
    assert set(again.trees) == {"a", "b"}
    files(state, a=ONE)
    assert [p.name for p in (state / "tenants").iterdir()] == ["a"]


def test_the_last_tenant_takes_all_of_it_along(state: Path) -> None:
    mode = state.stat().st_mode
    first = files(state, a=ONE)
    path = blob(state)
    first.admit([Due(frozenset("a"), D, path)])
    last = TenantFiles(state, Tenants(), OWN)
    assert last.needed
    last.open()
    last.settle([Due(frozenset(), D, path)])
    assert not last.needed
    assert state.stat().st_mode == mode
    for left in (state, path):
        assert acl.ACCESS not in os.listxattr(left)


def test_a_blob_and_its_segment_are_read_by_who_was_admitted(state: Path) -> None:
    found, path, segment = files(state, a=ONE, b=TWO), blob(state), blob(state, name="segment")
    found.admit([Due(frozenset("a"), D, path, segment)])
    found.admit([Due(frozenset("b"), D, path)])
    assert acl.groups(path) == {ONE: acl.READ, TWO: acl.READ}
    assert acl.groups(segment) == {ONE: acl.READ}
    assert found.blob("a", D).samefile(path)
    assert not found.blob("a", D).is_symlink()
    for one in (path, segment):
        assert stat.S_IMODE(one.stat().st_mode) == 0o440


def test_what_is_not_there_is_left_out(state: Path) -> None:
    found = files(state, a=ONE)
    found.admit([Due(frozenset("a"), D, state / "none", state / "none either")])
    assert list((state / "tenants/a/blobs").iterdir()) == []


def test_a_blob_that_was_replaced_is_found_anew(state: Path) -> None:
    found = files(state, a=ONE)
    old = blob(state)
    found.admit([Due(frozenset("a"), D, old)])
    old.unlink()
    new = blob(state, b"y")
    found.admit([Due(frozenset("a"), D, new)])
    assert found.blob("a", D).read_bytes() == b"y"
    assert [p.name for p in (state / "tenants/a/blobs").iterdir()] == [D.removeprefix("sha256:")]


def test_withdrawn_under_every_name(state: Path) -> None:
    found = files(state, a=ONE, b=TWO)
    path = blob(state)
    found.admit([Due(frozenset("ab"), D, path)])
    found.withdraw(D, path)
    found.withdraw(D, path)
    assert path.stat().st_nlink == 1
    assert acl.groups(path) == {}
    path.unlink()
    found.withdraw(D, path)


def test_settled_are_those_that_are_due_and_no_others(state: Path) -> None:
    found, path, other = files(state, a=ONE, b=TWO), blob(state), blob(state, b"z", "other")
    gone: Digest = sha256(b"z")
    found.admit([Due(frozenset("ab"), D, path)])
    found.admit([Due(frozenset("b"), gone, other)])
    found.settle([Due(frozenset("a"), D, path)])
    assert acl.groups(path) == {ONE: acl.READ}
    assert found.blob("a", D).exists()
    assert list((state / "tenants/b/blobs").iterdir()) == []


def test_what_was_made_without_a_umask_is_closed_to_others(state: Path) -> None:
    places = [state / name for name in ("models", "blobs", "ingest")]
    for place in places:
        place.mkdir(exist_ok=True)
        place.chmod(0o777)
    files(state, a=ONE)
    assert {stat.S_IMODE(place.stat().st_mode) for place in places} == {0o770}
