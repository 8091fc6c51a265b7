"""Contenders take turns, round by round; medians and ratios come out. Machines drift: neighbours in time compare."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.machine import GIB, Unable

Without = frozenset[str]
"""Steps that a number leaves out."""
NONE: Without = frozenset()


class Contender(NamedTuple):
    """`run` does the whole once and returns its seconds by step. `once`: a slow baseline that has one turn in all;
    it is shown, and is nobody's best peer."""

    name: str
    run: Callable[[], dict[str, float]]
    ours: bool = False
    once: bool = False


class Result(NamedTuple):
    """Seconds of each round, without the warm-up. `left_out`: why there are none."""

    name: str
    ours: bool
    rounds: list[dict[str, float]]
    once: bool = False
    left_out: str = ""

    def seconds(self, without: Without = NONE) -> list[float]:
        return [sum(v for k, v in steps.items() if k not in without) for steps in self.rounds]

    def median(self, without: Without = NONE) -> float:
        return statistics.median(self.seconds(without))


def take_turns(
    console: Console, contenders: Sequence[Contender], rounds: int, before: Callable[[], None] = lambda: None
) -> list[Result]:
    """One warm-up round, then `rounds` more; who begins changes with each. `before` each turn, not timed. A peer that
    raises Unable is left out from then on, with the reason; when it is ours, that is raised."""
    results = [Result(c.name, c.ours, [], c.once) for c in contenders]
    for number in range(rounds + 1):
        shift = number % len(contenders)
        order = [*range(len(contenders))][shift:] + [*range(len(contenders))][:shift]
        for index in order:
            if results[index].left_out or (contenders[index].once and number != 1):
                continue
            label = f"round {number} of {rounds}" if number else "warm-up"
            with console.status(f"{label}: {contenders[index].name}"):
                before()
                results[index] = _turn(contenders[index], results[index], warm_up=not number)
            if not number and not console.is_terminal:
                console.print(f"warm-up {contenders[index].name} done", style="dim")
    for result in results:
        if result.left_out:
            console.print(f"[yellow]left out:[/] {result.name}: {result.left_out}")
    if not any(r.rounds for r in results if not r.ours and not r.once):
        raise Unable("there is no peer left to compare with")
    return results


def _turn(contender: Contender, result: Result, *, warm_up: bool) -> Result:
    try:
        steps = contender.run()
    except Unable as e:
        if contender.ours:
            raise
        return result._replace(left_out=str(e), rounds=[])
    return result if warm_up else result._replace(rounds=[*result.rounds, steps])


class Verdict(NamedTuple):
    """Our median against the best peer's: `ratio` > 1 means that we were faster."""

    ours: str
    best: str
    ratio: float
    target: float | None
    """None where DESIGN sets none."""

    @property
    def reached(self) -> bool | None:
        return None if self.target is None else self.ratio >= self.target

    @property
    def goal(self) -> str:
        """The target in words."""
        if self.target is None:
            return "no target"
        word = "[green]reached[/]" if self.reached else "[yellow]missed[/]"
        return f"target {self.target:g} ×, {word}"

    def text(self) -> str:
        return f"{self.ours} ÷ {self.best}, the best peer: [bold]{self.ratio:.2f} ×[/] ({self.goal})"

    def data(self) -> dict[str, Any]:
        return {**self._asdict(), "reached": self.reached}


def measured(results: Sequence[Result]) -> list[Result]:
    """Those that have numbers."""
    return [r for r in results if r.rounds]


def judge(results: Sequence[Result], target: float | None, without: Without = NONE) -> Verdict:
    """By medians. The first of ours is judged, which is weightd as it comes; the others are there to compare."""
    ours = next(r for r in results if r.ours)
    best = min((r for r in measured(results) if not r.ours and not r.once), key=lambda r: r.median(without))
    return Verdict(ours.name, best.name, best.median(without) / ours.median(without), target)


def table(title: str, results: Sequence[Result], size: int, without: Without = NONE) -> Table:
    """Fastest first. Steps in `without` are not in the medians, but have their column."""
    steps = sorted({k for r in results for s in r.rounds for k in s}, key=ORDER.index)
    if len(steps) == 1:
        steps = []
    results = measured(results)
    best = min(r.median(without) for r in results if not r.ours and not r.once)
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


ORDER = ("fetch", "resolve", "transfer", "openssl", "sha256sum", "cp", "fsync")


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
        for r in measured(results)
    ] + [{"name": r.name, "ours": r.ours, "left_out": r.left_out} for r in results if r.left_out]
