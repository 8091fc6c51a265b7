"""Where in a TOML text a key stands. tomllib does not say; a fault in a configuration should."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_HEADER = re.compile(r"\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(?:#.*)?$")
_ASSIGN = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+))*)\s*=""")
_PART = re.compile(r""""([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+)""")


def line_of(text: str, path: Sequence[str]) -> int | None:
    """The 1-based line that sets `path`, else the line of the nearest table around it, else None.

    What stands below the first `[[a]]` is at ("a", "0", …). Good for ordinary files; a look-alike inside a multi-line
    string can mislead it.
    """
    wanted = tuple(path)
    best: tuple[int, int | None] = (0, None)
    table: tuple[str, ...] = ()
    arrays: Counter[tuple[str, ...]] = Counter()
    for number, line in enumerate(text.splitlines(), 1):
        if (header := _HEADER.match(line)) is not None:
            here = table = _split(header[2])
            if header[1] == "[[":
                here = table = (*table, str(arrays[table]))
                arrays[here[:-1]] += 1
        elif (assign := _ASSIGN.match(line)) is not None:
            here = table + _split(assign[1])
        else:
            continue
        if here == wanted:
            return number
        if _leads(here, wanted) and len(here) > best[0]:
            best = (len(here), number)
        elif _leads(wanted, here) and best[1] is None:
            # `[a.b]` also makes `a`.
            best = (0, number)
    return best[1]


def _split(key: str) -> tuple[str, ...]:
    return tuple(a or b or c for a, b, c in _PART.findall(key))


def _leads(short: Sequence[str], long: Sequence[str]) -> bool:
    return len(short) < len(long) and tuple(long[: len(short)]) == tuple(short)
