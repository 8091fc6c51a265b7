"""`weightd fetch`"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from weightd.cli.progress import Reporter, reporter
from weightd.cli.stop import sigterm_raises
from weightd.core.digest import parse_digest
from weightd.core.refs import parse_ref


@click.command("fetch", short_help="Bring models onto this host, or into a directory.")
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option(
    "--to", "directory", metavar="DIR", type=click.Path(path_type=Path), help="Leave the files here; needs no daemon."
)
@click.option("--sha256", metavar="HEX", help="Expected digest, for one ref of a single file.")
@click.option(
    "--tier",
    type=click.Choice(["shm", "nvme"]),
    help="The fastest tier wanted. Default: shm; nvme of a cold model.",
)
@click.option(
    "--config", metavar="FILE", type=click.Path(path_type=Path), help="With --to: named models and [fetch] from here."
)
@click.option("--json", "as_json", is_flag=True, help="Objects of type progress, model and error, one on a line.")
@click.pass_obj
def command(
    socket: str | None,
    refs: tuple[str, ...],
    directory: Path | None,
    sha256: str | None,
    tier: Literal["shm", "nvme"] | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Bring each REF onto this host: https://, http://, file:// or the name of a configured model.

    The daemon fetches it and keeps it. With --to, the same engine runs here instead, and leaves the verified files in
    DIR under their own names: all of them, or none. The first ref that fails ends the command.
    """
    if sha256 is not None and len(refs) > 1:
        raise click.UsageError("--sha256 is for one ref of a single file")
    if directory is not None and tier is not None:
        raise click.UsageError("--tier is the daemon's; with --to the files go to the directory")
    if directory is None and config is not None:
        raise click.UsageError("--config goes with --to; the daemon has its own")
    digest = parse_digest(sha256) if sha256 is not None else None
    for ref in refs:
        parse_ref(ref)
    with reporter(as_json=as_json) as report:
        if directory is not None:
            from weightd.cli.export import export

            export(refs, directory, digest, config, report)
        else:
            _through_daemon(socket, refs, sha256, tier, report)


def _through_daemon(
    socket: str | None, refs: tuple[str, ...], sha256: str | None, tier: Literal["shm", "nvme"] | None, report: Reporter
) -> None:
    from weightd.cli.bring import bring
    from weightd.cli.daemon import connect

    with sigterm_raises(), connect(socket) as client:
        bring(refs, lambda ref, on_progress: client.fetch(ref, sha256, tier, on_progress), report)
