"""A program that publishes segments as the daemon does, and lives until its standard input ends.

python -m tests.isolation.maker COUNT       prints their paths, one a line, then its pid
"""

from __future__ import annotations

import os
import secrets
import sys

from weightd.storage.segments import PosixSegmentStore

SIZE = 8192
CONTENT = b"w" * SIZE


def main() -> None:
    store = PosixSegmentStore("iso" + secrets.token_hex(4), group=os.getegid())
    for _ in range(int(sys.argv[1])):
        segment = store.create("model", SIZE)
        segment.prepare(0, SIZE)
        segment.view[:] = CONTENT
        segment.seal()
        print(segment.path)
    print(os.getpid(), flush=True)
    sys.stdin.read()
    # Some were renamed or replaced by who may: only what is still ours goes.
    store.drop_leftovers()


if __name__ == "__main__":
    main()
