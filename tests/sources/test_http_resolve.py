"""What the resolve side makes of every kind of answer."""

from __future__ import annotations

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.sources.conftest import DATA, Waits
from tests.support.origin import Fault, Origin
from weightd.core.errors import (
    ManifestError,
    SourceChanged,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    WeightdError,
)
from weightd.core.manifest import FileSpec, Manifest
from weightd.core.ranges import retry_after
from weightd.core.refs import parse_ref
from weightd.sources.connection import HttpOptions
from weightd.sources.http import HttpSource


async def resolve(source: HttpSource, url: str) -> Manifest:
    return await source.resolve(parse_ref(url))


async def one(source: HttpSource, url: str) -> FileSpec:
    return (await resolve(source, url)).files[0]


async def test_one_small_request_tells_everything(origin: Origin, http: HttpSource) -> None:
    file = await one(http, origin.url("f.bin"))
    assert (file.size, file.ranges, file.url) == (len(DATA), True, origin.url("f.bin"))
    assert file.validator.etag
    assert file.validator.last_modified
    (request,) = origin.requests
    assert request.method == "GET"
    assert request.headers["range"] == "bytes=0-0"
    assert request.headers["accept-encoding"] == "identity"


async def test_no_ranges(origin: Origin, http: HttpSource) -> None:
    origin.fault("f.bin", Fault(no_ranges=True))
    file = await one(http, origin.url("f.bin"))
    assert (file.size, file.ranges) == (len(DATA), False)


async def test_an_endless_body_is_not_read(origin: Origin, impatient: HttpSource) -> None:
    origin.fault("f.bin", Fault(no_ranges=True, stall_after=10))
    assert (await one(impatient, origin.url("f.bin"))).size == len(DATA)


async def test_an_empty_file_is_416(origin: Origin, http: HttpSource) -> None:
    origin.put("empty", b"")
    assert (await one(http, origin.url("empty"))).size == 0
    assert origin.requests[-1].status == 416


async def test_a_416_that_tells_nothing_is_asked_again_without_a_range(origin: Origin, http: HttpSource) -> None:
    origin.fault("f.bin", Fault(status=416), times=1)
    assert (await one(http, origin.url("f.bin"))).size == len(DATA)
    assert [("range" in r.headers) for r in origin.requests] == [True, False]


async def test_416_for_ever(origin: Origin, http: HttpSource) -> None:
    origin.fault("f.bin", Fault(status=416))
    with pytest.raises(SourceUnavailable, match="416"):
        await one(http, origin.url("f.bin"))
    assert len(origin.requests) == 2


@pytest.mark.parametrize("fault", [Fault(no_ranges=True, no_length=True), Fault(no_ranges=True, chunked=True)])
async def test_no_length_asks_for_one(origin: Origin, http: HttpSource, fault: Fault) -> None:
    origin.fault("f.bin", fault)
    url = origin.url("f.bin")
    with pytest.raises(ManifestError) as e:
        await one(http, url)
    assert "models.json" in e.value.remedy
    assert e.value.ref == url
    file = await http.stat(parse_ref(url), "f.bin", url, size=len(DATA), digest=None)
    assert (file.size, file.ranges) == (len(DATA), False)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, SourceNotFound),
        (410, SourceNotFound),
        (401, SourceDenied),
        (403, SourceDenied),
        (451, SourceDenied),
        (400, SourceUnavailable),
        (204, SourceUnavailable),
        (304, SourceUnavailable),
        (302, SourceUnavailable),
    ],
)
async def test_final_statuses(
    origin: Origin, http: HttpSource, waits: Waits, status: int, error: type[WeightdError]
) -> None:
    origin.fault("f.bin", Fault(status=status, body=b""))
    with pytest.raises(error, match=str(status)) as e:
        await one(http, origin.url("f.bin"))
    assert e.value.ref == origin.url("f.bin")
    assert e.value.file == "f.bin"
    assert e.value.remedy
    assert waits.seconds == []


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_trouble_is_tried_again_and_then_told(
    origin: Origin, http: HttpSource, waits: Waits, status: int
) -> None:
    origin.fault("f.bin", Fault(status=status))
    with pytest.raises(SourceUnavailable, match=str(status)):
        await one(http, origin.url("f.bin"))
    assert len(origin.requests) == 4
    assert waits.seconds == [0.1, 0.2, 0.4]


