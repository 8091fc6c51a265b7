"""One command for several refs: each is tried, whatever becomes of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import click

from weightd.cli.daemon import lease_fields
from weightd.cli.faults import tell
from weightd.cli.progress import emit
from weightd.cli.text import ago, count, place, process_id
from weightd.client.client import Client
from weightd.client.types import LeaseInfo
from weightd.core.errors import ModelLeased, ModelNotFound, Unavailable, WeightdError
from weightd.core.refs import parse_ref

SHOWN: Final = 5
"""Holders that are named; the rest is counted."""


def each(client: Client, refs: Sequence[str], act: Callable[[str], object], *, as_json: bool) -> int:
    """Run `act` for each ref; faults are told as they come, those of a leased model with who holds it. Returns the exit
    code of the first one, or 0. A ref that cannot be parsed ends it before anything is done, a daemon that has gone at
    once."""
    for ref in refs:
        parse_ref(ref)
    code = 0
    for ref in refs:
        try:
            act(ref)
        except Unavailable:
            raise
        except WeightdError as error:
            if isinstance(error, ModelLeased) and as_json:
                tell_holders(client, ref, as_json=True)
            told = tell(as_json, error)
            code = code or told
            if isinstance(error, ModelLeased) and not as_json:
                tell_holders(client, ref, as_json=False)
    return code


def tell_holders(client: Client, ref: str, *, as_json: bool) -> None:
    """With `as_json` objects of type lease, which go before the error, whose object is the last of its ref."""
    try:
        leases = client.leases(ref)
    except ModelNotFound:
        return
    if as_json:
        for lease in leases:
            emit({"type": "lease", **lease_fields(lease)})
        return
    for lease in leases[:SHOWN]:
        click.echo(f"  {_who(lease)}", err=True)
    if len(leases) > SHOWN:
        click.echo(f"  and {count(len(leases) - SHOWN, 'more lease')}: weightd leases {ref}", err=True)


def _who(lease: LeaseInfo) -> str:
    holder = lease.holder
    words = [f"process {process_id(holder)}", holder.command, place(holder)]
    since = f"{'waits' if lease.waiting else 'leases it'} since {ago(lease.since)}"
    return ", ".join([*(word for word in words if word), since])
