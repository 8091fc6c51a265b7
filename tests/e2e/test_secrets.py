"""Secrets that a ref, a redirect or the configuration holds: looked for in everything that a daemon says and keeps."""

from __future__ import annotations

import base64
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import grpc
import pytest

from tests.daemon.process import Served
from tests.e2e.host import clean_environment, free_port, safetensors, weightd
from tests.support.origin import Fault, Origin
from tests.support.proxy import Proxy
from weightd.wire import methods
from weightd.wire.gen import weightd_pb2 as pb

USER, WORD, SIGNATURE, TOKEN, PROXY_USER, PROXY_WORD, ENVIRONMENT = (
    "us3rQx1", "w0rd/pAssOne2'pAssTwo3", "s1gnVm4", "t0kenHb5", "pr0xyUser6", "pr0xyWord7", "envSecret8",
)  # fmt: skip
SECRETS = {
    *(USER, WORD, quote(WORD, safe=""), "pAssOne2", "pAssTwo3", SIGNATURE, TOKEN, PROXY_USER, PROXY_WORD, ENVIRONMENT),
    base64.b64encode(f"{USER}:{WORD}".encode()).decode(),
    base64.b64encode(f"{PROXY_USER}:{PROXY_WORD}".encode()).decode(),
}
DATA = safetensors(3 << 20, b"secret")
CONFIG = """
[daemon]
log_level = "debug"
log_format = "{format}"
[fetch]
part_size = "1MiB"
retries = 0
stall_timeout_s = 1.0
processes = {processes}
[http]
proxy = "http://{user}:{word}@127.0.0.1:{port}"
[models.named]
source = "{named}"
"""


def found_in(data: bytes | str) -> set[str]:
    raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    return {secret for secret in SECRETS if secret.encode() in raw}


def signed(url: str) -> str:
    """With a user, a password and a signature, as operators write them."""
    return url.replace("://", f"://{USER}:{quote(WORD, safe='')}@") + f"?sig={SIGNATURE}&token={TOKEN}"


