"""Plain columns and plain words."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

import click

from weightd.client.types import Holder, ModelInfo
from weightd.core.budget import human
from weightd.core.verification import Verification

CHECKED: Final = {
    Verification.SIZE: "size checked",
    Verification.CRC: "crc verified",
    Verification.GIT: "git id verified",
    Verification.SHA256: "sha256 verified",
}
"""Only what was compared with something given is called verified."""


def columns(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[int] = (),
    shrink: Mapping[int, int] | None = None,
    drop: Sequence[int] = (),
) -> None:
    """Print aligned columns, two spaces apart; `right` are the indexes of those that align right.

    A terminal that is too narrow gets columns in `drop` dropped, in this order, and those in `shrink` shortened to the
    width given there at the least; whoever pipes gets all of it.
    """
    lines = [[printable(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    shown = list(range(len(header)))
    if sys.stdout.isatty():
        _fit(widths, shown, shrink or {}, drop, shutil.get_terminal_size().columns)
    short = [told_apart([line[i] for line in lines], width) for i, width in enumerate(widths)]
    for number in range(len(lines)):
        cells = [short[i][number] for i in shown]
        aligned = [c.rjust(widths[i]) if i in right else c.ljust(widths[i]) for i, c in zip(shown, cells, strict=True)]
        click.echo("  ".join(aligned).rstrip())


def _fit(widths: list[int], shown: list[int], shrink: Mapping[int, int], drop: Sequence[int], room: int) -> None:
    """Drops as few as need be, then shortens, the widest first: what is short stays whole."""
    least = [min(width, shrink.get(i, width)) for i, width in enumerate(widths)]
    for i in drop:
        if _width(least, shown) > room:
            shown.remove(i)
    for _ in range(_width(widths, shown) - room):
        wide = max((i for i in shown if widths[i] > least[i]), key=widths.__getitem__, default=None)
        if wide is None:
            return
        widths[wide] -= 1


def _width(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[i] for i in shown) + 2 * (len(shown) - 1)


def printable(text: str) -> str:
    """Without what would move the cursor, break the line or turn the direction of writing."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def shorten(text: str, width: int) -> str:
    """At most `width` characters: cut in the middle, since refs differ in their ends and begin with what they are."""
    if len(text) <= width:
        return text
    if width < 4:
        return text[:width]
    tail = (width - 1) * 3 // 5
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def told_apart(texts: Sequence[str], width: int) -> list[str]:
    """Each as `shorten` has it; but of different ones that look the same then, the part in which they differ is shown:
    addresses of models on one host, say, that all end in the same name of a file."""
    alike: dict[str, set[str]] = {}
    for text in texts:
        if len(text) > width:
            alike.setdefault(shorten(text, width), set()).add(text)
    twins = {text: list(group) for group in alike.values() if len(group) > 1 for text in group}
    return [_differing(text, twins[text], width) if text in twins else shorten(text, width) for text in texts]


def _differing(text: str, group: Sequence[str], width: int) -> str:
    """Without the directories that all of them begin with, and without what they end with if need be."""
    begin = _begins(group).rfind("/") + 1
    tail = _begins([other[::-1] for other in group])[::-1]
    end = len(tail) - tail.find("/") if "/" in tail else 0
    if begin + end > min(map(len, group)):
        end = 0
    core, dots = text[begin : len(text) - end], "…" if begin else ""
    whole = f"{dots}{text[begin:]}"
    return whole if len(whole) <= width else shorten(f"{dots}{core}{'…' if end else ''}", width)


def _begins(texts: Sequence[str]) -> str:
    """What all of them begin with."""
    first, last = min(texts), max(texts)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:same]


def place(holder: Holder) -> str:
    """Where a holder runs, in few characters: its pod, else the last part of its cgroup's path."""
    return holder.pod or holder.cgroup.rstrip("/").rpartition("/")[2]


def process_id(holder: Holder) -> str:
    """With a question mark where only the process itself says so."""
    return f"{holder.pid or ''}{'' if holder.confirmed else '?'}"


def policy(model: ModelInfo) -> str:
    """ "warm", "warm, pinned"."""
    return f"{model.policy.value}, pinned" if model.pinned else model.policy.value


def ago(then: float, now: float | None = None) -> str:
    """Seconds since the epoch, as "3 min ago"."""
    if then <= 0:
        return "never"
    return f"{duration(max(0.0, (time.time() if now is None else now) - then))} ago"


def duration(seconds: float) -> str:
    """For people: two digits that matter."""
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit - unit / 2:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} d"


def rate(bytes_per_second: float) -> str:
    """ "" while unknown."""
    return f"{human(bytes_per_second)}/s" if bytes_per_second > 0 else ""


def count(number: int, noun: str) -> str:
    """ "1 file", "2 files"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def share(part: float, whole: float) -> str:
    """ "45 %"; "" of nothing."""
    return f"{100 * part / whole:.0f} %" if whole > 0 else ""
