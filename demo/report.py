"""The demo's tables: readable in 80 columns, in a terminal and in a log."""

from __future__ import annotations

from rich import box
from rich.table import Table

from demo.play import Way
from demo.snapshot import SENTENCES


def mib(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"


def ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for n, column in enumerate(columns):
        table.add_column(column, justify="left" if n == 0 else "right", overflow="fold")
    return table


def workers(way: Way, pids: list[int], within: list[float]) -> Table:
    """One row a worker."""
    table = _table("Four workers, one model", "worker", "pid", "acquire", "its two sentences", "cosine")
    table.columns[3].justify = "left"
    for number, pair in enumerate(SENTENCES):
        text = f"{pair[0]}\n{pair[1]}"
        table.add_row(str(number + 1), str(pids[number]), ms(way.acquire[number]), text, f"{within[number]:.2f}")
    return table


def ways(shared: Way, mapped: Way, read: Way, again: float, size: int) -> Table:
    """weightd beside two usual ways."""
    table = _table("The same model in four processes at once", "", "weightd", "from_pretrained", "read()")

    def row(label: str, *cells: str) -> None:
        table.add_row(label, *cells)

    all_ways = (shared, mapped, read)
    row("acquire, first time (slowest worker)", ms(max(shared.acquire)), "–", "–")
    row("acquire again (median)", ms(again), "–", "–")
    row("until the model is built (slowest)", *(ms(w.load) for w in all_ways))
    row("until its first embedding (slowest)", *(ms(w.first) for w in all_ways))
    row("memory for weights, all four", *(mib(w) for w in (shared.weights, mapped.weights, read.private)))
    row("  in copies of the file", *(f"{w / size:.2f}" for w in (shared.weights, mapped.weights, read.private)))
    row("growth of private memory, all four", *(mib(w.private) for w in all_ways))
    row("growth of PSS, all four", *(mib(w.growth) for w in all_ways))
    row("checked on the way", "sha256", "no", "no")
    return table


ATTACKS = {
    "numpy": "lease[name].fill(0)",
    "flag": "lease[name].setflags(write=True)",
    "kernel": "read(2) of zeros into the mapping",
    "rights": "mprotect(2) to make it writable",
}
NOTE = """\
Measured from /proc/<pid>/smaps while all four hold the model and have read every weight of it; times
are wall time with the file in the page cache, which favours the usual ways. from_pretrained maps a
local file on a CPU, so the kernel's page cache is shared there too, for as long as the file is
complete on local disk, unchanged in dtype and not evicted. read() stands for all that cannot map:
pickles, other dtypes, network mounts, loaders that copy."""


def attacks(result: dict[str, str]) -> Table:
    """What stopped each write."""
    table = _table("", "attempt", "stopped by")
    table.title = None
    table.columns[1].justify = "left"
    for name, attempt in ATTACKS.items():
        table.add_row(attempt, result[name])
    return table
