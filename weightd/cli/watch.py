"""`weightd watch`"""

from __future__ import annotations

import time
from typing import Final

import click

from weightd.cli.daemon import connect
from weightd.cli.progress import emit
from weightd.cli.stop import sigterm_raises
from weightd.cli.text import printable
from weightd.client.client import Client
from weightd.client.client import Watch as Events
from weightd.client.types import EventInfo
from weightd.core.errors import TooSlow, Unavailable

AGAIN_S: Final = 0.5
"""Between two attempts to reach a daemon that has ended."""


@click.command("watch", short_help="Follow what happens.")
@click.option("--json", "as_json", is_flag=True, help="Objects of type event and gap, one on a line.")
@click.pass_obj
def command(socket: str | None, as_json: bool) -> None:
    """Print what happens from now on, as it happens, until Ctrl-C.

    Goes on when the daemon is started again, or events came faster than they could be printed: a gap tells that some
    are missing.
    """
    with sigterm_raises(), connect(socket) as client:
        events = client.watch()
        while True:
            try:
                with events:
                    for event in events:
                        _tell(event, as_json)
                why = "the daemon ended the stream"
            except (Unavailable, TooSlow) as error:
                why = error.message
            events = _again(client, why, as_json)


def _again(client: Client, why: str, as_json: bool) -> Events:
    """A new stream, once there is a daemon."""
    began = time.time()
    _tell_gap(f"{why}; events may be missing from here on", began, as_json)
    while True:
        try:
            events = client.watch()
        except Unavailable:
            time.sleep(AGAIN_S)
        else:
            _tell_gap("following again", began, as_json)
            return events


def _tell(event: EventInfo, as_json: bool) -> None:
    kind = event.kind.name.lower()
    if as_json:
        fields = {"kind": kind, "ref": event.ref, "revision": event.revision}
        emit({"type": "event", **fields, "time": event.time, "detail": event.detail})
        return
    detail = f"  {event.detail}" if event.detail else ""
    click.echo(f"{_clock(event.time)}  {kind:<14}  {printable(event.ref)} {event.revision}{printable(detail)}".rstrip())


def _tell_gap(message: str, since: float, as_json: bool) -> None:
    now = time.time()
    if as_json:
        emit({"type": "gap", "time": now, "since": since, "message": message})
    else:
        click.echo(f"{_clock(now)}  --  {message}", err=True)


def _clock(unix: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))