async def test_trouble_that_passes(origin: Origin, http: HttpSource, waits: Waits) -> None:
    origin.fault("f.bin", Fault(status=503, headers={"Retry-After": "7"}), times=1)
    origin.fault("f.bin", Fault(status=429, headers={"Retry-After": "7000"}), times=1)
    origin.fault("f.bin", Fault(hang_up=True), times=2)  # aiohttp repeats the first by itself.
    assert (await one(http, origin.url("f.bin"))).size == len(DATA)
    assert waits.seconds == [7.0, 30.0, 0.4]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", 0),
        ("soon", 0),
        ("-5", 0),
        ("5", 5),
        ("99999999999999999999", 30),
        ("Thu, 01 Jan 1970 00:16:50 GMT", 10),
        ("Thu, 01 Jan 1970 00:16:50", 10),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Thu, 01 Jan 1998 00:00:00 GMT", 30),
    ],
)
def test_retry_after(value: str, seconds: float) -> None:
    assert retry_after(value, 1000.0) == seconds


async def test_unknown_host(http: HttpSource, waits: Waits) -> None:
    with pytest.raises(SourceUnavailable, match="cannot be resolved") as e:
        await one(http, "http://no-such-host.invalid/f.bin")
    assert "no-such-host.invalid" in e.value.message
    assert "DNS" in e.value.remedy


@pytest.mark.parametrize("host", ["a" * 70 + ".test", "x..y"])
async def test_impossible_host(http: HttpSource, host: str) -> None:
    with pytest.raises(SourceUnavailable):
        await one(http, f"http://{host}/f.bin")


async def test_refused_connection(http: HttpSource) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(SourceUnavailable, match=f"127.0.0.1 port {port}.*refused") as e:
        await one(http, f"http://127.0.0.1:{port}/f.bin")
    assert e.value.remedy


async def test_silence(origin: Origin, impatient: HttpSource) -> None:
    origin.fault("f.bin", Fault(stall_head=True))
    with pytest.raises(SourceUnavailable, match="stalled"):
        await one(impatient, origin.url("f.bin"))


async def test_hanging_up(origin: Origin, impatient: HttpSource) -> None:
    origin.fault("f.bin", Fault(hang_up=True))
    with pytest.raises(SourceUnavailable, match="broke off"):
        await one(impatient, origin.url("f.bin"))


async def test_not_http(origin: Origin, http: HttpSource) -> None:
    origin.fault("f.bin", Fault(raw=b"SSH-2.0-OpenSSH_9.9\r\n"))
    with pytest.raises(SourceUnavailable, match="no valid HTTP"):
        await one(http, origin.url("f.bin"))


@pytest.mark.parametrize(
    "content_range", ["bytes 1-1/102400", "bytes 0-1/102400", "nonsense", "bytes */102400", "bytes 0-0/0"]
)
async def test_a_wrong_content_range(origin: Origin, http: HttpSource, content_range: str) -> None:
    origin.fault("f.bin", Fault(content_range=content_range))
    with pytest.raises(SourceUnavailable):
        await one(http, origin.url("f.bin"))


async def test_compression_nobody_asked_for(origin: Origin, http: HttpSource) -> None:
    origin.fault("f.bin", Fault(gzipped=True))
    with pytest.raises(SourceUnavailable, match="gzip") as e:
        await one(http, origin.url("f.bin"))
    assert "compression off" in e.value.remedy


async def test_a_weak_etag_is_no_version(origin: Origin, http: HttpSource) -> None:
    origin.fault("f.bin", Fault(etag='W/"1"', headers={"Last-Modified": ""}))
    file = await one(http, origin.url("f.bin"))
    assert file.validator.etag == ""
    assert file.source_key == ""


async def test_an_html_page_in_place_of_weights_is_left_to_the_header_check(origin: Origin, http: HttpSource) -> None:
    origin.put("x.safetensors", b"<html>")
    origin.fault("x.safetensors", Fault(headers={"Content-Type": "text/html"}))
    assert (await resolve(http, origin.url("x.safetensors"))).format == "safetensors"


async def test_directory_keeps_the_query(origin: Origin, http: HttpSource) -> None:
    origin.put("m/model.safetensors", DATA)
    origin.put("m/config.json", b"{}")
    manifest = await resolve(http, origin.url("m/?sig=a%2Fb"))
    assert [f.path for f in manifest.files] == ["config.json", "model.safetensors"]
    assert all(r.target.endswith("?sig=a%2Fb") for r in origin.requests)


async def test_a_bare_host_is_a_directory(origin: Origin, http: HttpSource) -> None:
    manifest = await resolve(http, origin.url("").rstrip("/"))
    assert [f.path for f in manifest.files] == ["model.safetensors"]


async def test_siblings_refused_by_403_are_absent(origin: Origin, http: HttpSource) -> None:
    origin.put("m/model.safetensors", DATA)
    origin.put("m/config.json", b"{}")
    for name in ("model.safetensors", "config.json"):
        origin.fault(f"m/{name}", Fault())
    origin.fault("*", Fault(status=403))
    manifest = await resolve(http, origin.url("m/"))
    assert [f.path for f in manifest.files] == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(("status", "error"), [(403, SourceDenied), (404, SourceNotFound), (401, SourceDenied)])
