"""Every lie, accident and nonsense that an HTTP origin was seen or can be imagined to answer with."""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Callable, Iterator

from tests.adversary.origin import Lie, Told

HTML = b"<html><body>Please sign in</body></html>"
PAUSE_S = 0.02
"""Between two pieces of what drips."""


def _flip(data: bytes, at: float = 0.5) -> bytes:
    wrong = bytearray(data)
    if wrong:
        wrong[int((len(wrong) - 1) * at)] ^= 1
    return bytes(wrong)


def _chunks(data: bytes, size: int = 5000, extension: bytes = b"") -> bytes:
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(b"%x%s\r\n%s\r\n" % (len(p), extension, p) for p in pieces)


def _shifted(told: Told, first: int, last: int) -> bool:
    """Another range, truly told."""
    size = len(told.now.data)
    first, last = max(0, first), min(size - 1, last)
    return told.tell(206, told.now.data[first : last + 1], content_range=f"bytes {first}-{last}/{size}")


def _other_bytes(told: Told, by: int) -> bool:
    """The head is right; the body is that of a range beside it."""
    start = (told.first + by) % max(1, len(told.now.data))
    return told.tell(body=(told.now.data * 2)[start : start + len(told.body)])


def _cut(told: Told, share: float, end: str = "fin", *, framing: str = "length") -> bool:
    body = told.body
    keep = int(len(body) * share)
    if framing == "length":
        told.head(told.status, told.headers())
        told.send(body[:keep])
    elif framing == "chunked":
        told.head(told.status, [*_without_length(told), ("Transfer-Encoding", "chunked")])
        told.send(_chunks(body[:keep]) + (b"0\r\n\r\n" if end == "clean" else b""))
    else:
        told.head(told.status, [*_without_length(told), ("Connection", "close")])
        told.send(body[:keep])
    return told.reset() if end == "rst" else told.stall() if end == "stall" else False


def _without_length(told: Told) -> list[tuple[str, str]]:
    return [(k, v) for k, v in told.headers() if k != "Content-Length"]


def _longer(told: Told, framing: str, extra: bytes = b"more") -> bool:
    if framing == "length":
        return told.tell(body=told.body + extra)
    if framing == "chunked":
        told.head(told.status, [*_without_length(told), ("Transfer-Encoding", "chunked")])
        told.send(_chunks(told.body + extra) + b"0\r\n\r\n")
        return True
    if framing == "trailing":
        told.tell()
        told.send(extra)
        return True
    told.head(told.status, [*_without_length(told), ("Connection", "close")])
    told.send(told.body + extra)
    return False


def _framed(told: Told, head: list[tuple[str, str]], payload: bytes, version: str = "HTTP/1.1") -> bool:
    told.head(told.status, [*_without_length(told), *head], version)
    told.send(payload)
    return False


def _twice(told: Told, name: str, wrong: str, *, wrong_first: bool) -> bool:
    """One header said twice, with two values."""
    headers = told.headers()
    at = next((i for i, (k, _) in enumerate(headers) if k == name), 0)
    headers.insert(at if wrong_first else at + 1, (name, wrong))
    told.head(told.status, headers)
    told.send(told.body)
    return False


def _after(told: Told, before: bytes) -> bool:
    told.send(before)
    return told.honest()


def _dripping(told: Told, data: Iterator[bytes], *, head: bool = True, seconds: float = PAUSE_S) -> bool:
    if head:
        told.head(told.status, told.headers())
    return told.drip(data, seconds)


def _bytes(data: bytes) -> Iterator[bytes]:
    return (data[i : i + 1] for i in range(len(data)))


def _head_bytes(told: Told) -> Iterator[bytes]:
    lines = "".join(f"{k}: {v}\r\n" for k, v in told.headers())
    return _bytes(f"HTTP/1.1 {told.status} OK\r\n{lines}X-Filler: {'x' * 10_000}\r\n\r\n".encode())


def _all_of(told: Told) -> str:
    size = len(told.now.data)
    return f"bytes 0-{size - 1}/{size}"


def _gzip_of_all(told: Told) -> bool:
    return told.tell(200, gzip.compress(told.now.data), content_encoding="gzip", content_range=None)


