"""`python -m benchmarks.shaped`: weightd and its peers over networks that are slow, far, lossy, or uneven.

nginx and the contenders are in two network namespaces; between them is a path of a certain round trip, loss, and rate
of each connection and of all (`benchmarks.wire`). Where one connection gets only its share, parallel ranges must pay.
Needs root. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from rich.console import Console

from benchmarks import contest, machine, netns, nginx, ours, peers, rounds, wire
from benchmarks.fetch import parse_setting, parse_size, weightd
from benchmarks.machine import GIB, MIB, SHM, Unable
from benchmarks.nginx import Origin
from benchmarks.rounds import Contender
from benchmarks.shaper import Shape

MB = 1_000_000
CLIENT = "198.18.0.2"
SERVERS = ("198.18.1.1", "198.18.1.2", "198.18.1.3", "198.18.1.4")
"""Of the networks for benchmarks (RFC 2544). Client and servers are in two, else getaddrinfo sorts the servers."""
NAME, PORT = "origin.test", 8080
LIMIT_S = 300.0
"""Of one turn."""


class Scenario(NamedTuple):
    """`round_trip` in seconds, `loss` as a probability, rates in bytes per second (0: none). `part`: of the size that
    is fetched, where more would take long."""

    title: str
    round_trip: float
    link: float
    flow: float = 0
    loss: float = 0.0
    slow: float = 0
    """The rate of a connection to one of four addresses."""
    part: float = 1.0

    @property
    def addresses(self) -> tuple[str, ...]:
        return SERVERS if self.slow else SERVERS[:1]

    @property
    def endpoint(self) -> str:
        return f"http://{NAME if self.slow else SERVERS[0]}:{PORT}"

    def shapes(self) -> tuple[Shape, Shape]:
        """Down and up. Requests and acknowledgements meet the delay only."""
        slow = {SERVERS[1]: self.slow} if self.slow else {}
        delay = self.round_trip / 2
        return Shape(delay, self.loss, self.link, self.flow, slow), Shape(delay)


SCENARIOS = {
    "cap": Scenario("25 MB/s for each connection, 400 MB/s in all, 2 ms", 0.002, 400 * MB, 25 * MB),
    "latency": Scenario("40 ms, 250 MB/s in all", 0.040, 250 * MB),
    "loss": Scenario("0.1 % loss, 20 ms, 60 MB/s in all", 0.020, 60 * MB, loss=0.001, part=1 / 4),
    "all": Scenario(
        "25 MB/s for each connection, 60 MB/s in all, 40 ms, 0.05 % loss", 0.040, 60 * MB, 25 * MB, 0.0005, part=1 / 4
    ),
    "edge": Scenario(
        "one of four addresses gives 2 MB/s, the others 25 MB/s for each connection; 400 MB/s in all, 10 ms",
        0.010, 400 * MB, 25 * MB, slow=2 * MB,
    ),
}  # fmt: skip
PEERS: dict[str, tuple[str, int, int]] = {
    "aria2 -x16": ("aria2 -x16", 16, 1 * MIB),
    "hf_transfer, 16": ("hf_transfer", 16, 10 * MIB),
    "hf_transfer, 64": ("hf_transfer", 64, 10 * MIB),
}
"""By name: the peer, its requests at a time, its bytes per request (aria2: the least that it splits). 64 of 10 MiB is
how huggingface_hub called hf_transfer."""
BASELINE = "curl, one connection"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shaped", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--size", type=parse_size, default=512 * MIB, help="of the file; default 512MiB")
    parser.add_argument("--rounds", type=int, default=3, help="after one warm-up round; default 3")
    parser.add_argument("--scenarios", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--peers", nargs="+", choices=[*PEERS, BASELINE], default=[*PEERS, BASELINE])
    parser.add_argument("--also", nargs="+", action="append", type=parse_setting, metavar="KEY=VALUE",
                        help="one more weightd, with these keys of the configuration; repeatable; default:"
                        " fetch.receivers=4")  # fmt: skip
    args = parser.parse_args()
    args.also = [[("fetch.receivers", 4)]] if args.also is None else args.also
    return args


@contextmanager
def path_between(client: str, server: str, scenario: Scenario, reports: list[wire.Report]) -> Iterator[None]:
    """The shaped path between two namespaces; its report is appended at the end. Raises Unable."""
    down, up = scenario.shapes()
    plan = wire.Plan(
        wire.Side(client, (CLIENT,), "198.18.1.0/24"), wire.Side(server, scenario.addresses, "198.18.0.0/24"),
        down, up, NAME,
    )  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.wire", msgspec.json.encode(plan).decode()]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=machine.die_with_parent
    ) as process:
        try:
            if process.stdout is None or process.stdout.readline().strip() != "ready":
                raise Unable(f"the path between the namespaces: {process.communicate()[1].strip()[-500:]}")
            yield
            process.terminate()
            reports.append(msgspec.json.decode(process.communicate()[0], type=wire.Report))
        finally:
            process.terminate()


class Race:
    """The contenders of one scenario; each runs within the client's namespace."""

    def __init__(self, origin: Origin, shm: Path, client: str) -> None:
        self.origin, self.shm, self.within = origin, shm, netns.within(client)
        self.checked: set[str] = set()

    def contenders(self, args: argparse.Namespace) -> list[Contender]:
        us = [Contender(name, self._ours(settings), ours=True) for name, settings in weightd(args.also).items()]
        them = [Contender(name, self._peer(name, *PEERS[name])) for name in args.peers if name in PEERS]
        base = [Contender(BASELINE, self._peer(BASELINE, "curl", 1, MIB), once=True)] if BASELINE in args.peers else []
        return us + them + base

    def _ours(self, settings: ours.Settings) -> Callable[[], dict[str, float]]:
        """Resolving counts: here it takes round trips, and peers ask for the size in their own time."""

        def act() -> dict[str, float]:
            answer = contest.receive(self.origin, settings, within=self.within, limit=LIMIT_S)
            return {"resolve": answer["resolve"], "transfer": answer["seconds"]}

        return act

    def _peer(self, label: str, name: str, parallel: int, part: int) -> Callable[[], dict[str, float]]:
        def act() -> dict[str, float]:
            directory = self.shm / "received"
            directory.mkdir()
            try:
                goal = peers.goal(self.origin, directory, parallel=parallel, part=part)
                check: Sequence[nginx.Served] = () if label in self.checked else self.origin.files
                seconds = contest.get(name, goal, check, within=self.within, limit=LIMIT_S)
                self.checked.add(label)
                return {"transfer": seconds}
            finally:
                shutil.rmtree(directory)

        return act


