"""weightd as a contender: its receiver alone, in a process of its own, and the whole daemon.

`python -m benchmarks.ours ORDER` (an Order as JSON) prints the seconds from creating the segments to having them
sealed, and the digests. It is what the engine does for a fetch without NVMe: allocate, receive into the map, xxh3-128
of each part, and with `hashing` SHA-256 beside the transfer. With `directory` it is `weightd fetch --to`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks.hub import REPO
from benchmarks.machine import Unable, die_with_parent
from benchmarks.nginx import Origin

MODEL = "bench"
"""The configured name of the origin's files."""
LATE = ("aiohttp", "weightd.daemon.options", "weightd.engine.export", "weightd.storage.segments")
"""Imported before anything is measured: importing is not counted, for nobody."""
Settings = Mapping[str, Any]
"""Keys of the configuration as "fetch.receivers", with their values."""


class Order(msgspec.Struct, frozen=True):
    """What a process of this module does. `files` are paths below the endpoint, with sizes."""

    endpoint: str
    files: tuple[tuple[str, int], ...]
    ca: str = ""
    source: str = "http"
    settings: dict[str, Any] = {}
    hashing: bool = True
    directory: str = ""
    profile: bool = False


class Daemon(NamedTuple):
    """A daemon with a state of its own."""

    pid: int
    socket: Path
    state: Path
    address: str
    """For gRPC."""


def order(origin: Origin, settings: Settings, **more: Any) -> Order:
    """For all files of an origin."""
    files = tuple((f.key, f.size) for f in origin.files)
    return Order(origin.endpoint, files, origin.ca, origin.source, dict(settings), **more)


def configuration(settings: Settings, origin: Order | None = None) -> str:
    """TOML: `settings`, and the origin's files as the model `bench`."""
    given = dict(settings)
    if origin is not None:
        folder = origin.files[0][0].rpartition("/")[0]
        places = {"s3": f"s3://{folder}/", "hf": f"hf://{REPO}"}
        given[f"models.{MODEL}.source"] = places.get(origin.source, f"{origin.endpoint}/{folder}/")
        given[f"models.{MODEL}.files"] = [key.rpartition("/")[2] for key, _ in origin.files]
        given |= {"http.ca_file": origin.ca} if origin.ca else {}
        given |= {"s3.endpoint": origin.endpoint} if origin.source == "s3" else {}
    sections: dict[str, list[str]] = {}
    for name, value in given.items():
        section, _, key = name.rpartition(".")
        # JSON's numbers, strings and arrays of them are TOML's.
        sections.setdefault(section, []).append(f"{key} = {json.dumps(value)}")
    return "".join(f"[{section}]\n" + "\n".join(lines) + "\n\n" for section, lines in sections.items())


@contextlib.contextmanager
def daemon(home: Path, settings: Settings | None = None, origin: Order | None = None) -> Iterator[Daemon]:
    """`weightd serve` on `home`, which it fills; nothing of it stays running."""
    home.mkdir(parents=True, exist_ok=True)
    address = home / "weightd.sock"
    own = {"daemon.socket": str(address), "daemon.state_dir": str(home / "state"), "daemon.log_level": "warning"}
    (home / "config.toml").write_text(configuration({**own, **(settings or {})}, origin))
    command = [sys.executable, "-m", "weightd", "serve", "--at-stop", "drop", "--config", str(home / "config.toml")]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log, preexec_fn=die_with_parent)
    try:
        until = time.monotonic() + 30
        while not address.exists():
            if process.poll() is not None or time.monotonic() > until:
                raise Unable(f"the daemon did not start: {(home / 'log').read_text()}")
            time.sleep(0.02)
        yield Daemon(process.pid, address, home / "state", f"unix:{address}")
    finally:
        process.terminate()
        process.wait()


