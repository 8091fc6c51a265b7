"""`weightd evict`"""

from __future__ import annotations

from collections.abc import Callable

import click

from weightd.cli.daemon import connect
from weightd.cli.each import each
from weightd.cli.forecast import forecast, look
from weightd.cli.progress import emit
from weightd.cli.text import count
from weightd.client.client import Client
from weightd.client.types import Evicted
from weightd.core.budget import human
from weightd.core.errors import ModelNotFound, Precondition
from weightd.core.lifecycle import Residency
from weightd.core.refs import parse_ref

Evict = Callable[[str], Evicted]


@click.command("evict", short_help="Drop models from shared memory.")
@click.argument("refs", metavar="[REF...]", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every model that nobody uses, nor pins.")
@click.option("--dry-run", is_flag=True, help="Only tell what would go.")
@click.option("--json", "as_json", is_flag=True, help="Objects of type evicted, stays, lease and error, one on a line.")
@click.pass_obj
def command(socket: str | None, refs: tuple[str, ...], everything: bool, dry_run: bool, as_json: bool) -> int:
    """REF leaves shared memory, all its snapshots, and stays on NVMe, from where the next acquire loads it.

    What workers have mapped stays valid; its bytes count as draining until the last of them lets go. A model that is
    leased, pinned or being filled is refused, and with --all left where it is: then the exit code is 0.
    """
    if bool(refs) == everything:
        raise click.UsageError("name models, or use --all" if not refs else "--all names no models")
    with connect(socket) as client:
        act = _dry(client) if dry_run else client.evict
        if everything:
            _all(client, act, dry_run, as_json)
            return 0
        return each(client, refs, lambda ref: _tell(parse_ref(ref).shown, act(ref), dry_run, as_json), as_json=as_json)


def _dry(client: Client) -> Evict:
    host = look(client)
    return lambda ref: forecast(host, parse_ref(ref).shown, remove=False)


def _all(client: Client, act: Evict, dry_run: bool, as_json: bool) -> None:
    refs = dict.fromkeys(m.ref for m in client.models() if m.shm is not Residency.ABSENT)
    freed = stays = 0
    for ref in refs:
        try:
            gone = act(ref)
        except (Precondition, ModelNotFound) as error:
            stays += 1
            _tell_stay(ref, error, as_json)
        else:
            freed += gone.shm
            _tell(ref, gone, dry_run, as_json)
    if not as_json:
        would = "would leave" if dry_run else "left"
        click.echo(f"{count(len(refs) - stays, 'model')}, {human(freed)} {would} shared memory; {stays} stay")


def _tell(ref: str, gone: Evicted, dry_run: bool, as_json: bool) -> None:
    if as_json:
        emit({"type": "evicted", "ref": ref, "shm": gone.shm, "draining": gone.draining, "dry_run": dry_run})
        return
    still = f", {human(gone.draining)} of it still mapped" if gone.draining else ""
    click.echo(f"{ref}: {human(gone.shm)} {'would leave' if dry_run else 'left'} shared memory{still}")


def _tell_stay(ref: str, error: Precondition | ModelNotFound, as_json: bool) -> None:
    if as_json:
        emit({"type": "stays", "ref": ref, "kind": type(error).__name__, "message": error.message})
    else:
        click.echo(f"{ref}: stays: {error.message}")
