"""One frame of `weightd top`: lines of text that fit a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from rich.text import Text

from weightd.cli.status import squeezed, tight
from weightd.cli.text import count, duration, place, policy, printable, process_id, rate, share
from weightd.cli.top_bars import KINDS, Kind, cells, parts
from weightd.cli.top_sample import History, Rates, Sample
from weightd.cli.top_table import Cell, Column, heading, line, widths
from weightd.client.types import LeaseInfo, ModelInfo, TierInfo, TransferInfo
from weightd.core.budget import human
from weightd.core.lifecycle import DaemonState, Residency
from weightd.core.policy import Policy

WIDE: Final = 110
"""Columns from which words stand in place of signs."""
LATE_S: Final = 3.0
"""Beyond the interval: then the daemon is said not to answer."""
CURVE: Final = "▁▂▃▄▅▆▇█"
_SIGNS: Final = {Residency.RESIDENT: "●", Residency.FILLING: "◐", Residency.EVICTING: "◌", Residency.ABSENT: "·"}
_STYLES: Final = {Residency.FILLING: "gold1", Residency.EVICTING: "medium_orchid", Residency.ABSENT: "dim"}
_STATES: Final = {DaemonState.SERVING: "black on green3", DaemonState.STARTING: "black on gold1"}


class Page(NamedTuple):
    """What a frame is drawn on. `height` None: as long as it gets. `colours` tell the parts of bars apart, else
    letters do. `now` is monotonic, `wall` Unix time, `interval` in seconds."""

    width: int
    height: int | None
    colours: bool
    now: float
    wall: float
    interval: float


class Section(NamedTuple):
    """A table: its heading, and a line for each thing."""

    heading: Text
    lines: list[Text]


def frame(history: History, page: Page) -> list[Text]:
    """At most `page.height` lines, none longer than `page.width`; `history` has a sample."""
    sample = history.last
    assert sample is not None
    head = [_title(sample, page), *_troubles(history, sample, page), Text(), *_tiers(sample, page), Text()]
    head += [_rates(history, sample, page)]
    sections = [s for s in (_transfers(sample, page), _models(sample, page), _leases(sample, page)) if s.lines]
    room = None if page.height is None else page.height - len(head)
    lines = head + _arranged(sections, room)
    return [_cut(text, page.width) for text in (lines if page.height is None else lines[: page.height])]


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="crop")
    text.rstrip()
    return text


def _title(sample: Sample, page: Page) -> Text:
    status = sample.status
    text = Text().append(" weightd ", "bold")
    text.append(f"{status.version} ")
    text.append(f" {status.state.value} ", _STATES.get(status.state, "black on red3"))
    text.append(f"  process {status.pid}, up {duration(status.uptime)}", "dim")
    counts = (count(status.models, "model"), count(status.leases, "lease"), count(status.transfers, "transfer"))
    clock = f"{time.strftime('%H:%M:%S', time.localtime(page.wall))} "
    room = page.width - text.cell_len
    rights = ("  ".join(("", *counts[:n], clock)) for n in (3, 2, 1, 0))
    right = next((right for right in rights if len(right) <= room), "")
    return text.append(f"{right:>{max(0, room)}}")


def _troubles(history: History, sample: Sample, page: Page) -> list[Text]:
    lines = []
    age = page.now - sample.time
    if history.fault or age > page.interval + LATE_S:
        why = f": {printable(history.fault)}" if history.fault else ""
        lines.append(Text(f" no answer for {duration(age)}{why}; below is what was before ", "bold white on red3"))
    elif news := history.news(page.now):
        lines.append(Text(f" {news} ", "black on gold1"))
    status = sample.status
    tiers = (("shm", status.shm), ("nvme", status.nvme))
    return lines + [Text(f" {squeezed(name, tier)}", "gold1") for name, tier in tiers if tight(tier)]


def _tiers(sample: Sample, page: Page) -> list[Text]:
    status, models = sample.status, sample.models
    shm = parts(status.shm, models, lambda f: f.shm)
    nvme = parts(status.nvme, models, lambda f: f.nvme)
    legend = Text(" " * 6)
    for kind in KINDS:
        legend.append(f"{kind.mark if page.colours else kind.glyph} ", kind.style).append(f"{kind.name} ", "dim")
    return [_tier("shm", status.shm, shm, page), _tier("nvme", status.nvme, nvme, page), legend]


def _tier(name: str, tier: TierInfo, amounts: Sequence[tuple[Kind, int]], page: Page) -> Text:
    used = tier.budget - tier.left
    right = f"{human(used):>11} of {human(tier.budget):>9}{human(tier.left):>11} left"
    if page.width >= WIDE:
        right += f"{human(tier.other):>11} others"
    text = Text().append(f" {name:<5}", "bold")
    sizes = cells([amount for _, amount in amounts], max(8, page.width - 6 - len(right) - 1))
    for (kind, _), size in zip(amounts, sizes, strict=True):
        text.append((kind.block if page.colours else kind.glyph) * size, kind.style)
    return text.append(right)


def _rates(history: History, sample: Sample, page: Page) -> Text:
    counters, rates = sample.status.counters, history.rates
    fields: list[tuple[str, str, Callable[[Rates], float | None]]] = [
        ("fetch", _speed(rates.fetched), lambda r: r.fetched),
        ("load", _speed(rates.loaded), lambda r: r.loaded),
        ("acquires", "–" if rates.acquires is None else f"{rates.acquires:.1f}/s", lambda r: r.acquires),
    ]
    text = Text(" ")
    for name, value, of in fields:
        text.append(f"{name} ", "dim").append(f"{value:<12}" if name != "acquires" else f"{value:<8}", "bold")
        if page.width >= WIDE and page.colours:
            text.append(f"{_curve([of(r) or 0.0 for r in history.curve], 12)}   ", "steel_blue")
    if counters.acquires:
        text.append(f"{share(counters.hits, counters.acquires)} at once   ", "dim")
    text.append("evicted ", "dim").append(f"{counters.evictions}", "bold")
    return text


def _speed(value: float | None) -> str:
    return "–" if value is None else rate(value) or "0 B/s"


def _curve(values: Sequence[float], width: int) -> str:
    """The last values, the highest of them as high as a line."""
    values = values[-width:]
    top = max(values, default=0.0)
    drawn = "".join(CURVE[round((len(CURVE) - 1) * v / top)] if v > 0 else " " for v in values)
    return f"{drawn:>{width}}"


def _transfers(sample: Sample, page: Page) -> Section:
    wide = page.width >= WIDE
    bar = 24 if wide else 8
    columns = (
        Column("TRANSFERS", 12, weight=1),
        Column("PHASE", 9),
        Column("", bar),
        Column("", 5, right=True),
        *([Column("SIZE", 10, right=True)] if wide else []),
        Column("RATE", 11, right=True),
        Column("LEFT", 6, right=True),
    )
    sizes = widths(columns, page.width - 2)
    rows = [_transfer(t, bar, page) for t in sample.status.under_way]
    return Section(_indent(heading(columns, sizes)), [_indent(line(row, columns, sizes)) for row in rows])


def _transfer(t: TransferInfo, bar: int, page: Page) -> list[Cell]:
    full = min(bar, bar * t.done // t.total) if t.total else 0
    drawn = ("━" * full + "─" * (bar - full)) if page.colours else ("=" * full + "-" * (bar - full))
    left = duration((t.total - t.done) / t.rate) if t.rate > 0 and t.total else ""
    return [
        Cell(t.ref, "bold" if t.urgent else ""),
        Cell(t.phase.name.lower()),
        Cell(drawn, "gold1" if t.urgent else "steel_blue"),
        Cell(share(t.done, t.total)),
        *([Cell(human(t.total) if t.total else "")] if page.width >= WIDE else []),
        Cell(rate(t.rate)),
        Cell(left),
    ]


def _models(sample: Sample, page: Page) -> Section:
    wide = page.width >= WIDE
    columns = (
        Column("MODELS", 12, weight=1),
        Column("POLICY", 12 if wide else 6),
        Column("SHM", 8 if wide else 3),
        Column("NVME", 8 if wide else 4),
        Column("SIZE", 9, right=True),
        Column("LEASES", 6, right=True),
        Column("USED", 11 if wide else 7, right=True),
    )
    sizes = widths(columns, page.width - 2)
    busy = {t.ref for t in sample.status.under_way}
    models = sorted(sample.models, key=lambda m: (m.ref not in busy, not m.leases, -m.last_used, m.ref))
    rows = [_model(m, wide, page) for m in models]
    return Section(_indent(heading(columns, sizes)), [_indent(line(row, columns, sizes)) for row in rows])


def _model(m: ModelInfo, wide: bool, page: Page) -> list[Cell]:
    used = "never" if m.last_used <= 0 else duration(max(0.0, page.wall - m.last_used)) + (" ago" if wide else "")
    kept = m.pinned or m.policy is Policy.HOT
    word = policy(m) if wide else "pinned" if m.pinned else m.policy.value
    return [
        Cell(m.ref if m.current else f"{m.ref} (old)", "" if m.current else "dim"),
        Cell(word, "dodger_blue1" if kept else "dim"),
        _residency(m.shm, wide, "green3"),
        _residency(m.nvme, wide, ""),
        Cell(human(m.size)),
        Cell(str(m.leases) if m.leases else "·", "bold green3" if m.leases else "dim"),
        Cell(used, "dim"),
    ]


def _residency(state: Residency, wide: bool, resident: str) -> Cell:
    word = state.name.lower() if state is not Residency.ABSENT else "–"
    return Cell(word if wide else _SIGNS[state], resident if state is Residency.RESIDENT else _STYLES[state])


def _leases(sample: Sample, page: Page) -> Section:
    columns = (
        Column("LEASES", 16, weight=4),
        Column("PID", 7, right=True),
        Column("COMMAND", 8, weight=3),
        Column("WHERE", 8, weight=3),
        Column("SINCE", 12, right=True),
    )
    sizes = widths(columns, page.width - 2)
    leases = sorted(sample.leases, key=lambda lease: not lease.waiting)
    rows = [_lease(lease, page) for lease in leases]
    return Section(_indent(heading(columns, sizes)), [_indent(line(row, columns, sizes)) for row in rows])


def _lease(lease: LeaseInfo, page: Page) -> list[Cell]:
    holder = lease.holder
    since = duration(max(0.0, page.wall - lease.since))
    return [
        Cell(lease.ref),
        Cell(process_id(holder), "" if holder.confirmed else "dim"),
        Cell(holder.command or "–", "dim"),
        Cell(place(holder) or "–", "dim"),
        Cell(f"waits {since}" if lease.waiting else since, "bold gold1" if lease.waiting else ""),
    ]


def _indent(text: Text) -> Text:
    return Text(" ") + text


def _arranged(sections: Sequence[Section], room: int | None) -> list[Text]:
    """All of each where there is room; else each gets a fair part, and says how many lines it lacks."""
    wanted = [len(s.lines) for s in sections]
    given = wanted if room is None else fair(wanted, room - 2 * len(sections))
    lines: list[Text] = []
    for section, size in zip(sections, given, strict=True):
        lines += [Text(), section.heading]
        missing = len(section.lines) - size
        lines += section.lines[:size] if not missing else section.lines[: max(0, size - 1)]
        if missing and size:
            lines.append(Text(f" … {missing + 1} more", "dim"))
    return lines


def fair(wanted: Sequence[int], room: int) -> list[int]:
    """Lines for each that wants some: a line at a time to whoever has fewest and wants more."""
    given = [0] * len(wanted)
    for _ in range(max(0, room)):
        hungry = [i for i, want in enumerate(wanted) if given[i] < want]
        if not hungry:
            break
        given[min(hungry, key=given.__getitem__)] += 1
    return given