def daemon_fetch(home: Path, origin: Origin, settings: Settings, tier: str) -> float:
    """Seconds of `Client.fetch` of a model that a daemon never saw, on an empty state. Raises Unable when its bytes
    are not the origin's."""
    from weightd import Client

    try:
        with daemon(home, settings, order(origin, {})) as running, Client(str(running.socket)) as client:
            begin = time.perf_counter()
            model = client.fetch(MODEL, tier="nvme" if tier == "nvme" else "shm")
            seconds = time.perf_counter() - begin
            if {f.path: str(f.digest) for f in model.files} != {f.name: f"sha256:{f.sha256}" for f in origin.files}:
                raise Unable("the daemon received other bytes than the origin has")
        return seconds
    finally:
        shutil.rmtree(home, ignore_errors=True)


async def run(given: Order) -> dict[str, Any]:
    """One receive, with the configuration as a daemon would have it. `resolve`: seconds for the sizes and versions,
    which peers are told or find out in their own time."""
    from weightd.core.refs import parse_ref
    from weightd.daemon.config import load_config
    from weightd.daemon.options import make_sources, transfer_options

    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(configuration(given.settings, given))
        file.flush()
        config = load_config(Path(file.name), env={}, uid=os.geteuid())
    sources = make_sources(config)
    try:
        options = transfer_options(config)
        if given.directory:
            return await _fetch_to(given, sources, options)
        begin = time.perf_counter()
        manifest = await sources.resolve(parse_ref(MODEL))
        resolve = time.perf_counter() - begin
        found = await asyncio.to_thread(_receive, sources, manifest.files, options, given)
        return {"resolve": resolve, **found}
    finally:
        await sources.close()


async def _fetch_to(given: Order, sources: Any, options: Any) -> dict[str, Any]:
    from weightd.engine.export import fetch_to

    begin = time.perf_counter()
    files = await fetch_to(MODEL, Path(given.directory), sources=sources, options=options)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "sha256": {f.path: f.digest.removeprefix("sha256:") for f in files}}


def _receive(sources: Any, files: Any, options: Any, given: Order) -> dict[str, Any]:
    """The engine's transfer into a segment for each file. Without `hashing` SHA-256 is left out, as the peers of the
    first table do it."""
    from weightd.engine.buffers import SegmentBuffers
    from weightd.engine.jobs import FileJob, Frontier
    from weightd.engine.tasks import Pending
    from weightd.engine.transfer import Transfer
    from weightd.storage.segments import PosixSegmentStore

    store = PosixSegmentStore(f"bench{os.getpid()}")
    segments = []
    begin = time.perf_counter()
    try:
        jobs, size_of = [], options.part_sizes(files)
        for file in files:
            segments.append(segment := store.create("bench", file.size))
            buffers = SegmentBuffers(segment)
            jobs.append(
                job := FileJob(
                    file.path,
                    file.size,
                    part_size=size_of(file),
                    reader=partial(sources.reader, file),
                    width=partial(sources.width, file),
                    receiver=partial(sources.reader, file, buffers.shared(size_of(file))),
                    buffers=buffers,
                )
            )
            if not given.hashing:
                job.frontier = Frontier(False)
        Transfer([Pending.of(job) for job in jobs], options, lambda _: None).run()
        for segment in segments:
            segment.seal()
        seconds = time.perf_counter() - begin
        if given.hashing:
            digests = {j.path: j.digest.removeprefix("sha256:") for j in jobs}
        else:
            digests = {j.path: _sha256(s.path) for j, s in zip(jobs, segments, strict=True)}
    finally:
        for segment in segments:
            segment.unlink()
    return {"seconds": seconds, "sha256": digests}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    given = msgspec.json.decode(sys.argv[1], type=Order)
    for module in LATE:
        importlib.import_module(module)
    if given.profile:
        from benchmarks.profiling import Profile

        with Profile() as profile:
            found = asyncio.run(run(given))
        found["profile"] = profile.data()
    else:
        found = asyncio.run(run(given))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
