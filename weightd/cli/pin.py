"""`weightd pin`"""

from __future__ import annotations

import click

from weightd.cli.daemon import connect, model_fields
from weightd.cli.each import each
from weightd.cli.progress import emit
from weightd.core.lifecycle import Residency


@click.command("pin", short_help="Keep models where they are, whatever else needs room.")
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="An object of type model for each.")
@click.pass_obj
def command(socket: str | None, refs: tuple[str, ...], as_json: bool) -> int:
    """From now on no tier drops REF, also after a restart of the daemon, until `weightd unpin REF`.

    Pinning loads nothing: `weightd load REF` does.
    """

    def pin(ref: str) -> None:
        model = client.pin(ref)
        hint = "" if model.shm is Residency.RESIDENT else f"; not in shared memory: weightd load {model.ref}"
        emit({"type": "model", **model_fields(model)}) if as_json else click.echo(f"{model.ref}: pinned{hint}")

    with connect(socket) as client:
        return each(client, refs, pin, as_json=as_json)
