"""Lines of columns that fit a width exactly, for `weightd top`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from weightd.cli.text import printable, shorten

GAP: Final = 2


class Cell(NamedTuple):
    """`style` as rich reads it."""

    text: str
    style: str = ""


class Column(NamedTuple):
    """`width` in cells; of one with a `weight`, the least: it gets its share of what is left."""

    title: str
    width: int
    right: bool = False
    weight: int = 0


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


def heading(columns: Sequence[Column], sizes: Sequence[int]) -> Text:
    return line([Cell(c.title, "bold dim") for c in columns], columns, sizes)


def line(row: Sequence[Cell], columns: Sequence[Column], sizes: Sequence[int]) -> Text:
    """Too long texts are shortened in the middle."""
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
