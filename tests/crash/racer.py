"""Processes on one directory, where flock(2) says yes to everybody, as on some network file systems.

`python -m tests.crash.racer TRACE ARGUMENT...` is `weightd ARGUMENT...` there, which appends "<pid> <inode>" to TRACE
for each write into the data of an ingest. `python -m tests.crash.racer - DIRECTORY` takes turns by lines of its
standard input: "open" resumes the ingest of IDENTITY, "write N" fills what it does not hold with bytes N and says what
its data is, "end" drops it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import sys
from pathlib import Path
from typing import Any

from weightd.storage.ingests import FileIngest, IngestDirectory

IDENTITY, PART, PARTS = "etag of a file", 4096, 10


def lie() -> None:
    """From now on every lock is had at once."""
    fcntl.flock = lambda fd, operation: None


def trace(path: Path) -> None:
    """Of every write into an ingest."""
    write = FileIngest.write

    def traced(ingest: FileIngest, offset: int, data: memoryview) -> None:
        inode = ingest.temporary.stat().st_ino
        write(ingest, offset, data)
        with path.open("a") as file:
            file.write(f"{os.getpid()} {inode}\n")

    FileIngest.write = traced  # type: ignore[method-assign]


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def fill(ingest: FileIngest, byte: int) -> None:
    with mmap.mmap(-1, PART) as memory:
        memory[:] = bytes([byte]) * PART
        with memoryview(memory) as view:
            for index in set(range(PARTS)) - set(ingest.held):
                ingest.write(index * PART, view)
                ingest.record({index: bytes([byte]) * 16})


def turns(directory: Path) -> None:
    ingest: FileIngest | None = None
    say(ready=True)
    for line in sys.stdin:
        match line.split():
            case ["open"]:
                # As if each time another process began.
                ingest = IngestDirectory(directory, 0o440).open(PARTS * PART, [IDENTITY], PART)
                say(place=ingest.place.name, held=sorted(ingest.held))
            case ["write", byte] if ingest:
                fill(ingest, int(byte))
                say(data=hashlib.sha256(ingest.temporary.read_bytes()).hexdigest())
            case ["end"] if ingest:
                ingest.abort()
                say(ended=True)


if __name__ == "__main__":
    lie()
    if sys.argv[1] == "-":
        turns(Path(sys.argv[2]))
    else:
        from weightd.cli.main import main

        trace(Path(sys.argv[1]))
        main(sys.argv[2:])
