"""A real daemon of a user of its own, and what others of this host can do with what it serves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.host import safetensors
from tests.isolation.host import Host, serving
from tests.isolation.table import ROWS, documented
from tests.isolation.users import DAEMON, MEMBER, OUTSIDER, READ_ONLY_SHM, Become
from tests.support.origin import Origin

MODEL = safetensors(1 << 18)
SUM = hashlib.sha256(MODEL).hexdigest()
FILE = "model.safetensors"


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin({FILE: MODEL}) as origin:
        yield origin


@pytest.fixture(scope="module")
def host(become: Become) -> Iterator[Host]:
    with serving(become, f'[daemon]\nsocket_group = "{DAEMON.gid}"\n') as host:
        yield host


@pytest.fixture(scope="module")
def segment(host: Host, origin: Origin) -> Path:
    """Leased by a member of the group."""
    leased = host.worker(MEMBER)("acquire", ref=origin.url(FILE))
    assert leased["mapped"] == leased["read"] == {FILE: SUM}
    return Path("/dev/shm" + leased["segments"][FILE])


def test_a_user_outside_of_the_group_reaches_nothing(host: Host, origin: Origin, segment: Path) -> None:
    outside = host.worker(OUTSIDER)
    for do in ("acquire", "fetch", "resolve", "model", "verify"):
        assert outside.refused(do, ref=origin.url(FILE)).kind == "SocketDenied"
    for do in ("list", "status"):
        assert outside.refused(do).kind == "SocketDenied"
    assert outside("read", path=str(segment)) == "PermissionError"
    assert outside("names", path=str(host.state_dir)) == "PermissionError"
    model = next((host.state_dir / "models").glob(f"*/*/{FILE}"))
    assert outside("read", path=str(model)) == "PermissionError"


@pytest.mark.parametrize(("who", "user"), [("member", MEMBER), ("other", OUTSIDER)])
def test_nobody_else_alters_what_is_leased(host: Host, segment: Path, who: str, user: object) -> None:
    before = segment.stat()
    pid = host.process.pid
    asked = "".join(f"{attempt.__name__} {segment} {pid}\n" for attempt in ROWS.values())
    assert isinstance(user, type(MEMBER))
    out = host.become.run(user, "-m", "tests.isolation.attempts", stdin=asked)
    found = dict(line.split() for line in out.splitlines())
    assert {row: found[attempt.__name__] for row, attempt in ROWS.items()} == documented()[who]
    now = segment.stat()
    assert (now.st_ino, now.st_mode, now.st_size) == (before.st_ino, before.st_mode, len(MODEL))
    assert now.st_mode & 0o7777 == 0o440
    assert hashlib.sha256(segment.read_bytes()).hexdigest() == SUM


def test_a_worker_in_a_container_reads_through_a_read_only_mount(host: Host, origin: Origin, segment: Path) -> None:
    process = host.become.start(MEMBER, "-m", "tests.isolation.worker", host.socket, mounts=[READ_ONLY_SHM])
    with process:
        assert process.stdin is not None
        out, err = process.communicate(f'{{"do": "acquire", "ref": "{origin.url(FILE)}"}}\n', timeout=60)
    assert process.returncode == 0, err
    assert out.count(SUM) == 2


def test_blobs_on_disk_are_the_groups_to_read_only(host: Host, segment: Path) -> None:
    (blob,) = (host.state_dir / "blobs" / "sha256").glob("*/*")
    model = next((host.state_dir / "models").glob(f"*/*/{FILE}"))
    asked = "".join(
        f"{name} {path} {host.process.pid}\n"
        for path in (blob, model)
        for name in ("open_read", "open_write", "unlink")
    )
    member = host.become.run(MEMBER, "-m", "tests.isolation.attempts", stdin=asked)
    assert [line.split()[1] for line in member.splitlines()] == ["ok", "EACCES", "EACCES"] * 2
    outsider = host.become.run(OUTSIDER, "-m", "tests.isolation.attempts", stdin=asked)
    assert {line.split()[1] for line in outsider.splitlines()} == {"EACCES"}
