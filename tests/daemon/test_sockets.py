"""`[[sockets]]`: what is written, and every fault by its key."""

from __future__ import annotations

import grp
import os
from pathlib import Path

import pytest

from tests.daemon.test_config import read
from weightd.core.errors import ConfigError
from weightd.core.refs import parse_ref
from weightd.daemon.sections.sockets import SocketConfig, tenants_of

A = {"name": "a", "path": "a.sock", "group": "61014", "allow": ["hf://org/*", "tiny"]}
B = {"name": "b", "path": "b.sock", "group": "61015", "allow": ["s3://b/"]}


def text(*sockets: dict[str, object], before: str = "") -> str:
    """As TOML."""
    lines = [before]
    for one in sockets:
        lines.append("[[sockets]]")
        for key, value in one.items():
            shown = str(value).lower() if isinstance(value, bool) else str(value).replace("'", '"')
            lines.append(f"{key} = {shown if not isinstance(value, str) else chr(34) + value + chr(34)}")
    return "\n".join(lines)


def test_what_is_written(tmp_path: Path) -> None:
    first = SocketConfig("a", tmp_path / "a.sock", 61014, 0o660, ("hf://org/*", "tiny"), False)
    second = SocketConfig("b", Path("/run/b.sock"), 61015, 0o600, ("s3://b/",), True)
    found = read(tmp_path, text(A, {**B, "path": "/run/b.sock", "mode": "0600", "operate": True}))
    assert found.sockets == (first, second)
    tenants = tenants_of(found.sockets)
    assert tenants.who(parse_ref("hf://org/m")) == {"a"}
    assert [t.operate for t in tenants] == [False, True]
    assert read(tmp_path, "").sockets == ()


def test_a_configured_model_is_not_allowed_by_being_configured(tmp_path: Path) -> None:
    models = '[models.tiny]\nsource = "https://h/f"\n[models.other]\nsource = "https://h/g"\n'
    tenants = tenants_of(read(tmp_path, text(A, before=models)).sockets)
    assert tenants.who(parse_ref("tiny")) == {"a"}
    assert tenants.who(parse_ref("other")) == set()


def test_a_group_by_its_name(tmp_path: Path) -> None:
    group = next(g for g in grp.getgrall() if g.gr_gid != os.getegid())
    (one,) = read(tmp_path, text({**A, "group": group.gr_name})).sockets
    assert one.gid == group.gr_gid


FAULTS = {
    "same path": ([A, {**B, "path": "./x/../a.sock"}], "sockets.1.path", "stands twice"),
    "same name": ([A, {**B, "name": "a"}], "sockets.1.name", "'a' stands twice"),
    "same group": ([A, {**B, "group": "61014"}], "sockets.1.group", "is the group of 'a'"),
    "main socket": ([{**A, "path": "w.sock"}], "sockets.0.path", "is the daemon's own socket"),
    "main group": ([{**A, "group": "61001"}], "sockets.0.group", "is the group of the daemon's own socket"),
    "no group": ([{**A, "group": ""}], "sockets.0.group", "is empty"),
    "unknown group": ([A, {**B, "group": "no-such-group"}], "sockets.1.group", "there is no group"),
    "group missing": ([{k: v for k, v in A.items() if k != "group"}], "sockets.0", "required field group"),
    "no path": ([{**A, "path": ""}], "sockets.0.path", "is empty"),
    "empty allow": ([{**A, "allow": []}], "sockets.0.allow", "is empty"),
    "allow missing": ([{k: v for k, v in A.items() if k != "allow"}], "sockets.0", "required field allow"),
    "no pattern": ([A, {**B, "allow": ["ftp://x/"]}], "sockets.1.allow", "a pattern begins with"),
    "mode": ([{**A, "mode": "rw"}], "sockets.0.mode", "is not a mode"),
    "name": ([{**A, "name": "../a"}], "sockets.0.name", "lower-case letters"),
    "name too long": ([{**A, "name": "a" * 33}], "sockets.0.name", "lower-case letters"),
    "unknown key": ([{**A, "rights": "all"}], "sockets.0.rights", "unknown key"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_names_its_key_and_line(tmp_path: Path, case: str) -> None:
    sockets, key, words = FAULTS[case]
    before = '[daemon]\nsocket = "w.sock"\nsocket_group = "61001"\n'
    with pytest.raises(ConfigError) as e:
        read(tmp_path, text(*sockets, before=before))
    assert f"{key}: " in e.value.message
    assert words in e.value.message
    assert ", line " in e.value.message
    assert e.value.remedy


def test_without_a_group_of_its_own_the_daemons_socket_has_that_of_its_process(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="group of the daemon's own socket"):
        read(tmp_path, text({**A, "group": str(os.getegid())}))
