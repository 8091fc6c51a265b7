"""Look at a file's header as soon as its first part is here: a model that nobody can load need not come as a whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from weightd.core.errors import FormatError, WeightdError
from weightd.core.safetensors import PREFIX, header_length, parse_header
from weightd.sources.protocols import Reader

Write = Callable[[int, memoryview], None]


class Again:
    """Readers of one file, for a second look at it. Any thread may end what they wait for."""

    def __init__(self, make: Callable[[], Reader]) -> None:
        self._make = make
        self._reader: Reader | None = None
        self._aborted = False
        self._lock = threading.Lock()

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """One; one after the other."""
        reader = self._make()
        try:
            with self._lock:
                self._reader, aborted = reader, self._aborted
            if aborted:
                reader.abort()
            yield reader
        finally:
            with self._lock:
                self._reader = None
            reader.close()

    def abort(self) -> None:
        """The one there is, and all that come. Idempotent."""
        with self._lock:
            self._aborted, reader = True, self._reader
        if reader is not None:
            reader.abort()


def has_head(path: str) -> bool:
    """Whether a file begins with a header that says what is in it."""
    return path.endswith(".safetensors")


def checked(write: Write, path: str, size: int, again: Again | None) -> Write:
    """`write`, which raises FormatError once what stands at offset 0 is no header that the whole file could have.

    `again` asks the origin where somebody gave the file's digest or CRC: what went wrong on the way would
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


def _same(again: Again, view: memoryview) -> bool:
    """Whether the origin says it once more; False where it cannot be asked now."""
    buffer, done = memoryview(bytearray(len(view))), 0
    try:
        with again.reader() as reader:
            reader.start(0, len(view))
            while done < len(view):
                done += reader.readinto(buffer[done:])
            reader.finish()
        return bool(buffer == view)
    except WeightdError:
        return False
