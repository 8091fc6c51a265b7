"""Keys as they are pressed, without echo."""

from __future__ import annotations

import os
import sys
import termios
from types import TracebackType
from typing import Self


class Keys:
    """While inside, the terminal behind stdin gives each key at once; does nothing where stdin is none. Ctrl-C stays
    what it is; Ctrl-Z does nothing, as whoever stops would leave the screen as it is."""

    def __init__(self) -> None:
        self.descriptor = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        """To wait for."""
        self._before = termios.tcgetattr(self.descriptor) if self.descriptor is not None else None

    def read(self) -> str:
        """What was pressed since; "" at the end of the input."""
        return "" if self.descriptor is None else os.read(self.descriptor, 64).decode(errors="replace")

    def __enter__(self) -> Self:
        if self.descriptor is not None:
            mode = termios.tcgetattr(self.descriptor)
            mode[3] &= ~(termios.ICANON | termios.ECHO)
            mode[6][termios.VSUSP] = b"\0"
            termios.tcsetattr(self.descriptor, termios.TCSADRAIN, mode)
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self.descriptor is not None and self._before is not None:
            termios.tcsetattr(self.descriptor, termios.TCSADRAIN, self._before)
