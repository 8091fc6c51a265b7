"""A real daemon with sockets for two tenants, and all by which one may try to learn what the other has, or reach it."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import safetensors
from tests.isolation.host import Host, WorkerProcess, home, serving
from tests.isolation.table import ROWS, documented
from tests.isolation.users import DAEMON, LANDLORD, MEMBER, OUTSIDER, TENANT_A, TENANT_B, Become
from tests.support.origin import Fault, Origin
from tests.support.tmpfs import mounted

A, B, SHARED, MAIN, LIE = (f"{where}/model.safetensors" for where in ("a", "b", "shared", "main", "b/lie"))
DATA = {name: safetensors(1 << 17, name.encode()) for name in (A, B, SHARED, MAIN, LIE)}
SUM = {name: hashlib.sha256(data).hexdigest() for name, data in DATA.items()}
FILE = "model.safetensors"
UMASK = "umask 0027"
"""As the unit has it."""


def config(origin: Origin, a: str = "a", b: str = "b", *, more: str = "") -> str:
    """`a`, `b`: below which directory of the origin each sees models, beside those that both see."""
    return f"""
[daemon]
socket_group = "{DAEMON.gid}"
{more}
[[sockets]]
name = "a"
path = "a.sock"
group = "{TENANT_A.groups[0]}"
allow = ["{origin.url(a)}/", "{origin.url("shared")}/"]

[[sockets]]
name = "b"
path = "b.sock"
group = "{TENANT_B.groups[0]}"
mode = "0666"
allow = ["{origin.url(b)}/", "{origin.url("shared")}/"]
operate = true
"""


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin(DATA) as origin:
        yield origin


@dataclass
class Scene:
    """`a` and `b` have leased their own model and the shared one, the `member` all three."""

    host: Host
    origin: Origin
    a: WorkerProcess
    b: WorkerProcess
    member: WorkerProcess
    got: dict[str, dict[str, Any]]

    def socket(self, name: str) -> Path:
        return self.host.home / f"{name}.sock"

    def segment(self, name: str) -> Path:
        return Path("/dev/shm" + self.got[name]["segments"][FILE])

    def blob(self, name: str) -> Path:
        return self.host.state_dir / "blobs/sha256" / SUM[name][:2] / SUM[name]


@pytest.fixture(scope="module")
def scene(become: Become, origin: Origin) -> Iterator[Scene]:
    with serving(become, config(origin), UMASK, user=LANDLORD) as host:
        a = host.worker(TENANT_A, host.home / "a.sock")
        b = host.worker(TENANT_B, host.home / "b.sock")
        member = host.worker(MEMBER)
        got = {A: a("acquire", ref=origin.url(A)), SHARED: a("acquire", ref=origin.url(SHARED))}
        got[B] = b("acquire", ref=origin.url(B))
        b("acquire", ref=origin.url(SHARED))
        member("acquire", ref=origin.url(MAIN))
        yield Scene(host, origin, a, b, member, got)


def test_sockets_have_their_groups_and_modes(scene: Scene) -> None:
    for name, gid, mode in (
        ("a", TENANT_A.groups[0], 0o660),
        ("b", TENANT_B.groups[0], 0o666),
        ("w", DAEMON.gid, 0o660),
    ):
        found = scene.socket(name).stat()
        assert (found.st_gid, stat.S_IMODE(found.st_mode), stat.S_ISSOCK(found.st_mode)) == (gid, mode, True)


CONNECT = """
import socket, sys
for path in sys.argv[1:]:
    try:
        socket.socket(socket.AF_UNIX).connect(path)
    except OSError as e:
        print(type(e).__name__)
    else:
        print("ok")
"""


def test_only_the_group_connects(scene: Scene) -> None:
    """B's socket has a mode that lets everybody."""
    sockets, no = [scene.socket(name) for name in "abw"], "PermissionError"
    for user, wanted in {
        TENANT_A: ["ok", "ok", no],
        TENANT_B: [no, "ok", no],
        MEMBER: [no, "ok", "ok"],
        OUTSIDER: [no, "ok", no],
    }.items():
        assert scene.host.become.run(user, "-c", CONNECT, *sockets).split() == wanted


