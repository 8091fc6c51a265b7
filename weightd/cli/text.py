"""Plain columns and plain words."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import click

from weightd.core.budget import human
from weightd.core.verification import Verification

CHECKED: Final = {
    Verification.SIZE: "size checked",
    Verification.CRC: "crc verified",
    Verification.GIT: "git id verified",
    Verification.SHA256: "sha256 verified",
}
"""Only what was compared with something given is called verified."""


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print aligned columns, two spaces apart; `right` are the indexes of those that align right."""
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        click.echo("  ".join(cells).rstrip())


def ago(then: float, now: float | None = None) -> str:
    """Seconds since the epoch, as "3 min ago"."""
    if then <= 0:
        return "never"
    return f"{duration(max(0.0, (time.time() if now is None else now) - then))} ago"


def duration(seconds: float) -> str:
    """For people: two digits that matter."""
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} d"


def rate(bytes_per_second: float) -> str:
    """ "" while unknown."""
    return f"{human(bytes_per_second)}/s" if bytes_per_second > 0 else ""


def count(number: int, noun: str) -> str:
    """ "1 file", "2 files"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
