"""`weightd ls`"""

from __future__ import annotations

import click

from weightd.cli.daemon import connect, model_fields
from weightd.cli.progress import emit
from weightd.cli.text import CHECKED, ago, columns, policy
from weightd.core.budget import human


@click.command("ls", short_help="List the models on this host.")
@click.option("--json", "as_json", is_flag=True, help="An object for each model, one on a line.")
@click.pass_obj
def command(socket: str | None, as_json: bool) -> None:
    """List the models that the daemon holds.

    When what a REF means moved, its old snapshot stays beside the new one while it is leased, and as long as
    [snapshots] in the configuration says. The current one is the one that an acquire gets.
    """
    with connect(socket) as client:
        models = client.models()
    if as_json:
        for model in models:
            emit({"type": "model", **model_fields(model)})
        return
    rows = [
        (
            m.ref,
            m.revision,
            "current" if m.current else "old",
            policy(m),
            human(m.size),
            str(len(m.files)),
            CHECKED[m.verification],
            m.shm.name.lower(),
            m.nvme.name.lower(),
            str(m.leases),
            ago(m.last_used),
        )
        for m in models
    ]
    header = ("REF", "REVISION", "STATE", "POLICY", "SIZE", "FILES", "CHECKED", "SHM", "NVME", "LEASES", "USED")
    columns(header, rows, right=(4, 5, 9), shrink={0: 24}, drop=(1, 5, 6, 2, 8))
