"""A worker with many leases: `python -m benchmarks.residency.holders SOCKET COUNT REF…` takes COUNT, of each ref in
turn, says so, and keeps them until its stdin ends."""

from __future__ import annotations

import itertools
import sys


def main() -> None:
    from weightd import Client

    socket, count, *refs = sys.argv[1:]
    with Client(socket) as client:
        leases = [client.acquire(ref) for ref in itertools.islice(itertools.cycle(refs), int(count))]
        print(len(leases), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
