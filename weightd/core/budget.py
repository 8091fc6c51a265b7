"""Bytes of one tier, counted before they arrive (promise 6)."""

from __future__ import annotations

from weightd.core.errors import BudgetExceeded


class Budget:
    """A hard limit. `reserve` before anything is allocated; then `settle` what stays and `free` what goes.

    Every byte is either reserved (a fetch or load is under way), resident, draining (dropped, and still mapped by
    somebody), kept (an interrupted fetch that can be resumed, and gives way), or free.
    """

    __slots__ = ("draining", "kept", "limit", "reserved", "resident", "tier")

    def __init__(self, tier: str, limit: int) -> None:
        self.tier, self.limit = tier, limit
        self.reserved = 0
        self.resident = 0
        self.draining = 0
        self.kept = 0

    @property
    def left(self) -> int:
        return self.limit - self.reserved - self.resident - self.draining - self.kept

    def reserve(self, size: int, ref: str = "", holders: str = "") -> None:
        """Claim `size` bytes or raise BudgetExceeded, which says how much is missing, and the `holders` of the rest."""
        if size > self.left:
            draining = f"{human(self.draining)} draining, " if self.draining else ""
            raise BudgetExceeded(
                f"the {self.tier} budget of {human(self.limit)} cannot hold {human(size)} more: "
                f"{human(self.resident)} resident, {human(self.reserved)} reserved, {draining}"
                f"{human(size - self.left)} missing{'; ' + holders if holders else ''}",
                ref=ref,
                remedy=f"Raise {self.tier}.budget in the configuration, end a lease or a pin, or use a smaller model.",
            )
        self.reserved += size

    def settle(self, size: int) -> None:
        """Reserved bytes became resident."""
        self._check(size <= self.reserved)
        self.reserved -= size
        self.resident += size

    def cancel(self, size: int) -> None:
        """Reserved bytes are not needed after all."""
        self._check(size <= self.reserved)
        self.reserved -= size

    def adopt(self, size: int) -> None:
        """Bytes found resident at the start count even beyond the limit."""
        self.resident += size

    def drain(self, size: int) -> None:
        """Resident bytes were dropped, and somebody still maps them."""
        self._check(size <= self.resident)
        self.resident -= size
        self.draining += size

    def drained(self, size: int) -> None:
        """Nobody maps them any more."""
        self._check(size <= self.draining)
        self.draining -= size

    def free(self, size: int) -> None:
        """Resident bytes are gone."""
        self._check(size <= self.resident)
        self.resident -= size

    @staticmethod
    def _check(holds: bool) -> None:
        if not holds:
            raise AssertionError("budget accounting went below zero")

    def __repr__(self) -> str:
        return f"<Budget {self.tier} {self.resident}+{self.reserved} of {self.limit}>"


def human(size: float) -> str:
    """Bytes for people: binary units, one decimal."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
