"""Contenders take turns, round by round; medians and ratios come out. Machines drift: neighbours in time compare."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.machine import GIB

Without = frozenset[str]
"""Steps that a number leaves out."""
NONE: Without = frozenset()


class Contender(NamedTuple):
    """`run` does the whole once and returns its seconds by step."""

    name: str
    run: Callable[[], dict[str, float]]
    ours: bool = False


class Result(NamedTuple):
    """Seconds of each round, without the warm-up."""

    name: str
    ours: bool
    rounds: list[dict[str, float]]

    def seconds(self, without: Without = NONE) -> list[float]:
        return [sum(v for k, v in steps.items() if k not in without) for steps in self.rounds]

    def median(self, without: Without = NONE) -> float:
        return statistics.median(self.seconds(without))


def take_turns(
    console: Console, contenders: Sequence[Contender], rounds: int, before: Callable[[], None] = lambda: None
) -> list[Result]:
    """One warm-up round, then `rounds` more; who begins changes with each. `before` each turn, not timed."""
    results = [Result(c.name, c.ours, []) for c in contenders]
    for number in range(rounds + 1):
        shift = number % len(contenders)
        order = [*range(len(contenders))][shift:] + [*range(len(contenders))][:shift]
        for index in order:
            label = f"round {number} of {rounds}" if number else "warm-up"
            with console.status(f"{label}: {contenders[index].name}"):
                before()
                steps = contenders[index].run()
            if number:
                results[index].rounds.append(steps)
            elif not console.is_terminal:
                console.print(f"warm-up {contenders[index].name}: {sum(steps.values()):.2f} s", style="dim")
    return results


class Verdict(NamedTuple):
    """Our median against the best peer's: `ratio` > 1 means that we were faster."""

    ours: str
    best: str
    ratio: float
    target: float

    @property
    def reached(self) -> bool:
        return self.ratio >= self.target

    def text(self) -> str:
        word = "[green]reached[/]" if self.reached else "[yellow]missed[/]"
        found = f"{self.ours} ÷ {self.best}, the best peer: [bold]{self.ratio:.2f} ×[/]"
        return f"{found} (target {self.target:.1f} ×, {word})"

    def data(self) -> dict[str, Any]:
        return {**self._asdict(), "reached": self.reached}


def judge(results: Sequence[Result], target: float, without: Without = NONE) -> Verdict:
    """By medians."""
    ours = min((r for r in results if r.ours), key=lambda r: r.median(without))
    best = min((r for r in results if not r.ours), key=lambda r: r.median(without))
    return Verdict(ours.name, best.name, best.median(without) / ours.median(without), target)


def table(title: str, results: Sequence[Result], size: int, without: Without = NONE) -> Table:
    """Fastest first. Steps in `without` are not in the medians, but have their column."""
    steps = sorted({k for r in results for s in r.rounds for k in s}, key=ORDER.index)
    if len(steps) == 1:
        steps = []
    best = min(r.median(without) for r in results if not r.ours)
    out = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    heads = ["seconds", "median", "GiB/s", "min–max", "× best", *steps]
    for n, head in enumerate(heads):
        out.add_column(head, justify="right" if n else "left", no_wrap=True)
    for r in sorted(results, key=lambda r: r.median(without)):
        median, every = r.median(without), r.seconds(without)
        cells = [
            f"{median:.2f}",
            f"{size / median / GIB:.2f}",
            f"{min(every):.2f}–{max(every):.2f}",
            f"{best / median:.2f}",
        ]
        out.add_row(r.name, *cells, *(_step(r, s) for s in steps), style="bold" if r.ours else "")
    return out


ORDER = ("fetch", "transfer", "openssl", "sha256sum", "cp", "fsync")


def _step(result: Result, step: str) -> str:
    values = [s[step] for s in result.rounds if step in s]
    return f"{statistics.median(values):.2f}" if values else ""


def data(results: Sequence[Result], size: int, without: Without = NONE) -> list[dict[str, Any]]:
    """For JSON: seconds and GiB/s."""
    return [
        {
            "name": r.name,
            "ours": r.ours,
            "median_seconds": r.median(without),
            "gib_per_second": size / r.median(without) / GIB,
            "rounds": r.rounds,
        }
        for r in results
    ]
