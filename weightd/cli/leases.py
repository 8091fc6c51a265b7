"""`weightd leases`"""

from __future__ import annotations

import time

import click

from weightd.cli.daemon import connect, lease_fields
from weightd.cli.progress import emit
from weightd.cli.text import columns, duration, place, process_id
from weightd.client.types import LeaseInfo


@click.command("leases", short_help="List who uses which model.")
@click.argument("ref", default="")
@click.option("--json", "as_json", is_flag=True, help="An object for each lease, one on a line.")
@click.pass_obj
def command(socket: str | None, ref: str, as_json: bool) -> None:
    """List the leases of REF, or of all models, the oldest first, and who waits for one.

    A process says itself who it is. Where the kernel confirms it, PID is as the daemon sees it; a question mark tells
    that it does not, and that the process may call itself what it likes.
    """
    with connect(socket) as client:
        leases = client.leases(ref)
    if as_json:
        for lease in leases:
            emit({"type": "lease", **lease_fields(lease)})
        return
    header: tuple[str, ...] = ("REF", "PID", "COMMAND", "WHERE", "STATE", "FOR")
    rows = [_row(lease) for lease in leases]
    if any(lease.holder.tenant for lease in leases):
        header += ("TENANT",)
        rows = [(*row, lease.holder.tenant or "-") for row, lease in zip(rows, leases, strict=True)]
    columns(header, rows, right=(1,), shrink={0: 24, 2: 12, 3: 12})


def _row(lease: LeaseInfo) -> tuple[str, ...]:
    holder = lease.holder
    state = "waiting" if lease.waiting else "leased"
    long = duration(max(0.0, time.time() - lease.since))
    return lease.ref, process_id(holder), holder.command or "-", place(holder) or "-", state, long
