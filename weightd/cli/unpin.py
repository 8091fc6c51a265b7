"""`weightd unpin`"""

from __future__ import annotations

import click

from weightd.cli.daemon import connect, model_fields
from weightd.cli.each import each
from weightd.cli.progress import emit


@click.command("unpin", short_help="Let models go again when room is needed.")
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="An object of type model for each.")
@click.pass_obj
def command(socket: str | None, refs: tuple[str, ...], as_json: bool) -> int:
    """REF may be evicted again. Nothing is dropped by this, and what is not pinned stays as it is.

    A model whose policy is hot is kept by the configuration: change it there.
    """

    def unpin(ref: str) -> None:
        model = client.unpin(ref)
        emit({"type": "model", **model_fields(model)}) if as_json else click.echo(f"{model.ref}: not pinned")

    with connect(socket) as client:
        return each(client, refs, unpin, as_json=as_json)
