"""Look at a file's header as soon as its first part is here: a model that nobody can load need not come as a whole."""

from __future__ import annotations

from collections.abc import Callable

from weightd.core.errors import FormatError, WeightdError
from weightd.core.safetensors import PREFIX, header_length, parse_header
from weightd.sources.protocols import Reader

Write = Callable[[int, memoryview], None]


def has_head(path: str) -> bool:
    """Whether a file begins with a header that says what is in it."""
    return path.endswith(".safetensors")


def checked(write: Write, path: str, size: int, again: Callable[[], Reader] | None) -> Write:
    """`write`, which raises FormatError once what stands at offset 0 is no header that the whole file could have.

    `again` makes a Reader of the origin where somebody gave the file's digest or CRC: what went wrong on the way would
    be found by that, and mended, so that a header that reads otherwise a second time is left to that check.
    """
    if not has_head(path):
        return write

    def checking(offset: int, view: memoryview) -> None:
        if offset == 0:
            try:
                _check(view, size)
            except FormatError as e:
                if again is None or _same(again, view):
                    raise e.about(file=path) from None
        write(offset, view)

    return checking


def _check(view: memoryview, size: int) -> None:
    """As far as it is here: of one that goes on beyond the first part, its length."""
    with view[:PREFIX] as first:
        end = PREFIX + header_length(first, size)
    if end <= len(view):
        with view[PREFIX:end] as raw:
            parse_header(raw, size)


def _same(again: Callable[[], Reader], view: memoryview) -> bool:
    """Whether the origin says it once more; False where it cannot be asked now."""
    reader, buffer = again(), memoryview(bytearray(len(view)))
    try:
        reader.start(0, len(view))
        done = 0
        while done < len(view):
            done += reader.readinto(buffer[done:])
        reader.finish()
        return bool(buffer == view)
    except WeightdError:
        return False
    finally:
        reader.close()
