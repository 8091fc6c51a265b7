"""Lines of columns that fit a width exactly, for `weightd top`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from weightd.cli.text import printable, shorten, told_apart

GAP: Final = 2


class Cell(NamedTuple):
    """`style` as rich reads it."""

    text: str
    style: str = ""


class Column(NamedTuple):
    """`width` in cells; of one with a `weight`, the least: it gets its share of what is left. Where there is not room
    for all, those with the highest `drop` go first; 0 stays."""

    title: str
    width: int
    right: bool = False
    weight: int = 0
    drop: int = 0


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], room: int) -> tuple[Text, list[Text]]:
    """Its heading, and a line for each row; too long texts are shortened so that they can be told apart."""
    kept = fitting(columns, room)
    columns = [columns[i] for i in kept]
    sizes = widths(columns, room)
    cells = [[row[i] for i in kept] for row in rows]
    short = [told_apart([printable(row[i].text) for row in cells], size) for i, size in enumerate(sizes)]
    lines = [
        _line([cell._replace(text=short[i][number]) for i, cell in enumerate(row)], columns, sizes)
        for number, row in enumerate(cells)
    ]
    return _line([Cell(c.title, "bold dim") for c in columns], columns, sizes), lines


def fitting(columns: Sequence[Column], room: int) -> list[int]:
    """The indexes of those that are shown."""
    kept = list(range(len(columns)))
    while sum(columns[i].width for i in kept) + GAP * (len(kept) - 1) > room:
        last = max(kept, key=lambda i: columns[i].drop)
        if not columns[last].drop:
            break
        kept.remove(last)
    return kept


def widths(columns: Sequence[Column], room: int) -> list[int]:
    """In cells, of each column; together they fill the room."""
    left = max(0, room - sum(c.width for c in columns) - GAP * (len(columns) - 1))
    weight = sum(c.weight for c in columns)
    sizes = []
    for column in columns:
        more = left * column.weight // weight if weight else 0
        left, weight = left - more, weight - column.weight
        sizes.append(column.width + more)
    return sizes


def _line(row: Sequence[Cell], columns: Sequence[Column], sizes: Sequence[int]) -> Text:
    text = Text()
    for at, (cell, column, size) in enumerate(zip(row, columns, sizes, strict=True)):
        text.append(" " * (GAP if at else 0))
        text.append(fitted(cell.text, size, right=column.right), cell.style)
    return text


def fitted(text: str, size: int, *, right: bool = False) -> str:
    """Exactly `size` cells, also of texts whose characters take two."""
    text = printable(text)
    if cell_len(text) > size:
        text = shorten(text, size)
    missing = size - cell_len(text)
    return " " * missing + text if right and missing > 0 else set_cell_size(text, size)
