"""A load: `python -m benchmarks.fetching SOCKET ENDPOINT` fetches the origin's file again and again until SIGTERM.

Each time it is a model that the daemon does not know, of this process or another. It prints a line for each: seconds.
"""

from __future__ import annotations

import itertools
import os
import sys
import time

from benchmarks.nginx import BUCKET, KEY


def main() -> None:
    from weightd import Client

    socket, endpoint = sys.argv[1:]
    with Client(socket) as client:
        for number in itertools.count():
            begin = time.perf_counter()
            client.fetch(f"{endpoint}/as/{os.getpid()}-{number}/{BUCKET}/{KEY}")
            print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
