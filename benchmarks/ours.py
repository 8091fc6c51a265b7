"""weightd as a contender: its receiver alone, in a process of its own, and the whole daemon.

`python -m benchmarks.ours ENDPOINT hash|plain` prints the seconds from creating the segment to having it sealed, and
its digest. It is what the engine does for a fetch without NVMe: allocate, receive into the map, xxh3-128 of each part,
and with "hash" SHA-256 beside the transfer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import Unable, die_with_parent
from benchmarks.nginx import BUCKET, KEY


class Daemon(NamedTuple):
    """A daemon with a state of its own."""

    pid: int
    socket: Path
    state: Path
    address: str
    """For gRPC."""


CONFIG = """\
[daemon]
socket = "{home}/weightd.sock"
state_dir = "{home}/state"
log_level = "warning"
"""


@contextlib.contextmanager
def daemon(home: Path) -> Iterator[Daemon]:
    """`weightd serve` on `home`, which it fills; nothing of it stays running."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text(CONFIG.format(home=home))
    address = home / "weightd.sock"
    command = [sys.executable, "-m", "weightd", "serve", "--config", str(home / "config.toml")]
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


async def receive(endpoint: str, *, hashing: bool) -> dict[str, Any]:
    """The engine's transfer into a segment. `hashing` False leaves SHA-256 out, as the peers of the first table do."""
    from weightd.core.refs import parse_ref
    from weightd.sources.http import HttpSource

    source = HttpSource()
    try:
        manifest = await source.resolve(parse_ref(f"{endpoint}/{BUCKET}/{KEY}"))
        return await asyncio.to_thread(_receive, source, manifest.files[0], hashing)
    finally:
        await source.close()


def _receive(source: Any, spec: Any, hashing: bool) -> dict[str, Any]:
    from weightd.core.parts import DEFAULT_PART
    from weightd.engine.buffers import SegmentBuffers
    from weightd.engine.jobs import FileJob, Frontier
    from weightd.engine.transfer import Transfer, TransferOptions
    from weightd.storage.segments import PosixSegmentStore

    store = PosixSegmentStore(f"bench{os.getpid()}")
    begin = time.perf_counter()
    segment = store.create("bench", spec.size)
    try:
        reader = partial(source.reader, spec)
        job = FileJob(spec.path, spec.size, part_size=DEFAULT_PART, reader=reader, buffers=SegmentBuffers(segment))
        if not hashing:
            job.frontier = Frontier(False)
        Transfer([job], TransferOptions(), lambda _: None).run()
        segment.seal()
        seconds = time.perf_counter() - begin
        digest = job.digest.removeprefix("sha256:") if hashing else _sha256(segment.path)
    finally:
        segment.unlink()
    return {"seconds": seconds, "sha256": digest}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    endpoint, mode = sys.argv[1:]
    print(json.dumps(asyncio.run(receive(endpoint, hashing=mode == "hash"))))


if __name__ == "__main__":
    main()