def _encodings(told: Told, *names: str) -> list[tuple[str, str]]:
    return [("Content-Length", str(len(told.body))), *[("Content-Encoding", name) for name in names]]


def _changing(told: Told) -> bool:
    half = len(told.body) // 2
    return told.tell(body=told.body[:half] + told.liar.other.data[told.first + half : told.last + 1])


def _raw_gzip(told: Told) -> bool:
    packer = zlib.compressobj(wbits=31)
    data = packer.compress(told.body) + packer.flush()
    return _framed(told, [("Transfer-Encoding", "gzip, chunked")], _chunks(data) + b"0\r\n\r\n")


def _padded_coding(told: Told) -> bool:
    """A coding that is not undone, its bytes as many as were asked for."""
    body = gzip.compress(told.body)
    body = (body * (len(told.body) // len(body) + 1))[: len(told.body)]
    return told.tell(body=body, transfer_encoding="gzip")


def _multipart(told: Told) -> bool:
    body = f"--x\r\nContent-Range: {told.range}\r\n\r\n".encode() + told.body + b"\r\n--x--\r\n"
    return told.tell(206, body, content_type="multipart/byteranges; boundary=x", content_range=None)


def _multipart_disguised(told: Told) -> bool:
    return told.tell(206, content_type="multipart/byteranges; boundary=x")


def _redirect(told: Told, location: str, status: int = 302, body: bytes = b"moved") -> bool:
    return told.refuse(status, body, Location=location)


def _chain(told: Told) -> bool:
    at = int(told.asked.path.rpartition("chain")[2] or 0) if "chain" in told.asked.path else 0
    return _redirect(told, f"/chain{at + 1}")


def _circle(told: Told) -> bool:
    return _redirect(told, "/b" if told.asked.path != "/b" else "/a")


def _closed_port(told: Told) -> bool:
    return _redirect(told, "http://127.0.0.1:9/model.bin")


def _endless(text: bytes) -> Callable[[Told], bool]:
    def tell(told: Told) -> bool:
        return told.drip(itertools.repeat(text), 0)

    return tell


def _endless_headers(told: Told) -> bool:
    told.send(b"HTTP/1.1 206 OK\r\n")
    return told.drip((b"X-%d: y\r\n" % i for i in itertools.count()), 0)


def _endless_trailers(told: Told) -> bool:
    told.head(told.status, [*_without_length(told), ("Transfer-Encoding", "chunked")])
    told.send(_chunks(told.body) + b"0\r\n")
    return told.drip(itertools.repeat(b"X: y\r\n" * 1000), 0)


def _endless_extensions(told: Told) -> bool:
    told.head(told.status, [*_without_length(told), ("Transfer-Encoding", "chunked")])
    return told.drip(
        (b"1;" + b"x" * 30_000 + b"\r\n" + told.body[i : i + 1] + b"\r\n" for i in range(len(told.body))), 0
    )


def _chunked_as(told: Told, payload: bytes) -> bool:
    return _framed(told, [("Transfer-Encoding", "chunked")], payload)


TRUE_IN_OTHER_WORDS = [
    Lie("200 with the part's Content-Range", lambda t: t.tell(200)),
    Lie("no total", lambda t: t.tell(content_range=f"bytes {t.first}-{t.last}/*")),
    Lie("no length", lambda t: _framed(t, [("Connection", "close")], t.body)),
    Lie("chunked", lambda t: _chunked_as(t, _chunks(t.body) + b"0\r\n\r\n")),
    Lie(
        "chunked with extensions and trailers",
        lambda t: _chunked_as(t, _chunks(t.body, 999, b";a=b") + b"0\r\nX: y\r\n\r\n"),
    ),
    Lie(
        "chunked and a wrong length",
        lambda t: _framed(
            t, [("Content-Length", "17"), ("Transfer-Encoding", "chunked")], _chunks(t.body) + b"0\r\n\r\n"
        ),
    ),
    Lie("the same length twice", lambda t: _twice(t, "Content-Length", str(len(t.body)), wrong_first=True)),
    Lie("HTTP/1.0", lambda t: _framed(t, [("Content-Length", str(len(t.body)))], t.body, "HTTP/1.0")),
    Lie("HTTP/1.0 without a length", lambda t: _framed(t, [], t.body, "HTTP/1.0")),
    Lie("100 first", lambda t: _after(t, b"HTTP/1.1 100 Continue\r\n\r\n")),
    Lie("100 five times", lambda t: _after(t, b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n" * 5)),
    Lie("early hints first", lambda t: _after(t, b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")),
    Lie("bytes that nobody asked for", lambda t: _longer(t, "trailing")),
    Lie(
        "an answer that nobody asked for",
        lambda t: _longer(t, "trailing", b"HTTP/1.1 206 OK\r\nContent-Length: 1\r\n\r\nx"),
    ),
    Lie("a date that is none", lambda t: t.tell(date="yesterday", age="-1", retry_after="never")),
]
"""Odd, and right all the same."""

PASSING = [
    Lie("200 with the whole", lambda t: t.tell(200, t.now.data, content_range=None)),
    Lie("200 with the whole and its Content-Range", lambda t: t.tell(200, t.now.data, content_range=_all_of(t))),
    Lie("206 that begins early", lambda t: _shifted(t, t.first - 100, t.last)),
    Lie("206 that begins late", lambda t: _shifted(t, t.first + 100, t.last)),
    Lie("206 of the part before", lambda t: _shifted(t, t.first - 16384, t.first - 1)),
    Lie("206 that ends late", lambda t: _shifted(t, t.first, t.last + 100)),
    Lie("206 that ends early", lambda t: _shifted(t, t.first, t.last - 100)),
    Lie("206 without Content-Range", lambda t: t.tell(content_range=None)),
    Lie("206 in other units", lambda t: t.tell(content_range=t.range.replace("bytes", "lines"))),
    Lie("206 with a Content-Range of nonsense", lambda t: t.tell(content_range="bytes 5-1/100000000000000000000000")),
    Lie("an error page with 200", lambda t: t.tell(200, HTML, content_range=None, content_type="text/html")),
    Lie("an error page with 206", lambda t: t.tell(206, HTML, content_type="text/html")),
    Lie("an error page with 416", lambda t: t.refuse(416, HTML)),
    Lie("416 with the right total", lambda t: t.refuse(416, Content_Range=f"bytes */{len(t.now.data)}")),
    Lie("an error page with 500", lambda t: t.refuse(500, HTML)),
    Lie("an error page with 206 and nothing else", lambda t: t.refuse(206, HTML)),
    Lie("500 with the part's head", lambda t: t.tell(500)),
    Lie("204", lambda t: t.tell(204, b"")),
    Lie("304", lambda t: t.tell(304, b"")),
    Lie("300", lambda t: t.tell(300)),
    Lie("status 999", lambda t: t.tell(999)),
    Lie("a body of a half, then FIN", lambda t: _cut(t, 0.5)),
    Lie("a body of nothing, then FIN", lambda t: _cut(t, 0.0)),
    Lie("a body but for its last byte, then FIN", lambda t: _cut(t, 0.99999)),
    Lie("a body of a half, no length", lambda t: _cut(t, 0.5, framing="eof")),
    Lie("a body of a half, chunked, clean end", lambda t: _cut(t, 0.5, "clean", framing="chunked")),
    Lie("a body of a half, chunked, no end", lambda t: _cut(t, 0.5, framing="chunked")),
    Lie("reset in the middle", lambda t: _cut(t, 0.5, "rst")),
    Lie("reset in the middle, chunked", lambda t: _cut(t, 0.5, "rst", framing="chunked")),
    Lie("reset after the head", lambda t: _cut(t, 0.0, "rst")),
    Lie("reset in place of an answer", lambda t: t.reset()),
    Lie("hang up", lambda t: False),
    Lie("a length of half", lambda t: t.tell(body=t.body[: len(t.body) // 2])),
    Lie("a length of nothing", lambda t: t.tell(body=b"")),
    Lie("a negative length", lambda t: t.tell(content_length="-1")),
    Lie("a length of words", lambda t: t.tell(content_length="all of it")),
    Lie("two lengths, the second wrong", lambda t: _twice(t, "Content-Length", "5", wrong_first=False)),
    Lie("two lengths, the first wrong", lambda t: _twice(t, "Content-Length", "5", wrong_first=True)),
    Lie("two ranges, the second wrong", lambda t: _twice(t, "Content-Range", "bytes 1-2/3", wrong_first=False)),
    Lie("two ranges, the first wrong", lambda t: _twice(t, "Content-Range", "bytes 1-2/3", wrong_first=True)),
    Lie("a chunk of a negative size", lambda t: _chunked_as(t, b"-5\r\n" + t.body + b"\r\n0\r\n\r\n")),
    Lie("a chunk of a size of words", lambda t: _chunked_as(t, b"many\r\n" + t.body + b"\r\n0\r\n\r\n")),
    Lie("a chunk of an endless size", lambda t: _chunked_as(t, b"f" * 30 + b"\r\n" + t.body)),
    Lie("gzip, so declared", lambda t: _gzip_of_all(t)),
    Lie("gzip of the part, so declared", lambda t: t.tell(body=gzip.compress(t.body), content_encoding="gzip")),
    Lie("gzip of the part's length, so declared", lambda t: t.tell(content_encoding="gzip")),
    Lie("two encodings, the first gzip", lambda t: t.tell(content_encoding="gzip, identity")),
    Lie("two Content-Encodings, the first gzip", lambda t: _framed(t, _encodings(t, "gzip", "identity"), t.body)),
    Lie("a coding of the transfer", _raw_gzip),
    Lie("a coding of the transfer, as long as the part", _padded_coding),
    Lie("multipart", _multipart),
    Lie("a multipart of the part's length", _multipart_disguised),
    Lie("garbage", lambda t: t.send(b"\x00\xff\x16\x03garbage\r\n\r\n") or False),
    Lie("SSH", lambda t: t.send(b"SSH-2.0-OpenSSH_9.9\r\n") or False),
    Lie("HTTP/0.9", lambda t: t.send(t.body) or False),
    Lie("HTTP/2.0", lambda t: _framed(t, [], t.body, "HTTP/2.0")),
    Lie("half a head", lambda t: t.send(b"HTTP/1.1 206 OK\r\nContent-Le") or False),
    Lie("a line of a megabyte", lambda t: t.tell(x_long="x" * (1 << 20))),
    Lie("a thousand headers", lambda t: _framed(t, [(f"X-{i}", "y") for i in range(1000)], t.body)),
    Lie("a redirect to itself", lambda t: _redirect(t, t.asked.target)),
    Lie("a redirect in a circle", _circle),
    Lie("a redirect without end", _chain),
    Lie("a redirect to nowhere", _closed_port),
    Lie("a redirect to a file", lambda t: _redirect(t, "file:///etc/passwd")),
    Lie("a redirect without a Location", lambda t: t.refuse(302)),
    Lie("a redirect to an empty Location", lambda t: _redirect(t, "")),
    Lie("a redirect to a strange port", lambda t: _redirect(t, "http://127.0.0.1:99999/")),
    Lie("a redirect to a strange host", lambda t: _redirect(t, "http://[::1%25x]/\x01")),
    Lie("408", lambda t: t.refuse(408)),
    Lie("425", lambda t: t.refuse(425)),
    Lie("429", lambda t: t.refuse(429)),
    Lie("429 that wants no wait", lambda t: t.refuse(429, Retry_After="0")),
    Lie("429 with nonsense", lambda t: t.refuse(429, Retry_After="soon", RateLimit="r=;t=")),
    Lie("429 after the end of time", lambda t: t.refuse(429, Retry_After=f"Thu, 01 Jan {10**20} 00:00:00 GMT")),
    Lie("429 in an impossible zone", lambda t: t.refuse(429, Retry_After=f"Thu, 01 Jan 1970 00:00:00 +{10**20}")),
    Lie("503 with RateLimit spent", lambda t: t.refuse(503, RateLimit='"api";r=0;t=0')),
    Lie("503", lambda t: t.refuse(503)),
    Lie("a weak ETag", lambda t: t.tell(etag=f"W/{t.now.etag}")),
    Lie("no ETag", lambda t: t.tell(etag=None)),
    Lie("two ETags, the first wrong", lambda t: _twice(t, "ETag", '"v2"', wrong_first=True)),
    Lie("two ETags, the second wrong", lambda t: _twice(t, "ETag", '"v2"', wrong_first=False)),
    Lie("no ETag and no date", lambda t: t.tell(etag=None, last_modified=None)),
    Lie("502", lambda t: t.refuse(502)),
]
"""What another attempt may mend."""

SILENT = [
    Lie("a stalled first byte", lambda t: t.stall()),
    Lie("a stall after the head", lambda t: _cut(t, 0.0, "stall")),
    Lie("a stall in the middle", lambda t: _cut(t, 0.5, "stall")),
    Lie("a stall before the last byte", lambda t: _cut(t, 0.99999, "stall")),
    Lie("a stall in a chunk", lambda t: _cut(t, 0.5, "stall", framing="chunked")),
]
"""What ends only because we do not wait for ever."""

ENDLESS = [
    Lie("a body that drips", lambda t: _dripping(t, _bytes(t.body))),
    Lie("a head that drips", lambda t: _dripping(t, _head_bytes(t), head=False)),
    Lie("100 without end", _endless(b"HTTP/1.1 100 Continue\r\n\r\n")),
    Lie("103 without end", _endless(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")),
    Lie("a status line without end", _endless(b"H" * 10_000)),
    Lie("headers without end", _endless_headers),
    Lie("trailers without end", _endless_trailers),
    Lie("chunk extensions without end", _endless_extensions),
]
"""What keeps coming, so that it is no stall, and never gets anywhere."""

TOO_LONG = [
    Lie("a length beyond the body", lambda t: t.tell(content_length=str(len(t.body) + 5)) and t.stall()),
    Lie("a length of more", lambda t: _longer(t, "length")),
    Lie("more, chunked", lambda t: _longer(t, "chunked")),
    Lie("more, no length", lambda t: _longer(t, "eof")),
]
"""More than was promised."""

CHANGED = [
    Lie("412", lambda t: t.refuse(412)),
    Lie("another ETag", lambda t: t.tell(etag='"v2"')),
    Lie("an ETag for each part", lambda t: t.tell(etag=f'"part-{t.first}"')),
    Lie("another total", lambda t: t.tell(content_range=f"bytes {t.first}-{t.last}/{len(t.now.data) + 1}")),
    Lie("a smaller total", lambda t: t.tell(content_range=f"bytes {t.first}-{t.last}/{t.last + 2}")),
    Lie("416 with another total", lambda t: t.refuse(416, Content_Range="bytes */50")),
    Lie("a redirect to another object", lambda t: _redirect(t, "/other/model.bin")),
]
"""The origin speaks of another version."""

REFUSED = [
    Lie("401", lambda t: t.refuse(401, WWW_Authenticate="Basic realm=x")),
    Lie("403", lambda t: t.refuse(403)),
    Lie("451", lambda t: t.refuse(451)),
]
GONE = [Lie("404", lambda t: t.refuse(404)), Lie("410", lambda t: t.refuse(410))]

WRONG = [
    Lie("a flipped bit", lambda t: t.tell(body=_flip(t.body))),
    Lie("a flipped first bit", lambda t: t.tell(body=_flip(t.body, 0))),
    Lie("a flipped last bit", lambda t: t.tell(body=_flip(t.body, 1))),
    Lie("the bytes before", lambda t: _other_bytes(t, -1)),
    Lie("the bytes behind", lambda t: _other_bytes(t, 1)),
    Lie("zeros", lambda t: t.tell(body=bytes(len(t.body)))),
    Lie("a page as long as the part", lambda t: t.tell(body=(HTML * len(t.body))[: len(t.body)])),
    Lie("another object under the same name", lambda t: t.tell(body=t.liar.other.data[t.first : t.last + 1])),
    Lie("another object from the middle of the body on", lambda t: _changing(t)),
]
"""Wrong bytes under a right head: only a digest tells."""
