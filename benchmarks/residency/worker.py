"""A worker: `python -m benchmarks.residency.worker SOCKET REF` acquires, maps and reads all of a model, prints the
xxh3-128 of its files, and keeps it until its stdin ends."""

from __future__ import annotations

import sys

import xxhash


def main() -> None:
    from weightd import Client

    socket, ref = sys.argv[1:]
    with Client(socket) as client, client.acquire(ref) as lease:
        digest = xxhash.xxh3_128()
        for path in sorted(lease.files):
            digest.update(lease.files[path].buffer)
        print(digest.hexdigest(), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
