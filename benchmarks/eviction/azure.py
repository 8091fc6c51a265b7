"""A reader for Azure's public trace of function invocations of January 2021, which is not part of this repository.

`app,func,end_timestamp,duration`, a header and a line for each invocation, times in seconds: the file
AzureFunctionsInvocationTraceForTwoWeeksJan2021.txt of https://github.com/Azure/AzurePublicDataset, CC-BY (Zhang et al.,
"Faster and Cheaper Serverless Computing on Harvested Resources", SOSP 2021). Which application is asked for, and when,
is real; that it is a model, and its size, is made up: see `read`.
"""

from __future__ import annotations

import csv
import hashlib
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.eviction.synthetic import LARGEST, SMALLEST
from benchmarks.eviction.trace import File, Request, Snapshot, Trace
from benchmarks.machine import Unable

COLUMNS: Final = ("app", "func", "end_timestamp", "duration")
KEEP_S: Final = 600.0
"""A worker that serves an application stays for so long after the last invocation, as serverless hosts do: what comes
meanwhile needs no new lease. 10 minutes are in the middle of what Shahrad et al., "Serverless in the Wild" (USENIX ATC
2020), tell of providers."""


def read(path: Path) -> Trace:
    """Applications are models, of sizes log-uniform from 0.1 to 140 GB that follow from their names, in one file each.
    A lease begins with an invocation and ends KEEP_S after the last one. Raises Unable."""
    requests = sorted(_leases(sorted(_invocations(path))), key=lambda r: r.time)
    if not requests:
        raise Unable(f"{path} has no invocation")
    snapshots = {r.key: Snapshot(r.ref, r.revision, (File(r.ref, _size(r.ref)),)) for r in requests}
    return Trace(path.stem, snapshots, tuple(requests), about=f"Azure Functions, {path.name}; sizes made up")


def _invocations(path: Path) -> Iterator[tuple[float, float, str]]:
    """Begin, end and application."""
    try:
        with path.open(newline="", encoding="ascii") as file:
            rows = csv.DictReader(file)
            if missing := set(COLUMNS) - set(rows.fieldnames or ()):
                raise Unable(f"{path} has no column {', '.join(sorted(missing))}; it should be the trace of 2021")
            for number, row in enumerate(rows, 2):
                yield _invocation(path, number, row)
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise Unable(f"{path} cannot be read: {e}") from e


def _invocation(path: Path, number: int, row: dict[str, str]) -> tuple[float, float, str]:
    try:
        end, duration = float(row["end_timestamp"]), float(row["duration"])
    except (TypeError, ValueError) as e:
        raise Unable(f"{path} line {number}: {e}") from e
    if not (math.isfinite(end) and math.isfinite(duration) and duration >= 0 and row["app"]):
        raise Unable(f"{path} line {number} is no invocation")
    return end - duration, end, row["app"]


def _leases(invocations: list[tuple[float, float, str]]) -> Iterator[Request]:
    """`invocations` by when they begin."""
    alive: dict[str, tuple[float, float]] = {}
    for begin, end, app in invocations:
        since, until = alive.get(app, (begin, begin))
        if begin > until:
            yield Request(since, app, "0", until - since)
            since = begin
        alive[app] = since, max(until, end + KEEP_S)
    for app, (since, until) in alive.items():
        yield Request(since, app, "0", until - since)


def _size(app: str) -> int:
    rng = random.Random(hashlib.sha256(app.encode()).digest())
    return int(math.exp(rng.uniform(math.log(SMALLEST), math.log(LARGEST))))