def test_each_has_what_it_may_have(scene: Scene) -> None:
    """By its handles, and by the directory that it is told of, also where the umask leaves others nothing."""
    for name, got in scene.got.items():
        assert got["mapped"] == got["read"] == {FILE: SUM[name]}
    for tenant, worker, own in (("a", scene.a, A), ("b", scene.b, B)):
        tree = scene.host.state_dir / "tenants" / tenant
        assert scene.got[own]["path"].startswith(f"{tree}/models/")
        assert sorted(worker("list")) == sorted(map(scene.origin.url, (own, SHARED)))
        current = Path(scene.got[own]["path"]).parent / "current" / FILE
        assert worker("read", path=str(current)) == SUM[own]
        assert worker("read", path=str(tree / "blobs" / SUM[own])) == SUM[own]
        assert len(worker("names", path=str(tree / "models"))) == 2


def test_the_shared_model_is_one_copy(scene: Scene) -> None:
    again = scene.b("acquire", ref=scene.origin.url(SHARED))
    assert again["segments"] == scene.got[SHARED]["segments"]
    assert again["path"] != scene.got[SHARED]["path"]
    blobs = [p for p in (scene.host.state_dir / "blobs").rglob("*") if p.is_file()]
    assert sorted(p.name for p in blobs) == sorted(SUM[n] for n in (A, B, SHARED, MAIN))
    assert len(scene.host.segments()) == 4
    names = [scene.host.state_dir / "tenants" / t / "blobs" / SUM[SHARED] for t in "ab"]
    assert len({p.stat().st_ino for p in (*names, scene.blob(SHARED))}) == 1


def test_the_host_sees_and_reads_all(scene: Scene) -> None:
    assert sorted(scene.member("list")) == sorted(map(scene.origin.url, (A, B, SHARED, MAIN)))
    for name in (A, B, SHARED):
        got = scene.member("acquire", ref=scene.origin.url(name))
        assert got["mapped"] == got["read"] == {FILE: SUM[name]}
        assert got["path"].startswith(f"{scene.host.state_dir}/models/")
    assert scene.member("release") == 4
    scene.member("acquire", ref=scene.origin.url(MAIN))


@pytest.mark.parametrize("who", ["b", "outsider"])
def test_nobody_else_reads_a_byte_of_it(scene: Scene, who: str) -> None:
    intruder = scene.b if who == "b" else scene.host.worker(OUTSIDER, scene.socket("b"))
    state, theirs = scene.host.state_dir, Path(scene.got[A]["path"])
    (main,) = (state / "models").glob("*-a-*")
    (revision,) = (p for p in main.iterdir() if not p.is_symlink())
    for path in (
        scene.segment(A),
        scene.blob(A),
        state / "tenants/a/blobs" / SUM[A],
        theirs / FILE,
        theirs.parent / "current" / FILE,
        revision / FILE,
        main / "current" / FILE,
        state / "state.db",
        state / "lock",
    ):
        assert path.exists()
        assert intruder("read", path=str(path)) == "PermissionError", path


def test_nobody_else_can_tell_whether_it_is_there(scene: Scene) -> None:
    """Neither by a list of names, nor by a name that can be guessed."""
    state, key = scene.host.state_dir, Path(scene.got[A]["path"]).parent.name
    for place in (
        "",
        "models",
        "blobs",
        "blobs/sha256",
        f"blobs/sha256/{SUM[A][:2]}",
        "ingest",
        "tenants",
        "tenants/a",
    ):
        assert scene.b("names", path=str(state / place)) == "PermissionError", place
    for there, not_there in (
        (f"models/{key}", "models/other"),
        (f"blobs/sha256/{SUM[A][:2]}/{SUM[A]}", f"blobs/sha256/{SUM[A][:2]}/{'0' * 64}"),
        (f"tenants/a/models/{key}", "tenants/a/models/other"),
        (f"tenants/a/blobs/{SUM[A]}", f"tenants/a/blobs/{'0' * 64}"),
    ):
        assert (state / there).exists()
        assert scene.b("exists", path=str(state / there)) == scene.b("exists", path=str(state / not_there))
        assert scene.b("exists", path=str(state / there)) == "PermissionError"
    assert scene.b("names", path=str(state / "tenants/b/blobs")) == sorted([SUM[B], SUM[SHARED]])
    assert not any("model" in name for name in scene.host.segments())


