"""A lying origin, the real engine over the real HTTP source, and what may be left when a fetch has ended."""

from __future__ import annotations

import asyncio
import os
import ssl
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.adversary.origin import Asked, Liar, Lie, Script, Version
from tests.engine.rig import Rig, moving_threads, running
from weightd.core.digest import Digest
from weightd.core.errors import WeightdError
from weightd.engine.api import Tier
from weightd.engine.export import ExportedFile, fetch_to
from weightd.engine.transfer import TransferOptions
from weightd.sources.connection import HttpOptions
from weightd.sources.registry import SourceOptions, Sources
from weightd.storage.ledger import Ledger

PART = 16 << 10
SECRETS = ("s3cr3t", "p%40ss", "p@ss", "tok3n", "dTpwQHNz")
"""Of every ref here; the last is the base64 of "u:p@ss"."""
HTTP = HttpOptions(connect_timeout=2.0, read_timeout=2.0, attempts=2, pause=0.0)
IMPATIENT = HttpOptions(connect_timeout=0.5, read_timeout=0.3, attempts=2, pause=0.0)
"""For what never ends by itself."""
MOVE = TransferOptions(part_size=PART, receivers=3, attempts=3, pause=0.0)


class RealSources(Sources):
    """As `tests.engine.rig` wants its origin."""

    def __init__(self, options: SourceOptions | None = None) -> None:
        super().__init__(options or SourceOptions(http=HTTP))
        self.readers: set[object] = set()

    def release(self) -> None:
        """Nothing is held here."""


@dataclass
class World:
    """One engine and one liar. `errors` are all that were raised so far."""

    rig: Rig
    liar: Liar
    errors: list[WeightdError] = field(default_factory=list)

    @property
    def ref(self) -> str:
        """With secrets in it."""
        return secret(self.liar.url("model.bin"))

    async def fetch(self, sha256: Digest | None = None, tier: Tier = Tier.SHM) -> bytes | WeightdError:
        """The bytes, or the error that it ended with."""
        try:
            model = await self.rig.fetch(self.ref, tier, sha256)
        except WeightdError as e:
            self.errors.append(e)
            check_error(e)
            return e
        (content,) = self.rig.content(model).values()
        return content

    async def check(self, *, blobs: int = 0, tier: Tier = Tier.SHM) -> set[int]:
        """Nothing but these is left. Returns the parts that a kept ingest has."""
        await self.rig.check_idle(blobs=blobs, segments=blobs if tier is Tier.SHM else 0, kept=1)
        engine = self.rig.engine
        assert len(engine._fetcher._bringer._claims) == 0
        assert len(engine._fetcher._flights) == 0
        assert engine._catalog.kept._claimed == {}
        gates = engine._sources._by_scheme["http"]._pool.gates._gates  # type: ignore[attr-defined]
        assert [g.running for g in gates.values()] == [0] * len(gates)
        explained(self.rig.root)
        return recorded(self.rig.root)


@asynccontextmanager
async def world(
    root: Path,
    data: bytes | Version,
    *,
    http: HttpOptions = HTTP,
    tls: ssl.SSLContext | None = None,
    **transfer: int,
) -> AsyncIterator[World]:
    """Both are stopped at the end, after which no descriptor, map or thread is left."""
    with nothing_left():
        with Liar(data, tls=tls) as liar:
            options = {k: getattr(MOVE, k) for k in ("part_size", "receivers", "attempts", "pause")} | transfer
            async with running(root, RealSources(SourceOptions(http=http)), **options) as rig:
                yield World(rig, liar)


@contextmanager
def nothing_left() -> Iterator[None]:
    """No descriptor after that was not there before, and no map of a segment."""
    before = open_files()
    yield
    after = open_files()
    assert not after - before, (before, after)
    assert [m for m in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm/weightd-" in m] == []


def open_files() -> Counter[str]:
    """Sockets and files that this process has open, each by its own name, but for the interpreter's own."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            found[os.readlink(f"/proc/self/fd/{name}")] += 1
        except OSError:
            continue
    return Counter({name: count for name, count in found.items() if name.startswith(("socket:", "/"))})


async def export(
    liar: Liar, out: Path, sha256: Digest | None = None, http: HttpOptions = HTTP
) -> list[ExportedFile] | WeightdError:
    """`weightd fetch --to`, in this process."""
    sources = RealSources(SourceOptions(http=http))
    try:
        return await fetch_to(secret(liar.url("model.bin")), out, sources=sources, sha256=sha256, options=MOVE)
    except WeightdError as e:
        check_error(e)
        return e
    finally:
        await sources.close()
        async with asyncio.timeout(5):
            while moving_threads():  # noqa: ASYNC110 - nobody is told when a thread has ended
                await asyncio.sleep(0.01)


def secret(url: str) -> str:
    """With a user, a password and a signature."""
    return url.replace("://", "://u:p%40ss@") + "?token=s3cr3t&sig=tok3n"


def check_error(e: WeightdError) -> None:
    """It says what, to which ref, and what to do, on one line, and tells no secret: in no part of it."""
    assert type(e) is not WeightdError
    assert e.message
    assert e.ref
    assert e.remedy
    assert "\n" not in str(e)
    assert len(str(e)) < 2000
    text = f"{e!s} {e!r} {vars(e)} {''.join(traceback.format_exception(e))}"
    assert not any(s in text for s in SECRETS), text


def recorded(where: Path) -> set[int]:
    """Parts that are kept to be resumed."""
    found: set[int] = set()
    for path in where.rglob("ledger"):
        read = Ledger.read(path)
        assert read is not None
        found |= set(read[1])
    return found


def explained(root: Path) -> None:
    """Every file below a state directory is one that has to be there."""
    for path in root.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            continue
        place = path.relative_to(root).parts
        match place:
            case ("state.db" | "state.db-wal" | "state.db-shm",) | ("blobs", "sha256", _, _) | ("models", *_):
                pass
            case ("ingest", name, "data" | "ledger") if "." in name:
                pass
            case _:
                raise AssertionError(f"{path} is left")


def always(lie: Lie, *, probes: bool = False, parts: bool = True) -> Script:
    """For every request, or only the probes, or only the parts."""
    return lambda asked: lie if (probes if asked.probe else parts) else None


def once(lie: Lie, part: int, times: int = 1) -> Script:
    """The first time that this part is asked for, then the truth."""
    left = [times]

    def script(asked: Asked) -> Lie | None:
        hit = asked.first is not None and not asked.probe and asked.first // PART == part
        if hit and left[0]:
            left[0] -= 1
            return lie
        return None

    return script
