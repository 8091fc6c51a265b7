"""The demo's own parts: its origin over a real socket, its reader of smaps on this process and on a known text."""

from __future__ import annotations

import http.client
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import memory
from demo.origin import Origin, parse_range
from demo.play import likeness

BODY = bytes(range(256)) * 4096


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Origin]:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.bin").write_bytes(BODY)
    (tmp_path / "secret").write_text("no")
    (root / "link").symlink_to(tmp_path / "secret")
    server = Origin(root)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(origin: Origin, path: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", origin.server_address[1], timeout=10)
    try:
        connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_whole_file_and_counters(origin: Origin) -> None:
    status, headers, body = ask(origin, "/a.bin")
    assert (status, body, headers["Accept-Ranges"]) == (200, BODY, "bytes")
    assert (origin.requests, origin.bytes_sent) == (1, len(BODY))


def test_head_sends_no_body(origin: Origin) -> None:
    status, headers, body = ask(origin, "/a.bin", "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(BODY)))


@pytest.mark.parametrize(
    ("text", "begin", "end"), [("0-0", 0, 1), ("100-299", 100, 300), ("-5", len(BODY) - 5, len(BODY))]
)
def test_range(origin: Origin, text: str, begin: int, end: int) -> None:
    status, headers, body = ask(origin, "/a.bin", Range=f"bytes={text}")
    assert (status, body) == (206, BODY[begin:end])
    assert headers["Content-Range"] == f"bytes {begin}-{end - 1}/{len(BODY)}"


def test_range_behind_the_end_is_416(origin: Origin) -> None:
    status, headers, _ = ask(origin, "/a.bin", Range=f"bytes={len(BODY)}-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(BODY)}")


def test_validators(origin: Origin) -> None:
    etag = ask(origin, "/a.bin", "HEAD")[1]["ETag"]
    assert ask(origin, "/a.bin", Range="bytes=0-9", If_Range=etag)[0] == 206
    assert ask(origin, "/a.bin", Range="bytes=0-9", If_Range='"old"')[0] == 200
    assert ask(origin, "/a.bin", If_Match='"old"')[0] == 412


@pytest.mark.parametrize("path", ["/none", "/", "/../secret", "/%2e%2e/secret", "/link"])
def test_nothing_outside_of_the_root(origin: Origin, path: str) -> None:
    assert ask(origin, path)[0] == 404


@pytest.mark.parametrize("header", [None, "", "bytes=", "bytes=-", "bytes=5-2", "items=0-1", "bytes=0-1,4-5"])
def test_what_is_no_single_range_means_the_whole(header: str | None) -> None:
    assert parse_range(header, 10) is None


def test_smaps_of_a_shared_and_a_private_map(tmp_path: Path) -> None:
    path = tmp_path / "mapped file"
    path.write_bytes(b"x" * (8 * mmap.PAGESIZE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert view[:] == path.read_bytes()
        (found,) = memory.mappings(os.getpid(), str(path))
        assert (found.rights, found.path, found.rss) == ("r--s", str(path), len(view))
        assert 0 < found.pss <= found.rss
    assert memory.mappings(os.getpid(), str(path)) == []


def test_smaps_text() -> None:
    text = """\
7f0000000000-7f0000002000 r--p 00000000 00:1a 12345      /dev/shm/weightd-x (deleted)
Size:                  8 kB
Rss:                   8 kB
Pss:                   2 kB
Private_Dirty:         4 kB
VmFlags: rd mr mw me sd
7f0000002000-7f0000003000 rw-p 00000000 00:00 0
Rss:                   4 kB
Pss:                   4 kB
"""
    first, second = memory.parse_smaps(text.splitlines())
    assert first == memory.Mapping("r--p", "/dev/shm/weightd-x", 8192, 2048, 4096)
    assert second == memory.Mapping("rw-p", "", 4096, 4096, 0)


def test_usage_sees_private_memory_grow() -> None:
    before = memory.usage(os.getpid())
    block = bytearray(os.urandom(32 << 20))
    assert memory.usage(os.getpid()).private - before.private >= 31 << 20
    del block


def test_likeness() -> None:
    within, across = likeness([[[1.0, 0.0], [0.8, 0.6]], [[0.0, 1.0], [0.0, 1.0]]])
    assert within == pytest.approx([0.8, 1.0])
    assert across == pytest.approx(0.6)