@pytest.mark.parametrize("user", [TENANT_A, TENANT_B])
def test_a_tenant_alters_nothing_that_it_reads(scene: Scene, user: Any) -> None:
    """As a member of the daemon's own group."""
    segment, pid = scene.segment(SHARED), scene.host.process.pid
    before = segment.stat()
    asked = "".join(f"{attempt.__name__} {segment} {pid}\n" for attempt in ROWS.values())
    out = scene.host.become.run(user, "-m", "tests.isolation.attempts", stdin=asked)
    found = dict(line.split() for line in out.splitlines())
    assert {row: found[attempt.__name__] for row, attempt in ROWS.items()} == documented()["member"]
    blob = scene.host.state_dir / "tenants" / ("a" if user is TENANT_A else "b") / "blobs" / SUM[SHARED]
    wanted = {
        "open_read": "ok",
        "open_write": "EACCES",
        "truncate": "EACCES",
        "unlink": "EACCES",
        "change_mode": "EPERM",
    }
    out = scene.host.become.run(
        user, "-m", "tests.isolation.attempts", stdin="".join(f"{name} {blob} {pid}\n" for name in wanted)
    )
    assert dict(line.split() for line in out.splitlines()) == wanted
    now = segment.stat()
    assert (now.st_ino, now.st_mode & 0o7777, now.st_uid, now.st_gid) == (
        *(before.st_ino, 0o440, DAEMON.uid, DAEMON.gid),
    )


def every_question(worker: WorkerProcess, ref: str) -> list[tuple[str, str]]:
    """All that a socket can be asked of a ref: how each ends."""
    asked = [("acquire", {}), ("fetch", {}), ("fetch", {"sha256": SUM[A]}), ("resolve", {}), ("model", {})]
    asked += [("verify", {}), ("holders", {})]
    return [(e.kind, e.message.replace(ref, "REF")) for e in (worker.refused(do, ref=ref, **o) for do, o in asked)]


def test_what_a_tenant_may_not_see_is_refused_alike_whether_it_is_held(scene: Scene) -> None:
    held = every_question(scene.b, scene.origin.url(A))
    assert held == every_question(scene.b, scene.origin.url("a/nothing"))
    assert held == every_question(scene.b, "http://nowhere.invalid/x")
    assert {kind for kind, _ in held} == {"RefNotAllowed"}
    assert not any("a/nothing" in r.path for r in scene.origin.requests)


def test_leases_and_counts_are_its_own(scene: Scene) -> None:
    """Processes of the other tenant are on the shared model, too, and connected to the same daemon."""
    leases = scene.b("holders")
    assert {(x["ref"], x["uid"], x["confirmed"], x["tenant"]) for x in leases} == {
        (scene.origin.url(n), TENANT_B.uid, True, "b") for n in (B, SHARED)
    }
    status = scene.b("status")
    assert (status["models"], status["leases"]) == (2, len(leases))
    found = {(x["uid"], x["tenant"]) for x in scene.member("holders")}
    assert found == {(TENANT_A.uid, "a"), (TENANT_B.uid, "b"), (MEMBER.uid, "")}


@pytest.mark.parametrize("said_by", ["who asks", "origin"])
def test_a_digest_gives_no_right_to_bytes(scene: Scene, said_by: str) -> None:
    """B's own origin claims to have what A brought, or B says that itself; nothing but its own bytes would come."""
    ref, claim = scene.origin.url(LIE), {}
    if said_by == "origin":
        stated = base64.b64encode(bytes.fromhex(SUM[A])).decode()
        scene.origin.fault(LIE, Fault(headers={"Repr-Digest": f"sha-256=:{stated}:"}))
    else:
        claim = {"sha256": SUM[A]}
    try:
        assert scene.b.refused("fetch", ref=ref, **claim).kind == "DigestMismatch"
        if said_by == "origin":
            assert scene.b.refused("acquire", ref=ref).kind == "DigestMismatch"
    finally:
        scene.origin.mend()
    assert ref not in scene.b("list")
    assert not (scene.host.state_dir / "tenants/b/blobs" / SUM[A]).exists()
    assert scene.b("read", path=str(scene.segment(A))) == "PermissionError"


