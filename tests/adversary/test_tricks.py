"""What takes more than one answer: signatures that expire, edges that crawl, storms, mirrors that disagree."""

from __future__ import annotations

import ssl
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.adversary import lies
from tests.adversary.origin import Asked, Liar, Lie, Told, Version, honest
from tests.adversary.test_lies import DATA, DIGEST, FETCH
from tests.adversary.world import HTTP, PART, SECRETS, always, once, world
from tests.engine.rig import pattern
from tests.support.tls import make_certificate
from weightd.core.errors import DigestMismatch, SourceChanged, SourceDenied, SourceUnavailable
from weightd.engine import requests as requests_module
from weightd.engine.api import Tier

NEW = pattern(len(DATA), "new")
BOTH = pytest.mark.parametrize("tier", list(Tier))


def told(tell: object, name: str = "told") -> Lie:
    return Lie(name, tell)  # type: ignore[arg-type]


def swapping(liar: Liar, new: Version, at: int) -> None:
    """The object is another from this request on."""

    def script(asked: Asked) -> Lie | None:
        if asked.number == at:
            liar.now = new
        return None

    liar.script = script


@BOTH
@pytest.mark.parametrize("at", [1, 2, 4, FETCH - 1])
@pytest.mark.parametrize(
    "new",
    [
        Version(NEW, '"v2"'),
        Version(NEW[:-PART], '"v2"'),
        Version(NEW + NEW, '"v2"'),
        Version(b"", '"v2"'),
        Version(NEW, ""),
        Version(NEW, '"v2"', ranges=False),
    ],
    ids=["as long", "shorter", "longer", "empty", "unnamed", "without ranges"],
)
async def test_an_object_that_changes(tmp_path: Path, tier: Tier, at: int, new: Version) -> None:
    """Before any request of the fetch: the new one, whole, and nothing of the old one with it."""
    async with world(tmp_path, DATA) as w:
        swapping(w.liar, new, at)
        got = await w.fetch(tier=tier)
        if new.etag:
            assert got == new.data
        else:  # It does not say that it is another: as long as it says nothing, it is not believed.
            assert type(got) in (bytes, SourceUnavailable)
            w.liar.script = honest
            assert await w.fetch(tier=tier) == new.data
        assert len(w.liar.log) <= 3 * FETCH + 9


@pytest.mark.parametrize("at", [2, 3])
async def test_an_unnamed_object_that_changes_between_two_attempts(tmp_path: Path, at: int) -> None:
    """Neither ETag nor date: it comes as one stream, and what is read twice is compared."""
    old, new = Version(DATA, "", ""), Version(NEW, "", "")
    async with world(tmp_path, old) as w:

        def script(asked: Asked) -> Lie | None:
            if asked.number == at:
                w.liar.now = new
            return cut if asked.number == 1 else None

        cut = told(lambda t: t.head(206, t.headers()) or t.send(t.body[: 3 * PART + 5]) or False)
        w.liar.script = script
        assert await w.fetch() == (NEW if at == 2 else DATA)
        await w.check(blobs=1)


@pytest.mark.parametrize(("receivers", "ends"), [(1, [3, 6]), (3, [3])])
async def test_a_signature_that_expires(tmp_path: Path, receivers: int, ends: list[int]) -> None:
    """In mid-fetch, before these answers, for all who use it: it is renewed, its "%2F" arrives as it was written, no
    credential goes along, and nothing fails."""
    async with world(tmp_path, DATA, receivers=receivers) as w:
        with Liar(DATA) as cdn:
            now = [1]
            renew = told(lambda t: t.refuse(307, Location=cdn.url(f"a%2Fb?sig=x%2Fy%2B{now[0]}")))
            w.liar.script = always(renew, probes=True)

            def expiring(asked: Asked) -> Lie | None:
                if asked.number in ends:
                    now[0] += 1
                return None if asked.target.endswith(f"%2B{now[0]}") else lies.REFUSED[1]

            cdn.script = expiring
            assert await w.fetch() == DATA
            await w.check(blobs=1)
            assert now == [1 + len(ends)]
            assert all(a.target.startswith("/a%2Fb?sig=x%2Fy%2B") for a, _ in cdn.log)
            assert not any("authorization" in a.headers or s in str(a) for a, _ in cdn.log for s in SECRETS)
            assert len(cdn.log) <= FETCH + 2 * receivers
            assert len(w.liar.log) <= 1 + 3 * receivers


async def test_a_redirect_to_a_host_that_asks_who_we_are(tmp_path: Path) -> None:
    async with world(tmp_path, DATA) as w:
        with Liar(DATA) as thief:
            thief.script = always(lies.REFUSED[0], probes=True)
            w.liar.script = always(told(lambda t: t.refuse(302, Location=thief.url("x"))))
            assert type(await w.fetch()) is SourceDenied
            assert thief.log
            assert not any("authorization" in a.headers or s in str(a) for a, _ in thief.log for s in SECRETS)


@BOTH
async def test_mirrors_that_disagree_and_say_so(tmp_path: Path, tier: Tier) -> None:
    """Behind one name, each with its own version: whoever answers the probe, the parts come from both."""
    async with world(tmp_path, DATA) as w:
        other = told(lambda t: t.tell(body=NEW[t.first : t.last + 1], etag='"mirror"'))
        w.liar.script = lambda asked: other if asked.connection % 2 else None
        got = await w.fetch(tier=tier)
        assert got in (DATA, NEW) or type(got) is SourceChanged
        await w.check(blobs=int(isinstance(got, bytes)), tier=tier)


