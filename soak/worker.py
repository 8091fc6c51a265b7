"""A worker: `python -m soak.worker SOCKET SECONDS CLINGS REF...` acquires, reports the digest of every file, keeps all
mapped, and at the end looks whether a byte changed; where CLINGS is 1 without its leases. One JSON object on a line."""

from __future__ import annotations

import hashlib
import json
import sys
import time

from weightd.client.client import Client
from weightd.client.lease import Lease
from weightd.core.errors import WeightdError

WAIT_S = 90.0


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def digest(view: memoryview) -> str:
    sha = hashlib.sha256()
    for at in range(0, len(view), 1 << 20):
        sha.update(view[at : at + (1 << 20)])
    return f"sha256:{sha.hexdigest()}"


def acquire(client: Client, ref: str) -> list[tuple[Lease, str, memoryview, str]]:
    """Lease, path, bytes and digest of each file; nothing after a typed error, which is reported."""
    try:
        lease = client.acquire(ref, timeout=WAIT_S)
        found = [(lease, path, file.buffer, file.digest) for path, file in lease.files.items()]
    except WeightdError as e:
        say(what="error", ref=ref, kind=type(e).__name__, text=str(e))
        return []
    held = []
    for lease, path, view, promised in found:
        real = digest(view)
        say(what="file", ref=ref, path=path, digest=real, promised=promised, size=len(view))
        held.append((lease, path, view, real))
    return held


def main(socket: str, seconds: float, clings: bool, refs: list[str]) -> None:
    with Client(socket) as client:
        held = [entry for ref in refs for entry in acquire(client, ref)]
        say(what="held", files=len(held))
        if not clings:
            time.sleep(seconds)
        for lease, *_ in held:
            lease.release()
        if clings:
            time.sleep(seconds)
        # Nothing changes while it is held, nor afterwards: the views are still there.
        for _, path, view, before in held:
            if (after := digest(view)) != before:
                say(what="changed", path=path, before=before, after=after)
    say(what="done", size=sum(view.nbytes for _, _, view, _ in held))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3] == "1", sys.argv[4:])