class Wire:
    """Calls a daemon and keeps every byte that comes back, answers, statuses and trailers."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self.came: list[bytes] = []
        self.codes: list[grpc.StatusCode] = []
        self._watch: grpc.Future | None = None
        self._watching: threading.Thread | None = None

    def _begin(self, method: str, request: object) -> grpc.Future:
        call = self._channel.unary_stream(
            f"/{methods.SERVICE}/{method}",
            request_serializer=lambda r: r.SerializeToString(),
            response_deserializer=lambda raw: raw,
        )
        return call(request, timeout=60)

    def call(self, method: str, request: object, *, first: bytes = b"") -> None:
        """To its end, or to the first answer that holds `first`."""
        call = self._begin(method, request)
        try:
            for raw in call:
                self.came.append(raw)
                if first and first in raw:
                    call.cancel()
                    return
            self.codes.append(grpc.StatusCode.OK)
        except grpc.RpcError as e:
            self.codes.append(e.code())
            trailers = [v.encode() if isinstance(v, str) else v for _, v in e.trailing_metadata() or ()]
            self.came += [*trailers, (e.details() or "").encode(), str(e).encode()]

    def watch(self) -> None:
        """Events from now on."""
        call = self._watch = self._begin("Watch", pb.WatchRequest())
        call.initial_metadata()

        def read() -> None:
            try:
                self.came += list(call)
            except grpc.RpcError:
                pass  # Its end.

        self._watching = threading.Thread(target=read)
        self._watching.start()

    def close(self) -> None:
        if self._watch is not None and self._watching is not None:
            self._watch.cancel()
            self._watching.join()
        self._channel.close()


class World:
    """An origin that wants a user, another that a signed redirect leads to, a proxy, and a daemon."""

    def __init__(self, home: Path, format: str, processes: int) -> None:
        self.proxy = Proxy(basic=f"{PROXY_USER}:{PROXY_WORD}")
        self.elsewhere = Origin({"cdn.safetensors": DATA})
        self.origin = Origin(dict.fromkeys(NAMES, DATA))
        self.origin.fault("*", Fault(basic=f"{USER}:{WORD}"))
        self.named = signed(self.origin.url("named.safetensors"))
        config = CONFIG.format(
            format=format,
            processes=processes,
            user=PROXY_USER,
            word=PROXY_WORD,
            port=self.proxy.port,
            named=self.named,
        )
        (home / "config.toml").write_text(config)
        env = {"HTTPS_PROXY": f"http://x:{ENVIRONMENT}@127.0.0.1:1", "AWS_SECRET_ACCESS_KEY": ENVIRONMENT}
        self.served = Served(home, "--config", str(home / "config.toml"), env=env)

    def __enter__(self) -> World:
        self.proxy.__enter__()
        self.origin.start()
        self.elsewhere.start()
        self.served.ready()
        return self

    def __exit__(self, *args: object) -> None:
        self.served.__exit__(None, None, None)
        self.elsewhere.stop()
        self.origin.stop()
        self.proxy.__exit__(None, None, None)

    def ref(self, name: str) -> str:
        return signed(self.origin.url(name))

    def redirect(self, to: str, **more: object) -> Fault:
        """To another origin, by an address that is signed, as object stores have them."""
        return Fault(redirect=f"{signed(self.elsewhere.url(to))}", **more)  # type: ignore[arg-type]

    def processes(self) -> list[int]:
        pids = [self.served.process.pid]
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
        return pids


NAMES = [
    f"{n}.safetensors" for n in ("good", "named", "forbidden", "broken", "moved", "lost", "short", "wrong", "loop")
]
ECHO = f"no {USER}:{WORD} with {SIGNATURE} {TOKEN}".encode()


@pytest.fixture
def home() -> Iterator[Path]:
    # Not tmp_path: socket paths are short.
    home = Path(tempfile.mkdtemp(prefix="weightd-secrets-"))
    yield home
    shutil.rmtree(home)


def provoke(world: World, wire: Wire) -> None:
    """What succeeds, and each kind of failure."""
    origin = world.origin
    wire.watch()

    def fetch(ref: str, sha256: str = "") -> None:
        wire.call("Resolve", pb.ResolveRequest(ref=ref))
        wire.call("Fetch", pb.FetchRequest(ref=ref, sha256=sha256))
        wire.call("Acquire", pb.AcquireRequest(ref=ref), first=b"/weightd-")

    fetch(world.ref("good.safetensors"))
    fetch("named")
    origin.put("unmapped.safetensors", safetensors(1 << 20, b"unmapped"))
    wire.call("Fetch", pb.FetchRequest(ref=world.ref("unmapped.safetensors"), tier=pb.TIER_NVME))
    echoing = {"x-secret": ECHO.decode(), "www-authenticate": f'Basic realm="{TOKEN}"'}
    for status in (401, 403, 404, 429, 500):
        origin.fault("forbidden.safetensors", Fault(status=status, body=ECHO, headers=echoing), times=8)
        fetch(world.ref("forbidden.safetensors"))
    fetch(world.ref("absent.safetensors"))
    for name, fault in (
        ("moved", world.redirect("cdn.safetensors")),
        ("lost", world.redirect("gone.safetensors")),
        ("loop", Fault(redirect=world.ref("loop.safetensors"))),
        ("short", Fault(short=1000)),
        ("broken", Fault(raw=ECHO)),
    ):
        origin.fault(f"{name}.safetensors", fault)
        fetch(world.ref(f"{name}.safetensors"))
    for location in (f"ftp://{USER}:{TOKEN}@h/x", f"http://{USER}:{TOKEN}@[h/{SIGNATURE}", f"//{TOKEN}:x/y"):
        origin.fault("broken.safetensors", Fault(redirect=location), times=8)
    fetch(world.ref("wrong.safetensors"), "0" * 64)
    fetch(signed(f"http://127.0.0.1:{free_port()}/x.safetensors"))
    fetch(signed("http://no-such-host.invalid/x.safetensors"))
    for malformed in (f"http://{USER}:{WORD}@host/x", f"ftp://{USER}:{TOKEN}@h/x", f"http://h:{TOKEN}@/x#{TOKEN}"):
        fetch(malformed)
    world.proxy.status = 407
    fetch(world.ref("proxied.safetensors"))
    world.proxy.status = None
    origin.put("good.safetensors", DATA[::-1])
    fetch(world.ref("good.safetensors"))


def damage(world: World) -> None:
    """What is on disk, and refused by its origins."""
    for path in (world.served.state_dir / "blobs").rglob("*"):
        if path.is_file():
            path.chmod(0o640)
            path.write_bytes(bytes(path.stat().st_size))
    for origin in (world.origin, world.elsewhere):
        origin.mend()
        origin.fault("*", Fault(status=403, body=ECHO, headers={"x-secret": ECHO.decode()}))


def ask(world: World, wire: Wire) -> None:
    """Everything that answers without moving bytes."""
    wire.call("ListModels", pb.ListModelsRequest())
    wire.call("GetStatus", pb.GetStatusRequest())
    wire.call("GetModel", pb.GetModelRequest(ref=world.ref("good.safetensors")))
    wire.call("GetModel", pb.GetModelRequest(ref=world.ref("nowhere.safetensors"), revision="none"))


@pytest.mark.parametrize(("format", "processes"), [("text", 0), ("json", 1)])
def test_no_secret_leaves_the_daemon(home: Path, format: str, processes: int) -> None:
    with World(home, format, processes) as world:
        wire = Wire(world.served.socket)
        try:
            provoke(world, wire)
            ask(world, wire)
            pids = world.processes()
            assert len(pids) == 1 + processes
            titles = [Path(f"/proc/{pid}/{part}").read_bytes() for pid in pids for part in ("cmdline", "comm")]
            inherited = [Path(f"/proc/{pid}/environ").read_bytes() for pid in pids[1:]]
            commands = [
                weightd(*args, socket=world.served.socket)
                for args in (
                    ("ls",),
                    ("ls", "--json"),
                    ("status", "--json"),
                    ("fetch", world.ref("absent.safetensors")),
                    ("fetch", "--json", world.ref("good.safetensors")),
                    ("inspect", world.ref("good.safetensors")),
                )
            ]
            damage(world)
            wire.call("Verify", pb.VerifyRequest())
            commands.append(weightd("verify", "--json", socket=world.served.socket))
            ask(world, wire)
        finally:
            wire.close()
        assert world.served.stop() == 0
        # It did what it was to do, and was told what it should not tell.
        wanted = {grpc.StatusCode.OK, *map(grpc.StatusCode.__getitem__, EXPECTED)}
        assert wanted <= set(wire.codes)
        assert len(world.elsewhere.requests) > 1
        assert [r for r in world.elsewhere.requests if "authorization" in r.headers] == []
        assert all(a.headers.get("proxy-authorization") for a in world.proxy.log)
        assert not any("proxy-authorization" in r.headers for r in world.origin.requests)
        assert len(wire.came) > 50
        log = world.served.text()
        assert "damaged" in log
        for what in (log, *wire.came, *titles, *inherited, *(c.out + c.err for c in commands)):
            assert found_in(what) == set(), what
        check_state(world.served.state_dir)


EXPECTED = ("INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "UNAVAILABLE", "DATA_LOSS")


def check_state(directory: Path) -> None:
    """Refs are stored as they were given, because a repair needs them: in the database, which only its owner reads."""
    database = {p for p in directory.iterdir() if p.name.startswith("state.db")}
    assert found_in(b"".join(p.read_bytes() for p in database)) >= {USER, SIGNATURE, TOKEN}
    assert {stat.S_IMODE(p.stat().st_mode) for p in database} == {0o600}
    seen = 0
    for path in directory.rglob("*"):
        assert found_in(str(path)) == set()
        if path.is_symlink():
            assert found_in(str(path.readlink())) == set()
        elif path.is_file() and path not in database:
            seen += 1
            assert found_in(path.read_bytes()) == set(), path
    assert seen > 2
    assert list((directory / "quarantine").glob("*/report.json"))


def test_a_fetch_without_a_daemon(home: Path) -> None:
    with World(home, "text", 0) as world:
        for name in ("good", "absent", "lost"):
            world.origin.fault("lost.safetensors", world.redirect("gone.safetensors"))
            for options in ((), ("--json",)):
                done = weightd(
                    *("fetch", world.ref(f"{name}.safetensors"), "--to", home / "out", *options),
                    *("--config", home / "config.toml"),
                )
                assert (done.code == 0) == (name == "good"), done
                assert done.out + done.err
                assert found_in(done.out + done.err) == set(), done


def test_the_environment_of_these_tests_holds_none_of_them() -> None:
    """Or a child's would hold it for another reason."""
    assert found_in(repr(clean_environment())) == set()
