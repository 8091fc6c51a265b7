"""`weightd rm`"""

from __future__ import annotations

import click

from weightd.cli.daemon import connect
from weightd.cli.each import each
from weightd.cli.forecast import forecast, look
from weightd.cli.progress import emit
from weightd.client.types import Evicted
from weightd.core.budget import human
from weightd.core.refs import parse_ref


@click.command("rm", short_help="Drop models from this host.")
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Only tell what would go.")
@click.option("--json", "as_json", is_flag=True, help="Objects of type removed, lease and error, one on a line.")
@click.pass_obj
def command(socket: str | None, refs: tuple[str, ...], dry_run: bool, as_json: bool) -> int:
    """Drop REF from shared memory and from NVMe, all its snapshots. Bytes that other models have too stay.

    Asks nothing: a model can be fetched again. One that is leased, pinned or being filled is refused; of a leased one
    is told who holds it.
    """

    def remove(ref: str) -> None:
        shown = parse_ref(ref).shown
        gone = forecast(look(client), shown, remove=True) if dry_run else client.remove(ref)
        _tell(shown, gone, dry_run, as_json)

    with connect(socket) as client:
        return each(client, refs, remove, as_json=as_json)


def _tell(ref: str, gone: Evicted, dry_run: bool, as_json: bool) -> None:
    if as_json:
        emit({"type": "removed", "ref": ref, "shm": gone.shm, "nvme": gone.nvme, "dry_run": dry_run})
        return
    how = "would be removed" if dry_run else "removed"
    click.echo(f"{ref}: {how}: {human(gone.nvme)} from NVMe, {human(gone.shm)} from shared memory")
