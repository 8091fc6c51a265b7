"""`weightd top`"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final

import click

from weightd.cli.daemon import connect
from weightd.cli.keys import Keys
from weightd.cli.stop import Terminated, sigterm_raises
from weightd.cli.top_sample import History, Sampler, take
from weightd.client.client import Client

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

REDRAW_S: Final = 1.0
"""At least so often, so that clock and ages go on."""
PIPE_WIDTH: Final = 140
"""Columns of frames for a pipe, unless COLUMNS says otherwise."""


@click.command("top", short_help="Show models, tiers, leases and rates, live.")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Between two looks.",
)
@click.option("--once", is_flag=True, help="Print one frame, and end.")
@click.pass_obj
def command(socket: str | None, interval: float, once: bool) -> None:
    """Show the daemon's tiers, transfers, models and leases, live. q or Ctrl-C leaves.

    Without a terminal frames are printed one after another. A restart of the daemon is shown and lived through.
    """
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _pipe_width())
    terminal = sys.stdout.isatty() and not console.is_dumb_terminal
    if console.is_dumb_terminal:  # which rich takes for 80 columns, whatever it has
        width, height = shutil.get_terminal_size()
        console = Console(highlight=False, width=width, height=height)
    history = History()
    with sigterm_raises(), connect(socket) as client:
        history.add(take(client))
        try:
            if terminal and not once:
                _live(console, client, history, interval)
            elif once:
                _print(console, history, interval)
            else:
                _frames(console, client, history, interval)
        except KeyboardInterrupt:
            return  # the way to leave


def _pipe_width() -> int:
    text = os.environ.get("COLUMNS", "")
    return int(text) if text.isdecimal() and int(text) > 0 else PIPE_WIDTH


def _lines(console: Console, history: History, interval: float, height: int | None) -> list[Text]:
    from weightd.cli.top_frame import Page, frame

    colours = sys.stdout.isatty() and console.color_system is not None and not console.no_color
    return frame(history, Page(console.width, height, colours, time.monotonic(), time.time(), interval))


def _print(console: Console, history: History, interval: float) -> None:
    """As long as it gets. Not by rich into a pipe, which has its own exit code for a reader that leaves."""
    for line in _lines(console, history, interval, None):
        console.print(line, soft_wrap=True) if sys.stdout.isatty() else click.echo(line.plain)


def _frames(console: Console, client: Client, history: History, interval: float) -> None:
    with _woken() as (descriptor, wake), Sampler(client, history, interval, wake) as sampler:
        while True:
            with sampler.lock:
                _print(console, history, interval)
            click.echo()
            os.read(descriptor, 4096)


def _live(console: Console, client: Client, history: History, interval: float) -> None:
    from rich.console import Group
    from rich.live import Live

    def draw() -> Group:
        with sampler.lock:
            return Group(*_lines(console, history, interval, console.height))

    with _woken() as (descriptor, wake), _signals(wake) as arrived:
        with Sampler(client, history, interval, wake) as sampler, Keys() as keys:
            with Live(draw(), console=console, screen=True, auto_refresh=False) as live:
                while _wait(descriptor, keys) and not arrived:
                    live.update(draw(), refresh=True)
    if signal.SIGTERM in arrived:
        raise Terminated


def _wait(descriptor: int, keys: Keys) -> bool:
    """Until there is something new to draw; False when somebody wants to leave."""
    watched = [descriptor, *([keys.descriptor] if keys.descriptor is not None else [])]
    ready, _, _ = select.select(watched, [], [], REDRAW_S)
    if descriptor in ready:
        os.read(descriptor, 4096)
    if keys.descriptor in ready:
        pressed = keys.read()
        return bool(pressed) and "q" not in pressed.lower()
    return True


@contextmanager
def _woken() -> Iterator[tuple[int, Callable[[], None]]]:
    """A descriptor to wait for, and what makes it ready, from any thread."""
    reads, writes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(reads, True)

    def wake() -> None:
        try:
            os.write(writes, b"x")
        except BlockingIOError:
            pass  # full: whoever waits is awake

    try:
        yield reads, wake
    finally:
        os.close(reads)
        os.close(writes)


@contextmanager
def _signals(wake: Callable[[], None]) -> Iterator[list[int]]:
    """While inside, SIGINT and SIGTERM raise nothing, since in the midst of drawing they would leave the screen as it
    is: they are in what is yielded, and wake, as a new size of the terminal does."""
    arrived: list[int] = []

    def leave(number: int, _: FrameType | None) -> None:
        arrived.append(number)
        wake()

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: wake())
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