async def test_a_directory_of_nothing(origin: Origin, http: HttpSource, status: int, error: type[WeightdError]) -> None:
    origin.fault("*", Fault(status=status))
    with pytest.raises(error) as e:
        await resolve(http, origin.url("m/"))
    assert e.value.ref == origin.url("m/")


@pytest.mark.parametrize(("status", "error"), [(401, SourceDenied), (500, SourceUnavailable)])
async def test_a_sibling_in_trouble_is_an_error(
    origin: Origin, http: HttpSource, status: int, error: type[WeightdError]
) -> None:
    origin.put("m/model.safetensors", DATA)
    origin.fault("m/tokenizer.json", Fault(status=status))
    with pytest.raises(error) as e:
        await resolve(http, origin.url("m/"))
    assert e.value.file == "tokenizer.json"


async def test_a_shard_refused_by_403_is_denied(origin: Origin, http: HttpSource) -> None:
    origin.put("m/model.safetensors.index.json", json.dumps({"weight_map": {"a": "s.safetensors"}}).encode())
    origin.fault("m/s.safetensors", Fault(status=403))
    with pytest.raises(SourceDenied) as e:
        await resolve(http, origin.url("m/"))
    assert e.value.file == "s.safetensors"


def put_index(origin: Origin) -> str:
    origin.put("m/model.safetensors.index.json", json.dumps({"weight_map": {"a": "s.safetensors"}}).encode())
    origin.put("m/s.safetensors", DATA)
    return origin.url("m/")


async def test_an_index_whose_body_breaks_off_once(origin: Origin, http: HttpSource) -> None:
    url = put_index(origin)
    origin.fault("m/model.safetensors.index.json", Fault(), times=1)
    origin.fault("m/model.safetensors.index.json", Fault(short=3), times=1)
    assert len((await resolve(http, url)).files) == 2


async def test_an_index_that_changes_meanwhile(origin: Origin, http: HttpSource) -> None:
    url = put_index(origin)
    origin.fault("m/model.safetensors.index.json", Fault(), times=1)
    origin.fault("m/model.safetensors.index.json", Fault(etag='"other"'))
    with pytest.raises(SourceChanged):
        await resolve(http, url)


async def test_cancelling_ends_the_thread_that_reads_the_index(origin: Origin, patient: HttpSource) -> None:
    url = put_index(origin)
    origin.fault("m/model.safetensors.index.json", Fault(), times=1)
    origin.fault("m/model.safetensors.index.json", Fault(stall_after=1))
    threads = ThreadPoolExecutor()
    asyncio.get_running_loop().set_default_executor(threads)
    task = asyncio.create_task(resolve(patient, url))
    await asyncio.to_thread(origin.wait_for, 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
    async with asyncio.timeout(20):  # A thread left behind would hold its connection for 60 s.
        await asyncio.to_thread(threads.shutdown)


async def test_probes_share_connections(origin: Origin, http: HttpSource) -> None:
    await resolve(http, origin.url(""))
    assert len(origin.requests) > 20
    assert origin.connections <= 8


@pytest.mark.parametrize("body", [b"x", b""])
async def test_an_answer_that_nobody_asked_for_is_nobodys(http: HttpSource, body: bytes) -> None:
    """It comes whole, or in part, while the connection is idle: the next question gets its own answer."""

    def answer(size: int) -> bytes:
        return f"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-0/{size}\r\nContent-Length: 1\r\n\r\n".encode()

    connections: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(len(connections)) + b"x")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/f.bin"
        assert (await one(http, url)).size == 1
        connections[0].write(answer(99) + body)
        (idle,) = next(iter(http._session.connector._conns.values()))
        async with asyncio.timeout(10):
            while not idle[0]._buffer:  # noqa: ASYNC110 - aiohttp tells nobody
                await asyncio.sleep(0)
        assert (await one(http, url)).size == 2
        await http.close()


async def test_an_index_that_does_not_come_keeps_nobody_waiting(origin: Origin) -> None:
    """However few threads there are for short questions."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    http = HttpSource(HttpOptions(read_timeout=60))
    index = json.dumps({"weight_map": {"w": "shard.safetensors"}}).encode()
    for i in range(3):
        origin.put(f"{i}/model.safetensors.index.json", index)
        origin.fault(f"{i}/model.safetensors.index.json", Fault(), times=1)  # what it is
        origin.fault(f"{i}/model.safetensors.index.json", Fault(stall_after=10))
    slow = [asyncio.create_task(resolve(http, origin.url(f"{i}/model.safetensors.index.json"))) for i in range(3)]
    try:
        async with asyncio.timeout(20):
            while sum(r.headers["range"] != "bytes=0-0" for r in origin.requests) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert (await one(http, origin.url("f.bin"))).size == len(DATA)
        assert not any(t.done() for t in slow)
    finally:
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        await http.close()
