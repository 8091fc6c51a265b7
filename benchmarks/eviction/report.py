"""Many simulations, and what they say: for people and for the JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from rich import box
from rich.table import Table

from benchmarks.eviction.policies import BASE, CONTENDERS
from benchmarks.eviction.simulate import Outcome, Tier, simulate
from benchmarks.eviction.trace import Trace

SHARES = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
"""Sizes of a tier, of all bytes that the trace ever asks for."""


class Point(msgspec.Struct, frozen=True):
    """One policy on one trace, in a tier of one size. `waited` is of LRU's, 1 where nobody waited at all."""

    trace: str
    tier: str
    share: float
    policy: str
    hit_rate: float
    byte_hit_rate: float
    waited: float
    seconds: float
    requests: int
    refused: int
    oversized: int


def points(trace: Trace, tiers: Iterable[Tier], shares: Iterable[float] = SHARES) -> list[Point]:
    """Of all contenders, in tiers that hold any model of the trace at all."""
    return [p for tier in tiers for share in shares for p in _turn(trace, tier, share)]


def _turn(trace: Trace, tier: Tier, share: float) -> list[Point]:
    limit = int(share * trace.distinct_bytes)
    found = {name: simulate(trace, tier, limit, make(trace)) for name, make in CONTENDERS.items()}
    return [_point(trace, tier, share, n, outcome, found[BASE]) for n, outcome in found.items() if outcome.requests]


def _point(trace: Trace, tier: Tier, share: float, name: str, outcome: Outcome, base: Outcome) -> Point:
    waited = outcome.waited / base.waited if base.waited else 1.0
    return Point(
        trace.name,
        tier.name,
        share,
        name,
        outcome.hit_rate,
        outcome.byte_hit_rate,
        waited,
        outcome.waited,
        outcome.requests,
        outcome.refused,
        outcome.oversized,
    )


Cell = tuple[str, str, str, float]
"""Trace, tier, policy, share."""


def means(found: Sequence[Point]) -> dict[Cell, Point]:
    """Over seeds. Waiting is a ratio, and its mean geometric."""
    groups: dict[Cell, list[Point]] = {}
    for p in found:
        groups.setdefault((p.trace, p.tier, p.policy, p.share), []).append(p)
    return {cell: _mean(group) for cell, group in groups.items()}


def _mean(group: Sequence[Point]) -> Point:
    return msgspec.structs.replace(
        group[0],
        hit_rate=statistics.mean(p.hit_rate for p in group),
        byte_hit_rate=statistics.mean(p.byte_hit_rate for p in group),
        waited=statistics.geometric_mean(p.waited for p in group),
        seconds=statistics.mean(p.seconds for p in group),
    )


def summary(found: Sequence[Point]) -> dict[str, dict[str, float]]:
    """For each policy over all traces, tiers and sizes: waiting ÷ LRU's (geometric mean, least, most, and how many are
    more than 2 % worse), hit rate, and by how much it and the rate of bytes are higher than LRU's."""
    base = {(p.tier, p.share, p.trace, n): p for p, n in _numbered(found, BASE)}
    out: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(p.policy for p in found):
        mine = list(_numbered(found, name))
        waited = sorted(p.waited for p, _ in mine)
        pairs = [(p, base[p.tier, p.share, p.trace, n]) for p, n in mine]
        out[name] = {
            "waited": statistics.geometric_mean(waited),
            "best": waited[0],
            "worst": waited[-1],
            "share > 1.02": sum(w > 1.02 for w in waited) / len(waited),
            "hits": statistics.mean(p.hit_rate for p, _ in pairs),
            "hits - LRU's": statistics.mean(p.hit_rate - b.hit_rate for p, b in pairs),
            "bytes - LRU's": statistics.mean(p.byte_hit_rate - b.byte_hit_rate for p, b in pairs),
        }
    return out


def _numbered(found: Sequence[Point], policy: str) -> Iterable[tuple[Point, int]]:
    """With how many of the same trace, tier and size were before: which of the seeds it is."""
    seen: dict[Cell, int] = {}
    for p in found:
        if p.policy == policy:
            cell = (p.trace, p.tier, policy, p.share)
            seen[cell] = seen.get(cell, -1) + 1
            yield p, seen[cell]


def trace_table(found: Sequence[Point], tier: str) -> Table:
    """Waiting by trace and policy, over all sizes and seeds: geometric mean, and the worst in brackets."""
    mine = [p for p in found if p.tier == tier]
    names = list(dict.fromkeys(p.policy for p in mine))
    out = _table(f"Seconds waited ÷ LRU's, tier {tier}: geometric mean over sizes and seeds (worst)", ["trace", *names])
    for trace in dict.fromkeys(p.trace for p in mine):
        cells = [[p.waited for p in mine if (p.trace, p.policy) == (trace, name)] for name in names]
        out.add_row(trace, *(f"{statistics.geometric_mean(c):.2f} ({max(c):.2f})" for c in cells))
    return out


def rate_table(found: Sequence[Point], tier: str) -> Table:
    """Hit rates by size and policy, over all traces and seeds."""
    mine = [p for p in found if p.tier == tier]
    names = list(dict.fromkeys(p.policy for p in mine))
    out = _table(f"Hits % / bytes hit %, tier {tier}: mean over traces and seeds", ["size", *names])
    for share in sorted({p.share for p in mine}):
        cells = [[p for p in mine if (p.share, p.policy) == (share, name)] for name in names]
        out.add_row(f"{share:.0%}", *(_rates(c) for c in cells))
    return out


def _rates(group: Sequence[Point]) -> str:
    hits = statistics.mean(p.hit_rate for p in group)
    size = statistics.mean(p.byte_hit_rate for p in group)
    return f"{100 * hits:.1f} / {100 * size:.1f}"


def summary_table(of: Mapping[str, Mapping[str, float]]) -> Table:
    heads = list(next(iter(of.values())))
    out = _table("All: seconds waited ÷ LRU's, and rates of hits and of bytes", ["policy", *heads])
    for name, row in of.items():
        out.add_row(name, *(f"{value:.3f}" for value in row.values()))
    return out


def _table(title: str, heads: Sequence[str]) -> Table:
    out = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        out.add_column(head, justify="right" if number else "left", no_wrap=True)
    return out


def data(found: Sequence[Point]) -> list[dict[str, Any]]:
    return [msgspec.structs.asdict(p) for p in found]