def measure(name: str, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """One scenario, in namespaces of its own."""
    scenario, reports = SCENARIOS[name], list[wire.Report]()
    size = int(args.size * scenario.part)
    with ExitStack() as stack:
        shm = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weightd-bench-", dir=SHM)))
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weightd-bench-")))
        files = nginx.fill(shm / "root", size)
        client = stack.enter_context(netns.namespace("client", resolver="127.0.0.1"))
        server = stack.enter_context(netns.namespace("server"))
        stack.enter_context(path_between(client, server, scenario, reports))
        listen = [f"{address}:{PORT}" for address in scenario.addresses]
        stack.enter_context(nginx.serve(home, shm / "root", listen, within=netns.within(server)))
        race = Race(Origin(scenario.endpoint, files), shm, client)
        results = rounds.take_turns(console, race.contenders(args), args.rounds)
    title = f"{name}: {scenario.title}; {size / MIB:g} MiB"
    verdict = rounds.judge(results, None)
    console.print(rounds.table(title, results, size))
    console.print(verdict.text())
    return {
        "scenario": scenario._asdict(),
        "size": size,
        "results": rounds.data(results, size),
        "verdict": verdict.data(),
        "path": _path_text(reports[0], console),
    }


def _path_text(report: wire.Report, console: Console) -> dict[str, Any]:
    """Whether the path was what it should have been."""
    console.print(
        f"  path: {report.bytes / GIB:.1f} GiB in {report.packets} packets, {report.lost} lost,"
        f" {report.overflowed} dropped by full queues; late by {report.late * 1e3:.2f} ms on average,"
        f" {report.latest * 1e3:.0f} ms at worst; {report.cpu:.1f} s of CPU\n",
        style="dim",
    )
    return msgspec.structs.asdict(report)


def run(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Everything; returns what goes into the JSON. Raises Unable."""
    for command, package in (("nginx", "nginx"), ("ip", "iproute2"), ("sysctl", "procps"), ("aria2c", "aria2")):
        machine.need(command, package)
    facts = {**machine.facts(*peers.PACKAGES), "nginx": nginx.version(), "size": args.size}
    console.print(f"{machine.describe(facts)}; TCP cubic over a path in user space")
    return {"machine": facts, "scenarios": {name: measure(name, args, console) for name in args.scenarios}}


def main() -> int:
    return machine.conclude(options(), run)


if __name__ == "__main__":
    sys.exit(main())
