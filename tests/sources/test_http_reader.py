"""The receive side against every lie and accident that the origin can be told to commit."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from tests.sources.conftest import DATA
from tests.support.origin import Fault, Origin
from weightd.core.errors import (
    SizeMismatch,
    SourceChanged,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    WeightdError,
)
from weightd.core.manifest import FileSpec
from weightd.core.refs import parse_ref
from weightd.sources.http import HttpSource
from weightd.sources.http_reader import HttpReader

SIZE = len(DATA)


async def pin(source: HttpSource, origin: Origin, name: str = "f.bin") -> FileSpec:
    return (await source.resolve(parse_ref(origin.url(name)))).files[0]


def read(reader: HttpReader, offset: int = 0, length: int = SIZE) -> bytes:
    data = bytearray(length)
    reader.start(offset, length)
    done = 0
    while done < length:
        done += reader.readinto(memoryview(data)[done:])
    reader.finish()
    return bytes(data)


def read_and_close(reader: HttpReader, offset: int = 0, length: int = SIZE) -> bytes:
    try:
        return read(reader, offset, length)
    finally:
        reader.close()


async def test_parts_share_a_connection_and_say_which_version(origin: Origin, http: HttpSource) -> None:
    file = await pin(http, origin)
    reader = http.reader(file)
    before = origin.connections
    assert read(reader, 4096, 8192) == DATA[4096:12288]
    assert read(reader, 0, 10) == DATA[:10]
    reader.close()
    assert read_and_close(http.reader(file), 5, 5) == DATA[5:10]
    assert origin.connections == before + 1
    request = origin.requests[1]
    assert request.headers["range"] == "bytes=4096-12287"
    assert request.headers["if-match"] == file.validator.etag
    assert request.headers["accept-encoding"] == "identity"


async def test_without_an_etag_the_date_is_the_version(origin: Origin, http: HttpSource) -> None:
    origin.fault("f.bin", Fault(etag=""), times=2)
    file = await pin(http, origin)
    assert read_and_close(http.reader(file), 0, 10) == DATA[:10]
    assert origin.requests[-1].headers["if-unmodified-since"] == file.validator.last_modified
    origin.fault("f.bin", Fault(etag="", headers={"Last-Modified": "Wed, 21 Oct 2025 07:28:00 GMT"}))
    with pytest.raises(SourceChanged):
        read_and_close(http.reader(file), 0, 10)


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (Fault(status=404), SourceNotFound, "404"),
        (Fault(status=410), SourceNotFound, "410"),
        (Fault(status=401), SourceDenied, "401"),
        (Fault(status=403), SourceDenied, "403"),
        (Fault(status=412), SourceChanged, "412"),
        (Fault(status=416), SourceUnavailable, "416"),
        (Fault(status=416, headers={"Content-Range": "bytes */50"}), SourceChanged, "50 bytes now"),
        (Fault(status=429), SourceUnavailable, "429"),
        (Fault(status=500), SourceUnavailable, "500"),
        (Fault(status=302), SourceUnavailable, "302"),
        (Fault(no_ranges=True), SourceUnavailable, "the whole file"),
        (Fault(etag='"another"'), SourceChanged, "412"),
        (Fault(headers={"ETag": '"another"'}), SourceChanged, "changed since"),
        (Fault(headers={"ETag": ""}), SourceUnavailable, "which version"),
        (Fault(headers={"ETag": "", "Last-Modified": "Wed, 21 Oct 2025"}), SourceChanged, "changed since"),
        (Fault(headers={"ETag": "", "Last-Modified": ""}), SourceUnavailable, "which version"),
        (Fault(headers={"Transfer-Encoding": "gzip"}), SourceUnavailable, "transfer coding 'gzip'"),
        (Fault(headers={"Transfer-Encoding": "chunked "}), SourceUnavailable, "transfer coding"),
        (Fault(gzipped=True), SourceUnavailable, "gzip"),
        (Fault(content_range="bytes 0-9999/102400"), SourceUnavailable, "for bytes 4096-14095"),
        (Fault(content_range="bytes 4096-14096/102400"), SourceUnavailable, "for bytes 4096-14095"),
        (Fault(content_range="bytes 4096-14095/102401"), SourceChanged, "102401 bytes now"),
        (Fault(content_range="bytes 4096-14095"), SourceUnavailable, "Content-Range"),
        (
            Fault(headers={"Content-Range": "", "Content-Type": "multipart/byteranges; boundary=x"}),
            SourceUnavailable,
            "multipart",
        ),
        (Fault(headers={"Content-Length": "9999"}), SourceUnavailable, "9999 of 10000"),
        (Fault(headers={"Content-Length": "ten"}), SourceUnavailable, "length 'ten'"),
        (Fault(extra=b"x"), SizeMismatch, "10001"),
        (Fault(extra=b"x", no_length=True), SizeMismatch, "goes on"),
        (Fault(extra=b"x", chunked=True), SizeMismatch, "goes on"),
        (Fault(short=5000), SourceUnavailable, "ended after 5000 of 10000"),
        (Fault(short=5000, no_length=True), SourceUnavailable, "ended after 5000 of 10000"),
        (Fault(short=0), SourceUnavailable, "ended after 0 of 10000"),
        (Fault(reset_after=5000), SourceUnavailable, "broke off|ended after"),
        (Fault(hang_up=True), SourceUnavailable, "broke off"),
        (Fault(raw=b"* OK IMAP4 ready\r\n"), SourceUnavailable, "no valid HTTP"),
    ],
)
async def test_faults_of_a_part(
    origin: Origin, http: HttpSource, fault: Fault, error: type[WeightdError], words: str
) -> None:
    file = await pin(http, origin)
    origin.fault("f.bin", fault)
    with pytest.raises(error, match=words) as e:
        read_and_close(http.reader(file), 4096, 10_000)
    assert type(e.value) is error
    assert e.value.file == "f.bin"
    origin.mend()
    assert read_and_close(http.reader(file), 4096, 10_000) == DATA[4096:14096]


async def test_a_part_may_come_without_a_length(origin: Origin, http: HttpSource) -> None:
    file = await pin(http, origin)
    for fault in (Fault(no_length=True), Fault(chunked=True)):
        origin.fault("f.bin", fault, times=1)
        assert read_and_close(http.reader(file), 4096, 10_000) == DATA[4096:14096]


async def test_the_whole_file_for_a_range_that_is_the_whole_file(origin: Origin, http: HttpSource) -> None:
    file = await pin(http, origin)
    origin.fault("f.bin", Fault(no_ranges=True))
    assert read_and_close(http.reader(file)) == DATA


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (Fault(headers={"Content-Length": "102399"}), SizeMismatch, "102399"),
        (Fault(extra=b"more"), SizeMismatch, "102404 bytes, 102400 were promised"),
        (Fault(extra=b"more", no_length=True), SizeMismatch, "goes on"),
        (Fault(short=100_000), SourceUnavailable, "ended after 100000 of 102400"),
        (Fault(short=100_000, no_length=True), SourceUnavailable, "ended after 100000 of 102400"),
        (Fault(headers={"ETag": '"another"'}), SourceChanged, "changed"),
    ],
)
async def test_faults_without_ranges(
    origin: Origin, http: HttpSource, fault: Fault, error: type[WeightdError], words: str
) -> None:
    origin.fault("f.bin", Fault(no_ranges=True), times=2)
    file = await pin(http, origin)
    assert not file.ranges
    assert read_and_close(http.reader(file)) == DATA
    assert "range" not in origin.requests[-1].headers
    fault = Fault(**{**fault.__dict__, "no_ranges": True})
    origin.fault("f.bin", fault)
    with pytest.raises(error, match=words):
        read_and_close(http.reader(file))


async def test_a_part_where_the_whole_was_asked_for(origin: Origin, http: HttpSource) -> None:
    origin.fault("f.bin", Fault(no_ranges=True), times=1)
    file = await pin(http, origin)
    origin.fault("f.bin", Fault(status=206, body=DATA[:-1], headers={"Content-Range": "bytes 0-1/2"}))
    with pytest.raises(SourceUnavailable, match="which version"):  # This answer has no ETag either: seen first.
        read_and_close(http.reader(file))
    no_version = FileSpec(file.path, file.size, file.url, ranges=False)
    with pytest.raises(SourceUnavailable, match="a part although the whole"):
        read_and_close(http.reader(no_version))


@pytest.mark.parametrize("fault", [Fault(stall_head=True), Fault(stall_after=1000)])
async def test_a_stall_is_told(origin: Origin, impatient: HttpSource, fault: Fault) -> None:
    file = await pin(impatient, origin)
    origin.fault("f.bin", fault)
    with pytest.raises(SourceUnavailable, match=r"stalled: nothing came for 0\.2 s"):
        read_and_close(impatient.reader(file))


@pytest.mark.parametrize("fault", [Fault(stall_head=True), Fault(stall_after=1000)])
async def test_abort_ends_a_blocked_thread(origin: Origin, patient: HttpSource, fault: Fault) -> None:
    file = await pin(patient, origin)
    origin.fault("f.bin", fault)
    reader = patient.reader(file)
    caught: list[Exception] = []

    def work() -> None:
        try:
            read(reader)
        except SourceUnavailable as e:
            caught.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    origin.wait_for(2)
    reader.abort()
    thread.join(20)
    assert not thread.is_alive(), "it waits for its read timeout of 60 s"
    assert "aborted" in str(caught[0])
    reader.close()


async def test_an_idle_connection_that_the_origin_closed(origin: Origin, http: HttpSource) -> None:
    file = await pin(http, origin)
    reader = http.reader(file)
    read(reader, 0, 10)
    origin.fault("f.bin", Fault(hang_up=True), times=1)  # A reused connection that ends without an answer.
    assert read(reader, 10, 10) == DATA[10:20]
    reader.close()


async def test_bytes_that_nobody_asked_for_spoil_a_connection(origin: Origin, http: HttpSource) -> None:
    file = await pin(http, origin)
    smuggled = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 10-19/102400\r\nContent-Length: 10\r\n\r\nAAAAAAAAAA"
    head = f"HTTP/1.1 206 OK\r\nETag: {file.validator.etag}\r\nContent-Range: bytes 0-9/{SIZE}\r\n"
    origin.fault("f.bin", Fault(raw=head.encode() + b"Content-Length: 10\r\n\r\n" + DATA[:10] + smuggled), times=1)
    reader = http.reader(file)
    assert read(reader, 0, 10) == DATA[:10]
    assert read(reader, 10, 10) == DATA[10:20]
    reader.close()


async def test_it_opens_nothing_before_start(origin: Origin, http: HttpSource) -> None:
    file = await pin(http, origin)
    before = origin.connections
    http.reader(file).close()
    assert origin.connections == before


async def test_after_close_of_the_source_connections_are_not_kept(origin: Origin) -> None:
    source = HttpSource()
    file = await pin(source, origin)
    reader = source.reader(file)
    read(reader, 0, 10)
    await source.close()
    reader.close()  # A socket left open would be a ResourceWarning, which is an error here.


async def test_a_refusal_of_one_part_holds_up_the_others(origin: Origin, http: HttpSource) -> None:
    """429 with Retry-After: who was refused is told, and no other part is asked for before the time."""
    file = await pin(http, origin)
    origin.fault("f.bin", Fault(status=429, headers={"Retry-After": "1"}), times=1)
    first, second = http.reader(file), http.reader(file)
    with pytest.raises(SourceUnavailable) as caught:
        await asyncio.to_thread(first.start, 0, 10)
    began = time.monotonic()
    assert caught.value.retry_after == 1
    first.close()
    await asyncio.to_thread(second.start, 0, 10)
    assert time.monotonic() - began >= 0.9
    second.close()


async def test_one_that_waits_for_its_turn_is_aborted(origin: Origin, http: HttpSource) -> None:
    file = await pin(http, origin)
    origin.fault("f.bin", Fault(status=503, headers={"Retry-After": "30"}), times=1)
    first, second = http.reader(file), http.reader(file)
    with pytest.raises(SourceUnavailable):
        await asyncio.to_thread(first.start, 0, 10)
    first.close()
    waiting = asyncio.create_task(asyncio.to_thread(second.start, 0, 10))
    await asyncio.sleep(0.05)
    second.abort()
    async with asyncio.timeout(5):
        with pytest.raises(SourceUnavailable, match="aborted"):
            await waiting
    second.close()
    (gate,) = http._pool.gates._gates.values()
    assert gate.running == 0


@pytest.mark.parametrize(
    "fault", [Fault(status=500), Fault(short=5), Fault(reset_after=0), Fault(hang_up=True), Fault()]
)
async def test_no_turn_is_lost(origin: Origin, http: HttpSource, fault: Fault) -> None:
    file = await pin(http, origin)
    for _ in range(3):
        origin.fault("f.bin", fault, times=2)
        reader = http.reader(file)
        try:
            await asyncio.to_thread(reader.start, 0, 10)
            view = memoryview(bytearray(10))
            while view:
                view = view[await asyncio.to_thread(reader.readinto, view) :]
            await asyncio.to_thread(reader.finish)
        except WeightdError:
            pass
        reader.close()
        reader.close()
    (gate,) = http._pool.gates._gates.values()
    assert gate.running == 0


@pytest.mark.parametrize(
    "interim", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"]
)
async def test_interim_answers_are_passed_over(origin: Origin, http: HttpSource, interim: bytes) -> None:
    file = await pin(http, origin)
    head = f"HTTP/1.1 206 OK\r\nETag: {file.validator.etag}\r\nContent-Range: bytes 0-9/{SIZE}\r\n"
    head += "Content-Length: 10\r\n\r\n"
    origin.fault("f.bin", Fault(raw=interim * 3 + head.encode() + DATA[:10]), times=1)
    assert read_and_close(http.reader(file), 0, 10) == DATA[:10]
    origin.fault("f.bin", Fault(raw=interim * 20_000 + head.encode() + DATA[:10]), times=1)
    with pytest.raises(SourceUnavailable, match=r"no valid HTTP|broke off"):
        read_and_close(http.reader(file), 0, 10)


async def test_half_a_head_is_none(origin: Origin, http: HttpSource) -> None:
    """Its missing ETag would be taken for another version, its missing length for an end with the connection."""
    file = await pin(http, origin)
    head = f"HTTP/1.1 206 OK\r\nETag: {file.validator.etag}\r\nContent-Range: bytes 0-9/{SIZE}\r\nContent-Len"
    for raw in (head, head[:25], head[: head.index("Content-Len")], "HTTP/1.1 206 OK\r\n", "HTTP/1.1 206"):
        origin.fault("f.bin", Fault(raw=raw.encode()), times=1)
        with pytest.raises(SourceUnavailable, match=r"broke off|no valid HTTP"):
            read_and_close(http.reader(file), 0, 10)
