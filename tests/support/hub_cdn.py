"""The CDN of the Hub: another origin, which serves LFS files to whoever has an address that is signed and not expired.

    cdn.life = 5                # seconds for which the addresses made from now on are good, by `cdn.clock`
    cdn.uses = 1                # and how many requests
    cdn.expire()                # every address made so far is refused from now on
    assert not cdn.violations   # requests that brought a token

A signature is over path and query as they were sent: whoever decodes a %2F in them gets 403.
"""

from __future__ import annotations

import base64
import calendar
import hashlib
import hmac
import json
import ssl
import time
from collections.abc import Callable
from urllib.parse import parse_qs, quote

from tests.support.hub_repos import HubFile
from tests.support.origin import Answer, Asked, Fault, Origin, of_file, plain

_REFUSED = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code><Message>Access denied</Message></Error>'
)


class Cdn(Origin):
    """See the module."""

    def __init__(self, clock: Callable[[], float] = time.time, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__({}, tls=tls)
        self.clock = clock
        self.life = 3600
        self.uses: int | None = None
        self.style = "cloudfront"
        """Or "amz": how the end of an address stands in its query."""
        self.largest: int | None = None
        """Bytes; larger files are refused with `too_large`, as the Hub does where only Xet brings them."""
        self.too_large = 403
        self.violations: list[str] = []
        """Targets of requests that had an Authorization header."""
        self._secret = b"the key of the CDN"
        self._objects: dict[str, HubFile] = {}
        self._signed = 0
        self._oldest = 1
        self._left: dict[int, int] = {}

    @property
    def signed(self) -> int:
        """How many addresses were made."""
        return self._signed

    def sign(self, repo: str, path: str, file: HubFile) -> str:
        """An address of the file for `life` seconds and `uses` requests."""
        assert file.sha256 is not None
        name = f"xet-bridge-us/{hashlib.sha1(repo.encode()).hexdigest()[:24]}/{file.sha256}"
        now = self.clock()
        with self._lock:
            self._signed += 1
            number = self._signed
            self._objects[name] = file
            if self.uses is not None:
                self._left[number] = self.uses
        ends = int(now) + self.life
        shown = quote(f"inline; filename*=UTF-8''{path.split('/')[-1]}; filename=\"{path.split('/')[-1]}\";", safe="*")
        query = f"X-Xet-Cas-Uid=public&response-content-disposition={shown}&N={number}%2Fus&"
        if self.style == "amz":
            date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
            query += f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={date}&X-Amz-Expires={self.life}&X-Amz-Signature="
        else:
            query += f"Expires={ends}&Policy={self._policy(name, ends)}&Key-Pair-Id=K2L8F4GPSG1IFC&Signature="
        unsigned = f"{name}?{query}"
        return self.url(unsigned + self._signature(unsigned, ends))

    def expire(self) -> None:
        with self._lock:
            self._oldest = self._signed + 1

    def answer(self, asked: Asked, fault: Fault) -> Answer:
        if "authorization" in asked.headers:
            with self._lock:
                self.violations.append(asked.target)
            return plain(400, b"<Error><Code>InvalidArgument</Code></Error>")
        if asked.method not in ("GET", "HEAD"):
            return plain(405, b"GET or HEAD")
        target, _, query = asked.target.lstrip("/").partition("?")
        file = self._objects.get(target)
        if file is None or not self._holds(target, query):
            return plain(403, _REFUSED, {"Content-Type": "application/xml", "X-Cache": "Error from cloudfront"})
        if self.largest is not None and file.content.size > self.largest:
            return plain(self.too_large, b"<Error><Code>EntityTooLarge</Code></Error>")
        etag = file.content.etag if fault.etag is None else fault.etag
        return of_file(file.content, etag, asked.headers, fault)

    def _holds(self, name: str, query: str) -> bool:
        """Whether the signature is ours, of these bytes, and still good. Counts one use."""
        unsigned, _, signature = query.rpartition("=")
        said = parse_qs(query)
        try:
            number = int(said["N"][0].split("/")[0])
            if "X-Amz-Date" in said:
                signed = time.strptime(said["X-Amz-Date"][0] + " UTC", "%Y%m%dT%H%M%SZ %Z")
                ends = calendar.timegm(signed) + int(said["X-Amz-Expires"][0])
            else:
                ends = int(said["Expires"][0])
        except (KeyError, ValueError):
            return False
        if not hmac.compare_digest(signature, self._signature(f"{name}?{unsigned}=", ends)):
            return False
        with self._lock:
            if number < self._oldest or self._left.get(number, 1) <= 0:
                return False
            if number in self._left:
                self._left[number] -= 1
        return self.clock() < ends

    def _signature(self, unsigned: str, ends: int) -> str:
        return hmac.new(self._secret, f"{unsigned}\n{ends}".encode(), hashlib.sha256).hexdigest()

    def _policy(self, name: str, ends: int) -> str:
        until = {"DateLessThan": {"AWS:EpochTime": ends}}
        policy = {"Statement": [{"Condition": until, "Resource": self.url(f"{name}*")}]}
        text = base64.b64encode(json.dumps(policy).encode()).decode()
        return text.translate(str.maketrans("+=/", "-_~"))
