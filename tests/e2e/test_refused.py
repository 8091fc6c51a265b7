"""What the origin or the user gets wrong, through a daemon with defaults: refused by name, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.e2e.host import NOBODY, Host, assert_refused, free_port, safetensors
from tests.support.origin import Fault, Origin
from weightd import Client
from weightd.core.errors import all_errors

DATA = safetensors(3 << 20, b"bad")


class Bad(NamedTuple):
    """`ref` is a name at the origin unless it holds "://"; the line names it, or `words` in place of it."""

    name: str
    ref: str
    code: int
    kind: str
    fault: Fault | None = None
    data: bytes | None = DATA
    options: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    promise: Fault | None = None
    """How it answers the first question, where that is another."""


def index(shard: str) -> bytes:
    return json.dumps({"weight_map": {"t": shard}}).encode()


def header(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + bytes(64)


GAP = '{"t":{"dtype":"U8","shape":[8],"data_offsets":[8,16]}}'

CASES = [
    Bad("unknown scheme", "gopher://host/model", 3, "RefSyntax"),
    Bad("malformed ref", "http://", 3, "RefSyntax"),
    Bad("malformed port", "http://host:port/x", 3, "RefSyntax", words=("host",)),
    Bad("no ref at all", "two words", 3, "RefSyntax"),
    Bad("unknown name", "nobody-configured-this", 4, "ModelNotFound"),
    Bad("unknown host", "http://no-such-host.invalid/m.safetensors", 8, "SourceUnavailable"),
    Bad("refused", f"http://127.0.0.1:{free_port()}/m.safetensors", 8, "SourceUnavailable"),
    Bad("no such file", "file:///no/such/model.safetensors", 4, "SourceNotFound"),
    Bad("404", "absent.safetensors", 4, "SourceNotFound", data=None),
    Bad("403", "closed.safetensors", 5, "SourceDenied", Fault(status=403)),
    Bad("401", "who.safetensors", 5, "SourceDenied", Fault(status=401)),
    Bad("500", "broken.safetensors", 8, "SourceUnavailable", Fault(status=500)),
    Bad("shorter", "short.safetensors", 8, "SourceUnavailable", Fault(short=1000)),
    Bad("longer", "long.safetensors", 10, "SizeMismatch", Fault(extra=b"more")),
    Bad(
        "longer, one stream",
        "long1.safetensors",
        10,
        "SizeMismatch",
        Fault(extra=b"more", no_ranges=True),
        promise=Fault(no_ranges=True),
    ),
    Bad("reset", "reset.safetensors", 8, "SourceUnavailable", Fault(reset_after=100)),
    Bad("wrong sha256", "sha.safetensors", 10, "DigestMismatch", options=("--sha256", "0" * 64)),
    Bad("no sha256", "sha.safetensors", 3, "DigestSyntax", options=("--sha256", "abc"), words=("abc",)),
    Bad("bad header", "gap.safetensors", 10, "FormatError", data=header(GAP)),
    Bad("no header", "text.safetensors", 10, "FormatError", data=b"<html>sign in</html>"),
    Bad("climbing", "up/model.safetensors.index.json", 3, "ManifestError", data=index("../../x.safetensors")),
    Bad("absolute", "abs/model.safetensors.index.json", 3, "ManifestError", data=index("/etc/x.safetensors")),
    Bad("hidden climb", "in/model.safetensors.index.json", 3, "ManifestError", data=index("a/../../x.safetensors")),
    Bad("no index", "not/model.safetensors.index.json", 3, "ManifestError", data=b"[]"),
    Bad("lost shard", "lost/model.safetensors.index.json", 4, "SourceNotFound", data=index("gone.safetensors")),
]


@pytest.fixture
def arrange(origin: Origin) -> Callable[[Bad], str]:
    def arranged(case: Bad) -> str:
        if "://" in case.ref or "." not in case.ref:
            return case.ref
        if case.data is not None:
            origin.put(case.ref, case.data)
        if case.fault is not None:
            origin.mend()
            if case.promise is not None:
                origin.fault(case.ref, case.promise, times=1)
            origin.fault(case.ref, case.fault)
        return origin.url(case.ref)

    return arranged


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_the_command_line(case: Bad, host: Host, arrange: Callable[[Bad], str], good: str) -> None:
    ref = arrange(case)
    with host.unharmed(good):
        ended = host.cli("fetch", ref, *case.options, "--json")
        assert_refused(ended, case.code, case.kind, *(case.words or (ref,)))


CLIENT = [c for c in CASES if c.name in ("404", "shorter", "longer", "bad header", "climbing", "unknown scheme")]


@pytest.mark.parametrize("case", CLIENT, ids=[c.name for c in CLIENT])
def test_the_client_catches_the_class_that_the_daemon_raised(
    case: Bad, host: Host, arrange: Callable[[Bad], str], good: str
) -> None:
    ref = arrange(case)
    with host.unharmed(good), Client(host.socket) as client:
        with pytest.raises(all_errors()[case.kind]) as caught:
            client.acquire(ref)
        assert ref in str(caught.value)
        assert caught.value.remedy


def test_a_socket_without_rights(host: Host, good: str) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, to become another user")
    with host.unharmed(good):
        assert_refused(host.cli("fetch", good, "--json", prefix=NOBODY), 5, "SocketDenied", str(host.socket))
