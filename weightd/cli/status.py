"""`weightd status`"""

from __future__ import annotations

import click

from weightd.cli.daemon import connect, status_fields
from weightd.cli.progress import emit
from weightd.cli.text import ago, columns, duration
from weightd.client.types import QuotaInfo, TierInfo, VerifyInfo
from weightd.core.budget import human


@click.command("status", short_help="Show what the daemon holds and what room is left.")
@click.option("--json", "as_json", is_flag=True, help="One object.")
@click.pass_obj
def command(socket: str | None, as_json: bool) -> None:
    """Show the daemon: its state, budgets, leases and transfers."""
    with connect(socket) as client:
        status, path = client.status(), str(client.socket)
    if as_json:
        emit({"type": "status", **status_fields(status, path)})
        return
    click.echo(f"weightd {status.version}, {status.state.value}, process {status.pid}, up {duration(status.uptime)}")
    click.echo(f"socket {path}, state in {status.state_directory}")
    click.echo(f"{status.models} models, {status.leases} leases, {status.transfers} transfers")
    click.echo(_verified(status.verify))
    click.echo()
    rows = [_row("shm", status.shm), _row("nvme", status.nvme)]
    columns(("TIER", "BUDGET", "RESIDENT", "RESERVED", "FREE ON HOST"), rows, right=(1, 2, 3, 4))
    for quota in status.quotas:
        click.echo(_spent(quota))
    if status.shm.resident:
        click.echo(f"\n{human(status.shm_huge_bytes)} of shm in huge pages")


def _verified(verify: VerifyInfo) -> str:
    how = f"verified every {duration(verify.every)}" if verify.every else "not verified in the background"
    found = f"{verify.damaged} damaged, {verify.repaired} repaired, {verify.lost} lost since the start"
    return f"{how}; oldest verified {ago(verify.oldest)}; {found}"


def _spent(quota: QuotaInfo) -> str:
    left = f", {quota.left} left" if quota.left >= 0 else ""
    waited = f", spent {quota.waits} times" if quota.waits else ""
    return f"{quota.origin}: {quota.requests} requests of its quota {quota.bucket}{left}{waited}"


def _row(name: str, tier: TierInfo) -> tuple[str, ...]:
    return (name, human(tier.budget), human(tier.resident), human(tier.reserved), human(tier.free))
