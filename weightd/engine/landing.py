"""The memory of one part, while one or more receivers fill it."""

from __future__ import annotations

import threading


class Landing:
    """`view` is the whole part. Each who receives into it has joined (the first by making it), and leaves once; who
    has brought all of his says so before. Any thread."""

    __slots__ = ("_here", "_lock", "_missing", "_users", "_view")

    def __init__(self, view: memoryview) -> None:
        self._view: memoryview | None = view
        self._users = self._missing = 1
        self._here = 0
        self._lock = threading.Lock()

    @property
    def view(self) -> memoryview:
        if self._view is None:
            raise AssertionError("the part was delivered")
        return self._view

    def join(self) -> None:
        """One more receives what one of the others has yet to."""
        with self._lock:
            self._users += 1
            self._missing += 1

    def arrived(self) -> bool:
        """All of one is here; True for the last one, who delivers the part."""
        with self._lock:
            self._missing -= 1
            return self._missing == 0

    def deliver(self) -> memoryview:
        """The view is now the caller's."""
        with self._lock:
            view, self._view = self.view, None
            return view

    def leave(self, received: int) -> tuple[memoryview | None, int]:
        """One will not touch it any more, who received so many bytes. The last one of a part that was not delivered
        gets the view to give back, and how many bytes came in vain."""
        with self._lock:
            self._users -= 1
            self._here += received
            if self._users or self._view is None:
                return None, 0
            view, self._view = self._view, None
            return view, self._here
