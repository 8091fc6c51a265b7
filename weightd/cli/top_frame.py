"""One frame of `weightd top`: lines of text that fit a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from rich.text import Text

from weightd.cli.status import squeezed, tight
from weightd.cli.text import count, duration, place, policy, printable, process_id, rate, share
from weightd.cli.top_bars import KINDS, Kind, cells, parts
from weightd.cli.top_sample import History, Sample
from weightd.cli.top_table import Cell, Column, table
from weightd.client.types import LeaseInfo, ModelInfo, TierInfo, TransferInfo
from weightd.core.budget import human
from weightd.core.lifecycle import DaemonState, Residency
from weightd.core.policy import Policy

WIDE: Final = 110
"""Columns from which words stand in place of signs."""
NARROW: Final = 72
"""Columns below which less is told."""
LATE_S: Final = 3.0
"""Beyond the interval: then the daemon is said not to answer."""
CURVE: Final = "▁▂▃▄▅▆▇█"
CURVE_CELLS: Final = 12
CURVE_LEAST: Final = 4
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
    head = [_title(history, sample, page), *_troubles(history, sample, page)]
    tiers, legend, rates = _tiers(sample, page), _legend(page), _rates(history, sample, page)
    sections = [s for s in (_transfers(sample, page), _models(sample, page), _leases(sample, page)) if s.lines]
    lines = [*head, Text(), *tiers, legend, Text(), rates]
    gap = 1
    if page.height is not None and len(lines) + 3 * len(sections) > page.height:
        lines, gap = [*head, *tiers, rates], 0
        sections = sections[: max(0, page.height - len(lines)) // 2]
    lines += _arranged(sections, None if page.height is None else page.height - len(lines), gap)
    return [_cut(text, page.width) for text in (lines if page.height is None else lines[: page.height])]


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="crop")
    text.rstrip()
    return text


def _title(history: History, sample: Sample, page: Page) -> Text:
    status, silent = sample.status, _silent(history, sample, page)
    state = "NO ANSWER" if silent else status.state.value
    text = Text().append(" weightd ", "bold")
    text.append(f"{status.version} ")
    text.append(f" {state} ", "bold white on red3" if silent else _STATES.get(status.state, "black on red3"))
    text.append(f"  process {status.pid}, up {duration(status.uptime)}", "dim")
    counts = (count(status.models, "model"), count(status.leases, "lease"), count(status.transfers, "transfer"))
    clock = f"{time.strftime('%H:%M:%S', time.localtime(page.wall))} "
    room = page.width - text.cell_len
    rights = ("  ".join(("", *counts[:n], clock)) for n in (3, 2, 1, 0))
    right = next((right for right in rights if len(right) <= room), "")
    return text.append(f"{right:>{max(0, room)}}")


def _silent(history: History, sample: Sample, page: Page) -> bool:
    return bool(history.fault) or page.now - sample.time > page.interval + LATE_S


def _troubles(history: History, sample: Sample, page: Page) -> list[Text]:
    lines = []
    if _silent(history, sample, page):
        why = f": {printable(history.fault)}" if history.fault else ""
        text = f" no answer for {duration(page.now - sample.time)}{why}"
        full = f"{text}; below is what was before "
        lines.append(Text(full if len(full) <= page.width else f"{text} ", "bold white on red3"))
    elif news := history.news(page.now):
        lines.append(Text(f" {news} ", "black on gold1"))
    status = sample.status
    tiers = (("shm", status.shm), ("nvme", status.nvme))
    return lines + [Text(f" {squeezed(name, tier)}", "gold1") for name, tier in tiers if tight(tier)]


def _tiers(sample: Sample, page: Page) -> list[Text]:
    status, models = sample.status, sample.models
    shm = parts(status.shm, models, lambda f: f.shm)
    nvme = parts(status.nvme, models, lambda f: f.nvme)
    return [_tier("shm", status.shm, shm, page), _tier("nvme", status.nvme, nvme, page)]


def _legend(page: Page) -> Text:
    legend = Text(" " * (6 if page.width >= NARROW else 1))
    for kind in KINDS:
        legend.append(f"{kind.mark if page.colours else kind.glyph} ", kind.style).append(f"{kind.name} ", "dim")
    return legend


def _tier(name: str, tier: TierInfo, amounts: Sequence[tuple[Kind, int]], page: Page) -> Text:
    used = tier.budget - tier.left
    right = f"{human(used):>11} of {human(tier.budget):>10}"
    if page.width >= NARROW:
        right += f"{human(tier.left):>11} left"
    if page.width >= WIDE:
        right += f"{human(tier.other):>11} others"
    text = Text().append(f" {name:<5}", "bold")
    sizes = cells([amount for _, amount in amounts], max(8, page.width - 6 - len(right) - 1))
    for (kind, _), size in zip(amounts, sizes, strict=True):
        text.append((kind.block if page.colours else kind.glyph) * size, kind.style)
    return text.append(right)


def _rates(history: History, sample: Sample, page: Page) -> Text:
    """What fits, as a whole; in the room that is left, curves."""
    counters, rates = sample.status.counters, history.rates
    fields = [
        ("fetch ", f"{_speed(rates.fetched):<11}", [r.fetched for r in history.curve]),
        ("load ", f"{_speed(rates.loaded):<11}", [r.loaded for r in history.curve]),
        ("acquires ", f"{_often(rates.acquires):<7}", [r.acquires for r in history.curve]),
        *([(f"{share(counters.hits, counters.acquires)} at once ", "", None)] if counters.acquires else []),
        ("evicted ", f"{counters.evictions}", None),
    ]
    curved = sum(values is not None for *_, values in fields) if page.colours else 0
    needed = 1 + sum(len(name + value) + 1 for name, value, _ in fields)
    curve = min(CURVE_CELLS, (page.width - needed) // curved - 2) if curved else 0
    text = Text(" ")
    for name, value, values in fields:
        if text.cell_len + len(f"{name}{value}".rstrip()) > page.width:
            break
        text.append(name, "dim").append(f"{value} ", "bold")
        if values is not None and curve >= CURVE_LEAST:
            text.append(f"{_curve([v or 0.0 for v in values], curve)}  ", "steel_blue")
    return text


def _often(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}/s" if value < 1000 else f"{value:.0f}/s"


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
        Column("PHASE", 9, drop=2),
        Column("", bar, drop=4),
        Column("", 5, right=True),
        *([Column("SIZE", 10, right=True)] if wide else []),
        Column("RATE", 12, right=True, drop=1),
        Column("LEFT", 6, right=True, drop=3),
    )
    return _section(columns, [_transfer(t, bar, page) for t in sample.status.under_way], page)


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
        Column("POLICY", 12 if wide else 6, drop=4),
        Column("SHM", 8 if wide else 3),
        Column("NVME", 8 if wide else 4, drop=3),
        Column("SIZE", 10, right=True, drop=1),
        Column("LEASES", 6, right=True, drop=2),
        Column("USED", 10 if wide else 6, right=True, drop=5),
    )
    busy = {t.ref for t in sample.status.under_way}
    models = sorted(sample.models, key=lambda m: (m.ref not in busy, not m.leases, -m.last_used, m.ref))
    return _section(columns, [_model(m, wide, page) for m in models], page)


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
        Column("PID", 8, right=True),
        Column("COMMAND", 8, weight=3, drop=2),
        Column("WHERE", 8, weight=3, drop=3),
        Column("FOR", 12, right=True, drop=1),
    )
    leases = sorted(sample.leases, key=lambda lease: not lease.waiting)
    return _section(columns, [_lease(lease, page) for lease in leases], page)


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


def _section(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], page: Page) -> Section:
    heading, lines = table(columns, rows, page.width - 2)
    return Section(Text(" ") + heading, [Text(" ") + line for line in lines])


def _arranged(sections: Sequence[Section], room: int | None, gap: int) -> list[Text]:
    """All of each where there is room; else each gets a fair part, and says how many lines it lacks if it has two."""
    wanted = [len(s.lines) for s in sections]
    given = wanted if room is None else fair(wanted, room - (1 + gap) * len(sections))
    lines: list[Text] = []
    for section, size in zip(sections, given, strict=True):
        lines += [Text()] * gap + [section.heading]
        missing = len(section.lines) - size
        whole = not missing or size < 2
        lines += section.lines[:size] if whole else section.lines[: size - 1]
        if not whole:
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
