"""The demo's tables: readable in 80 columns, in a terminal and in a log."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from demo.play import Way
from demo.snapshot import SENTENCES, WEIGHTS


def mib(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"


def ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for n, column in enumerate(columns):
        table.add_column(column, justify="left" if n == 0 else "right", overflow="fold")
    return table


def workers(way: Way, pids: list[int], within: list[float]) -> Table:
    """One row a worker."""
    table = _table("worker", "pid", "acquire", "its two sentences", "cosine")
    table.columns[3].justify = "left"
    for number, pair in enumerate(SENTENCES):
        text = f"{pair[0]}\n{pair[1]}"
        table.add_row(str(number + 1), str(pids[number]), ms(way.acquire[number]), text, f"{within[number]:.2f}")
    return table


def ways(shared: Way, mapped: Way, read: Way, again: float, size: int) -> Table:
    """weightd beside two usual ways."""
    table = _table("four processes at once", "weightd", "from_pretrained", "read into memory")
    all_ways = (shared, mapped, read)
    weights = (shared.weights, mapped.weights, read.private)
    table.add_row("acquire, first time (slowest)", ms(max(shared.acquire)), "–", "–")
    table.add_row("acquire again (median)", ms(again), "–", "–")
    table.add_row("until the model is built (slowest)", *(ms(w.load) for w in all_ways))
    table.add_row("until its first embedding (slowest)", *(ms(w.first) for w in all_ways), end_section=True)
    table.add_row("memory of the weights, all four", *(mib(w) for w in weights))
    table.add_row("  in copies of the file", *(f"{w / size:.2f}" for w in weights))
    table.add_row("private memory gained, all four", *(mib(w.private) for w in all_ways), end_section=True)
    table.add_row("bytes checked when they came", CHECKED[_level(shared.levels)], "no", "no")
    return table


CHECKED = {"size": "parts, size", "crc": "parts, CRC", "git": "parts, git id", "sha256": "parts, SHA-256"}
LEVELS = {"size": "size alone", "crc": "CRC", "git": "git's id (SHA-1)", "sha256": "SHA-256"}
ATTACKS = {
    "numpy": "lease[name].fill(0)",
    "flag": "lease[name].setflags(write=True)",
    "kernel": "read(2) of zeros into the mapping",
    "rights": "mprotect(2) to make it writable",
}
NOTE = (
    "Measured from /proc/<pid>/smaps (PSS) while all four hold the model and have read every weight of it; times are"
    " wall time with the file in the page cache, which favours the usual ways. from_pretrained maps a local file on a"
    " CPU, so its pages are shared too: as long as the whole file is on local disk, keeps its dtype and is not evicted."
    " 'read into memory' stands for what cannot map: pickles, other dtypes, network mounts, loaders that copy."
)


def _level(found: dict[str, list[str]]) -> str:
    """Of the weights."""
    return next(level for level, paths in found.items() if WEIGHTS in paths)


def levels(found: dict[str, list[str]]) -> str:
    """How far each file was verified, the largest group last."""
    groups = sorted(found.items(), key=lambda group: len(group[1]))
    told = [f"{paths[0] if len(paths) == 1 else f'{len(paths)} files'} by {LEVELS[level]}" for level, paths in groups]
    return "Checked when they came: " + ", ".join(told) + "."


def attacks(result: dict[str, str]) -> Table:
    """What stopped each write."""
    table = _table("attempt", "stopped by")
    table.columns[1].justify = "left"
    for name, attempt in ATTACKS.items():
        table.add_row(Text(attempt), Text(result[name]))
    return table