@BOTH
async def test_mirrors_that_disagree_and_do_not_say_so(tmp_path: Path, tier: Tier) -> None:
    async with world(tmp_path, DATA) as w:
        other = told(lambda t: t.tell(body=NEW[t.first : t.last + 1]))
        w.liar.script = lambda asked: other if asked.connection % 2 else None
        got = await w.fetch(DIGEST, tier)
        assert got == DATA or type(got) is DigestMismatch
        await w.check(blobs=int(got == DATA), tier=tier)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("headers", [{"Retry-After": "1"}, {"RateLimit": '"api";r=0;t=1'}], ids=["wait", "spent"])
async def test_a_storm_that_says_when_it_ends(tmp_path: Path, status: int, headers: dict[str, str]) -> None:
    """For a second everybody is refused. Whoever was told waits, and the others with it: few ask in vain."""
    async with world(tmp_path, DATA) as w:
        refuse = told(lambda t: t.refuse(status, **{k.replace("-", "_"): v for k, v in headers.items()}))
        began: list[float] = []

        def script(asked: Asked) -> Lie | None:
            if asked.probe:
                return None
            began.append(time.monotonic())
            return refuse if began[-1] < began[0] + 0.95 else None

        w.liar.script = script
        assert await w.fetch() == DATA
        assert len(w.liar.log) <= FETCH + 4, "the first ones, which were under way together"


async def test_a_storm_without_end(tmp_path: Path) -> None:
    async with world(tmp_path, DATA) as w:
        w.liar.script = always(told(lambda t: t.refuse(503, Retry_After="0")), probes=True)
        assert type(await w.fetch()) is SourceUnavailable
        assert len(w.liar.log) <= 3


@BOTH
async def test_one_edge_of_several_is_slow(tmp_path: Path, tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight times slower than the others, and never silent: its part comes by another connection."""
    monkeypatch.setattr("weightd.engine.transfer.WATCH_S", 0.2)
    monkeypatch.setattr(requests_module, "WORTH_S", 0.0)
    monkeypatch.setattr("weightd.engine.receiver.RECEIVE", PART // 16)
    first, slow = threading.Event(), list[int]()

    def trickling(t: Told) -> bool:
        if not first.is_set():
            first.set()
            slow.append(t.asked.number)
        pause = 0.8 if t.asked.number in slow else 0.1
        t.head(t.status, t.headers())
        for at in range(0, len(t.body), PART // 16):
            t.send(t.body[at : at + PART // 16])
            if t.stopping.wait(pause):
                return False
        return True

    async with world(tmp_path, DATA * 2, receivers=4, attempts=1) as w:
        w.liar.script = always(told(trickling))
        assert await w.fetch(tier=tier) == DATA * 2
        (number,) = slow
        part = (w.liar.log[number][0].first or 0) // PART
        assert [(a.first or 0) // PART for a, _ in w.liar.log if not a.probe].count(part) == 2
        await w.check(blobs=1, tier=tier)


@BOTH
@pytest.mark.parametrize("data", [b"", b"x"], ids=["empty", "one byte"])
async def test_hardly_a_file(tmp_path: Path, tier: Tier, data: bytes) -> None:
    async with world(tmp_path, data) as w:
        assert await w.fetch(tier=tier) == data
        await w.rig.check_idle(blobs=1, segments=len(data) if tier is Tier.SHM else 0)


@pytest.mark.parametrize(
    ("etag", "modified"),
    [('"\xc3\xa9"', ""), ('"\xe4"', "\xe4\xb8\xad\xe6\x96\x87"), ("", "\xe4\xb8\xad"), ("", "x" * 5000), ('"a', '"')],
)
async def test_names_of_versions_that_nobody_would_choose(tmp_path: Path, etag: str, modified: str) -> None:
    """What can be sent back is used, and what cannot is not: the fetch goes on."""
    async with world(tmp_path, Version(DATA, etag, modified)) as w:
        assert await w.fetch() == DATA
        await w.check(blobs=1)


def secured(certificate: Path) -> dict[str, Any]:
    """Options of a world with TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return {"tls": context, "http": msgspec.structs.replace(HTTP, ca_file=str(certificate))}


TRUNCATED = [lie for lie in lies.PASSING if lie.name.startswith(("a body of", "reset", "hang up"))]


@pytest.mark.parametrize("lie", [*TRUNCATED, *lies.TRUE_IN_OTHER_WORDS[2:5]], ids=repr)
async def test_tls_that_ends_without_saying_so(tmp_path: Path, certificate: Path, lie: Lie) -> None:
    """An attacker can cut a connection: no close_notify, and what is missing is asked for again."""
    async with world(tmp_path, DATA, **secured(certificate)) as w:
        w.liar.script = once(lie, part=2)
        assert await w.fetch() == DATA
        assert len(w.liar.log) <= FETCH + 2
        await w.check(blobs=1)


async def test_a_downgrade_in_mid_fetch(tmp_path: Path, certificate: Path) -> None:
    async with world(tmp_path, DATA, **secured(certificate)) as w:
        with Liar(DATA) as plain:
            w.liar.script = always(told(lambda t: t.refuse(302, Location=plain.url("model.bin"))))
            assert type(await w.fetch()) is SourceDenied
            assert plain.log == []
            await w.check()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls") / "both.pem")
