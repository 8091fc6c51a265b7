"""`python -m benchmarks.fetch`: how fast a model comes onto the host, beside the strongest downloaders.

Four tables: received into shared memory; received and verified by SHA-256; brought to NVMe; brought to NVMe and shared
memory. The origin is nginx on the loopback, plain or with TLS, with random bytes in /dev/shm: one file or many.
`--matrix` runs all combinations, and 4 KiB and 2 MiB pages. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import contest, hub, machine, nginx, ours, profiling, rounds, weed
from benchmarks.contest import Contest
from benchmarks.machine import GIB, MIB, SHM, Unable
from benchmarks.peers import PACKAGES, PEERS, SOURCES
from benchmarks.rounds import Verdict

MAX_MEMORY = 12 * GIB
SHARDS = 16
"""Of the matrix."""
NEEDED = (("nginx", "nginx"), ("aria2c", "aria2"), ("curl", "curl"), ("sha256sum", "coreutils"))


ORIGINS = {"http": "nginx", "s3": "SeaweedFS", "hf": "a Hub that leads to nginx"}


class Case(NamedTuple):
    """What one origin serves, and onto which pages of /dev/shm ("4k", "2m", or None for as they are)."""

    tls: bool
    shards: int
    pages: str | None
    source: str = "http"

    def __str__(self) -> str:
        files = "one file" if self.shards == 1 else f"{self.shards} files"
        return f"{self.source if self.source != 'http' else 'TLS' if self.tls else 'plain'}, {files}"


def parse_size(text: str) -> int:
    """ "2GiB", "512MiB" or plain bytes."""
    match = re.fullmatch(r"(\d+)\s*(GiB|MiB|KiB|)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 2GiB")
    return int(match[1]) * {"GiB": GIB, "MiB": MIB, "KiB": 1024, "": 1}[match[2]]


def parse_setting(text: str) -> tuple[str, Any]:
    """ "fetch.receivers=16", a key of the configuration; the value as JSON, else text."""
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise argparse.ArgumentTypeError(f"{text!r} is not a setting such as fetch.receivers=16")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def weightd(also: list[list[tuple[str, Any]]]) -> dict[str, ours.Settings]:
    """The weightds that take part: as it comes, and with each group of settings beside."""
    found: dict[str, ours.Settings] = {"weightd": {}}
    for group in also:
        words = [f"{key.rpartition('.')[2]} {value}" for key, value in group]
        found[f"weightd, {', '.join(words)}"] = dict(group)
    return found


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fetch", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--size", type=parse_size, help="of all files; default 2GiB, with --matrix 1GiB")
    parser.add_argument("--rounds", type=int, help="after one warm-up round; default 5, with --matrix 3")
    parser.add_argument("--source", choices=list(SOURCES), default="http",
                        help="nginx; SeaweedFS by S3 with signed requests; or a Hub")  # fmt: skip
    parser.add_argument("--tls", action="store_true", help="an origin with TLS, whose authority all contenders trust")
    parser.add_argument("--shards", type=int, default=1, metavar="N", help="the same bytes as N files")
    parser.add_argument("--pages", choices=["4k", "2m"], help="remount /dev/shm for the run (root); default: as it is")
    parser.add_argument("--matrix", action="store_true", help="plain and TLS, one file and shards, both sizes of pages")
    parser.add_argument("--also", nargs="+", action="append", type=parse_setting, default=[], metavar="KEY=VALUE",
                        help="one more weightd, with these keys of the configuration; repeatable")  # fmt: skip
    parser.add_argument("--profile", action="store_true", help="in place of the tables: where weightd's CPU time goes")
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), help="a directory on NVMe; default /var/tmp")
    parser.add_argument("--tables", nargs="+", choices=list(contest.TITLES), default=list(contest.TITLES))
    parser.add_argument("--peers", nargs="+", choices=list(PEERS))
    args = parser.parse_args()
    can = SOURCES[args.source]
    args.peers = args.peers or list(can)
    if args.source != "http" and (args.tls or args.matrix):
        parser.error("--tls and --matrix are for --source http")
    if left_out := [p for p in args.peers if p not in can]:
        parser.error(f"--source {args.source} is nothing for {', '.join(left_out)}")
    args.size = args.size or (1 if args.matrix else 2) * GIB
    args.rounds = args.rounds or (3 if args.matrix else 5)
    if not 1 <= args.shards <= args.size:
        parser.error("--shards: at least one file, and no more than bytes")
    return args


def cases(args: argparse.Namespace) -> list[Case]:
    """Of this run. Pages change seldom: every remount begins with memory that nobody touched."""
    if not args.matrix:
        return [Case(args.tls, args.shards, args.pages, args.source)]
    shards = (1, args.shards if args.shards > 1 else SHARDS)
    pages = [args.pages] if args.pages else ["4k", "2m"]
    return [Case(tls, n, p) for p in pages for tls in (False, True) for n in shards]


def run(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Everything; returns what goes into the JSON. Raises Unable."""
    for command, package in NEEDED if args.source == "http" else ():
        machine.need(command, package)
    needed = 4 * args.size
    if needed > min(MAX_MEMORY, machine.memory_available()):
        raise Unable(f"a size of {args.size / GIB:g} GiB takes {needed / GIB:g} GiB of memory; choose a smaller --size")
    facts = {**machine.facts(*PACKAGES), "nginx": nginx.version() if args.source == "http" else "", "size": args.size}
    console.print(f"{machine.describe(facts)}; {args.size / GIB:g} GiB from {ORIGINS[args.source]}")
    if args.profile:
        return {"machine": facts, "profiles": [profile(case, args, console) for case in cases(args)]}
    console.print(
        f"Before each turn {2 * args.size / GIB:g} GiB of /dev/shm are filled and freed: nobody meets new memory."
    )
    measured = [measure(case, args, console) for case in cases(args)]
    if len(measured) > 1:
        console.print(summary(measured))
    return {"machine": facts, "cases": measured}


