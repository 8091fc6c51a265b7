"""`weightd load`"""

from __future__ import annotations

import click

from weightd.cli.bring import bring
from weightd.cli.daemon import connect
from weightd.cli.progress import reporter
from weightd.cli.stop import sigterm_raises
from weightd.core.refs import parse_ref


@click.command("load", short_help="Bring models that the daemon holds into shared memory.")
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Objects of type progress, model and error, one on a line.")
@click.pass_obj
def command(socket: str | None, refs: tuple[str, ...], as_json: bool) -> None:
    """Bring each REF from NVMe into shared memory, as the daemon holds it: its origin is not asked.

    It may be evicted again when room is needed; pin it to prevent that. The first ref that fails ends the command.
    """
    for ref in refs:
        parse_ref(ref)
    with reporter(as_json=as_json) as report, sigterm_raises(), connect(socket) as client:
        bring(refs, client.load, report)
