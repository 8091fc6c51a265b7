"""What happened: every step in a file, counts for people, and each violation with what reproduces it."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from weightd.core.budget import human


class Violation(Exception):
    """weightd did what it must not do."""


class Journal:
    """Thread-safe. `directory` keeps journal.log and violations.log."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory, self.seed = directory, seed
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._file = (directory / "journal.log").open("w", buffering=1)
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.counts: Counter[str] = Counter()
        self.checked = 0
        """Bytes compared with what the origin served."""
        self.violations: list[str] = []

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def note(self, who: str, text: str) -> None:
        """One line of journal.log."""
        with self._lock:
            self._file.write(f"{self.elapsed:9.3f} {who}: {text}\n")

    def ended(self, actor: str, outcome: str) -> None:
        """A step of an actor; `outcome` is "ok", "cancelled", "killed" or the class of an error."""
        with self._lock:
            self.outcomes[actor.partition("-")[0]][outcome] += 1

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counts[what] += number

    def saw(self, size: int) -> None:
        with self._lock:
            self.checked += size

    def violation(self, who: str, text: str) -> None:
        """Told at once, and kept."""
        line = f"seed {self.seed}, {self.elapsed:.1f} s, {who}: {text}"
        self.note("VIOLATION", line)
        with self._lock:
            self.violations.append(line)
            with (self.directory / "violations.log").open("a") as file:
                file.write(line + "\n\n")
        print(f"VIOLATION {line}", flush=True)

    def line(self, daemon: str) -> str:
        """How far we are."""
        with self._lock:
            steps = {a: sum(c.values()) for a, c in sorted(self.outcomes.items())}
            minutes, seconds = divmod(int(self.elapsed), 60)
            parts = ", ".join(f"{n} {a}" for a, n in steps.items())
            return (
                f"{minutes:3}:{seconds:02}  {parts}; {human(self.checked)} compared; {daemon}; "
                f"{len(self.violations)} violations"
            )

    def table(self) -> Table:
        """The end."""
        table = Table(title=f"soak, seed {self.seed}, {self.elapsed / 60:.1f} minutes")
        for name in ("what", "steps", "outcomes"):
            table.add_column(name, justify="right" if name == "steps" else "left")
        with self._lock:
            for actor, outcomes in sorted(self.outcomes.items()):
                text = ", ".join(f"{n} {what}" for what, n in outcomes.most_common())
                table.add_row(actor, str(sum(outcomes.values())), text)
            table.add_section()
            for what, number in sorted(self.counts.items()):
                table.add_row(what, str(number), "")
            table.add_row("compared", human(self.checked), "bytes equal to what the origin served")
            table.add_row("violations", str(len(self.violations)), "")
        return table

    def close(self) -> None:
        """No step is noted any more."""
        self._file.close()

    def show(self) -> None:
        Console(width=120).print(self.table())