@contextmanager
def prepared(case: Case, args: argparse.Namespace) -> Iterator[tuple[Contest, str]]:
    """The origin and the directories of a case; also a description of the pages. Nothing of it stays."""
    with ExitStack() as stack:
        pages = stack.enter_context(machine.pages(case.pages))
        shm = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weightd-bench-", dir=SHM)))
        disk = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weightd-bench-", dir=args.disk)))
        home, root = disk / "origin", shm / "root"
        home.mkdir()
        if case.source == "s3":
            origin = stack.enter_context(weed.origin(home, root, args.size, shards=case.shards))
        elif case.source == "hf":
            origin = stack.enter_context(hub.origin(home, root, args.size, shards=case.shards))
        else:
            origin = stack.enter_context(nginx.origin(home, root, args.size, shards=case.shards, tls=case.tls))
        yield Contest(origin, shm, disk, weightd(args.also)), pages


def measure(case: Case, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All tables of one case."""
    with prepared(case, args) as (match, pages):
        console.print(f"\n[bold]{case}; /dev/shm pages {pages}[/]")
        tables = {kind: one_table(match, kind, args, console, pages) for kind in args.tables}
    return {"source": case.source, "tls": case.tls, "shards": case.shards, "pages": pages, "tables": tables}


def one_table(match: Contest, kind: str, args: argparse.Namespace, console: Console, pages: str) -> dict[str, Any]:
    """Measured and printed."""
    touch = partial(machine.touch_memory, 2 * args.size)
    results = rounds.take_turns(console, match.contenders(kind, args.peers), args.rounds, touch)
    without, target = contest.WITHOUT[kind], contest.target(kind, pages)
    verdict = rounds.judge(results, target, without)
    console.print(rounds.table(contest.TITLES[kind], results, match.origin.size, without))
    console.print(verdict.text())
    variants = {name: rounds.judge(results, target, steps) for name, steps in contest.VARIANTS[kind].items()}
    for name, variant in variants.items():
        console.print(f"  peers {name}: {variant.ratio:.2f} × {variant.best}")
    return {
        "results": rounds.data(results, match.origin.size, without),
        "verdict": verdict.data(),
        "variants": {name: variant.data() for name, variant in variants.items()},
    }


def summary(measured: list[dict[str, Any]]) -> Table:
    """All verdicts of a matrix."""
    out = Table(
        title="weightd ÷ best peer", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for head in ("origin", "pages", "table", "GiB/s", "best peer", "ratio", ""):
        out.add_column(head, justify="right" if head in ("GiB/s", "ratio") else "left", no_wrap=True)
    for case in measured:
        origin = str(Case(case["tls"], case["shards"], None))
        for kind, table in case["tables"].items():
            verdict = Verdict(*(table["verdict"][field] for field in Verdict._fields))
            speed = next(r["gib_per_second"] for r in table["results"] if r["name"] == verdict.ours)
            out.add_row(origin, case["pages"].partition(" (")[0], kind, f"{speed:.2f}", verdict.best,
                        f"{verdict.ratio:.2f}", verdict.goal)  # fmt: skip
    return out


def profile(case: Case, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """weightd alone: into shared memory, and to NVMe (as `fetch --to`), both with SHA-256."""
    found: dict[str, Any] = {"case": case._asdict()}
    with prepared(case, args) as (match, pages):
        for name, settings in match.weightd.items():
            for goal in ("shared memory", "NVMe"):
                machine.touch_memory(2 * args.size)
                directory = match.disk / "profile"
                to = str(directory) if goal == "NVMe" else ""
                answer = contest.receive(match.origin, settings, profile=True, directory=to)
                data = answer["profile"]
                rate = f"{args.size / answer['seconds'] / GIB:.2f} GiB/s"
                console.print(profiling.table(f"{name} → {goal}; {case}; pages {pages}; {rate}", data, args.size))
                found[f"{name} → {goal}"] = {"seconds": answer["seconds"], **data}
    return found


def main() -> int:
    return machine.conclude(options(), run)


if __name__ == "__main__":
    sys.exit(main())