def test_who_delivers_the_same_bytes_shares_them(scene: Scene) -> None:
    """Then they are its own, and stay one copy."""
    scene.origin.put("b/copy.safetensors", DATA[A])
    ref = scene.origin.url("b/copy.safetensors")
    got = scene.b("acquire", ref=ref)
    assert got["mapped"] == got["read"] == {"copy.safetensors": SUM[A]}
    assert got["segments"]["copy.safetensors"] == scene.got[A]["segments"][FILE]
    assert ref not in scene.a("list")
    assert len(scene.host.segments()) == 4


def test_after_a_restart_what_was_adopted_is_read_by_the_same(become: Become, origin: Origin) -> None:
    """And after a change of lists by those of the new ones: what a tenant had mapped it keeps, and gets no more."""
    with serving(become, config(origin), UMASK, user=LANDLORD) as host:
        a, b = (host.worker(user, host.home / f"{n}.sock") for n, user in (("a", TENANT_A), ("b", TENANT_B)))
        got = a("acquire", ref=origin.url(A))
        b("acquire", ref=origin.url(SHARED))
        segment = Path("/dev/shm" + got["segments"][FILE])
        inode = segment.stat().st_ino
        host.again()
        later = a("acquire", ref=origin.url(A))
        assert later["mapped"] == later["read"] == {FILE: SUM[A]}
        assert later["segments"] == got["segments"]
        assert segment.stat().st_ino == inode
        assert b("read", path=str(segment)) == "PermissionError"
        # B's list is now A's, and the other way round.
        host.again(config(origin, a="b", b="a"))
        assert a.refused("acquire", ref=origin.url(A)).kind == "RefNotAllowed"
        assert a("read", path=str(segment)) == "PermissionError"
        assert a("read", path=got["path"] + f"/{FILE}") == "FileNotFoundError"
        now = b("acquire", ref=origin.url(A))
        assert now["mapped"] == now["read"] == {FILE: SUM[A]}
        assert now["segments"] == got["segments"]
        # No tenants any more: nothing is open to their groups.
        host.again(config(origin).partition("[[sockets]]")[0])
        for path in (segment, host.state_dir / "blobs/sha256" / SUM[A][:2] / SUM[A], host.state_dir):
            assert "system.posix_acl_access" not in os.listxattr(path)
        assert not (host.state_dir / "tenants").exists()
        assert stat.S_IMODE(segment.stat().st_mode) == 0o440
        member = host.worker(MEMBER)("acquire", ref=origin.url(A))
        assert member["segments"] == got["segments"]
        host.end_workers()


def test_a_directory_of_segments_can_be_passed_and_not_listed(become: Become, origin: Origin, tmp_path: Path) -> None:
    tmp_path = Path("/tmp") / f"weightd-iso-shm-{os.getpid()}"
    try:
        with mounted(tmp_path, f"size=64m,mode=0750,uid={DAEMON.uid},gid={DAEMON.gid}") as shm:
            with serving(become, config(origin, more=f'[shm]\ndirectory = "{shm}"\n'), user=LANDLORD) as host:
                got = host.worker(TENANT_A, host.home / "a.sock")("acquire", ref=origin.url(A))
                assert got["mapped"] == got["read"] == {FILE: SUM[A]}
                b = host.worker(TENANT_B, host.home / "b.sock")
                assert b("acquire", ref=origin.url(B))["mapped"] == {FILE: SUM[B]}
                assert b("names", path=str(shm)) == "PermissionError"
                assert b("read", path=str(shm) + got["segments"][FILE]) == "PermissionError"
                host.end_workers()
    finally:
        tmp_path.rmdir()


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("no access control lists", "has none"),
        ("not a member of the group", "must be a member"),
    ],
)
def test_a_start_that_could_not_keep_tenants_apart_is_refused(
    become: Become, origin: Origin, broken: str, words: str
) -> None:
    with home(config(origin)) as path:
        state = path / "state"
        state.mkdir()
        os.chown(state, DAEMON.uid, DAEMON.gid)
        ramfs = [f"mount -t ramfs none {state} && chown {DAEMON.uid}:{DAEMON.gid} {state}"]
        no_lists = broken == "no access control lists"
        with Host(path, become, ramfs if no_lists else [], LANDLORD if no_lists else DAEMON) as host:
            assert host.process.wait(30) == 3, host.text()
        assert words in host.text()
        assert "Traceback" not in host.text()
        assert not list(path.glob("*.sock"))
