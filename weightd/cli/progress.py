"""Progress as bars on a terminal, as plain lines in a log, or as JSON objects for programs.

Progress goes to stderr, results to stdout; with --json everything goes to stdout, one object on a line.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

import click

from weightd.cli.text import duration, rate
from weightd.core.budget import human
from weightd.core.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

LINE_EVERY_S: Final = 2.0


class Reporter(AbstractContextManager["Reporter"], Protocol):
    """Use as a context, so that the terminal is left as it was."""

    def update(self, ref: str, progress: Progress) -> None:
        """Called several times a second for each model."""
        ...

    def result(self, fields: dict[str, object], text: str) -> None:
        """A model is done: `fields` for programs, `text` for people."""
        ...


def reporter(*, as_json: bool) -> Reporter:
    """The one that suits whoever reads."""
    if as_json:
        return JsonReporter()
    return BarReporter() if sys.stderr.isatty() else LineReporter()


class FileCount:
    """Files done and in all, from messages that leave out files completed earlier, and those not begun."""

    def __init__(self) -> None:
        self._complete: set[str] = set()
        self._known: set[str] = set()

    def take(self, progress: Progress) -> tuple[int, int]:
        """Returns (done, total) as known after this message."""
        self._complete |= {f.path for f in progress.files if f.done >= f.total}
        self._known |= {f.path for f in progress.files}
        return len(self._complete), len(self._known)


class JsonReporter:
    """Newline-delimited JSON on stdout."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, ref: str, progress: Progress) -> None:
        emit(
            {
                "type": "progress",
                "ref": ref,
                "phase": progress.phase.name.lower(),
                "bytes_done": progress.done,
                "bytes_total": progress.total,
                "bytes_per_second": round(progress.rate),
                "seconds_left": round(progress.seconds_left, 1) if progress.seconds_left >= 0 else None,
                "files": [{"path": f.path, "bytes_done": f.done, "bytes_total": f.total} for f in progress.files],
            }
        )

    def result(self, fields: dict[str, object], text: str) -> None:
        emit(fields)


class LineReporter:
    """A line at most every LINE_EVERY_S seconds and model."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}
        self._files: dict[str, FileCount] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, ref: str, progress: Progress) -> None:
        done, total = self._files.setdefault(ref, FileCount()).take(progress)
        now = time.monotonic()
        if now < self._next.get(ref, 0.0):
            return
        self._next[ref] = now + LINE_EVERY_S
        click.echo(f"{ref}: {_line(progress, done, total)}", err=True)

    def result(self, fields: dict[str, object], text: str) -> None:
        click.echo(text)


def _line(progress: Progress, done: int, total: int) -> str:
    words = [progress.phase.name.lower()]
    if progress.total:
        share = 100 * progress.done // progress.total
        words.append(f"{human(progress.done)} of {human(progress.total)} ({share} %), {done} of {total} files")
    if progress.rate > 0:
        words.append(rate(progress.rate))
    if progress.seconds_left > 0:
        words.append(f"{duration(progress.seconds_left)} left")
    return ", ".join(words)


class BarReporter:
    """A bar for each model on the terminal behind stderr."""

    def __init__(self) -> None:
        self._bars = _bars()
        self._tasks: dict[str, TaskID] = {}
        self._files: dict[str, FileCount] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._bars.stop()

    def update(self, ref: str, progress: Progress) -> None:
        done, total = self._files.setdefault(ref, FileCount()).take(progress)
        if ref not in self._tasks:
            self._tasks[ref] = self._bars.add_task(ref, total=None, phase="", files="", rate="", left="")
        self._bars.update(
            self._tasks[ref],
            completed=progress.done,
            total=progress.total or None,
            phase=progress.phase.name.lower(),
            files=f"{done}/{total} files" if total else "",
            rate=rate(progress.rate),
            left=f"{duration(progress.seconds_left)} left" if progress.seconds_left > 0 else "",
        )

    def result(self, fields: dict[str, object], text: str) -> None:
        if sys.stdout.isatty():
            self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            click.echo(text)


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Name(ProgressColumn):
        def render(self, task: Task) -> Text:
            # The end of a ref tells models apart; the front is mostly the same.
            name = task.description
            return Text(name if len(name) <= 40 else "…" + name[-39:])

    return Progress(
        Name(),
        TextColumn("{task.fields[phase]}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[files]}", markup=False),
        TextColumn("{task.fields[rate]}", markup=False),
        TextColumn("{task.fields[left]}", markup=False),
        console=Console(stderr=True),
        transient=False,
    )


def emit(fields: dict[str, object]) -> None:
    """One JSON object on a line of stdout, at once."""
    click.echo(json.dumps(fields, ensure_ascii=False))
