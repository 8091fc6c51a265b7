"""`weightd status`"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import click

from weightd.cli.daemon import connect, status_fields
from weightd.cli.progress import emit
from weightd.cli.text import ago, columns, duration, rate, share
from weightd.client.types import CountersInfo, QuotaInfo, StatusInfo, TierInfo, TransferInfo, VerifyInfo
from weightd.core.budget import human

Line = tuple[str, Callable[[TierInfo], int], str]
LINES: Final[tuple[Line, ...]] = (
    ("budget", lambda t: t.budget, "hard limit"),
    ("resident", lambda t: t.resident, "complete and usable"),
    ("  leased", lambda t: t.leased, "of it, workers use"),
    ("  pinned", lambda t: t.pinned, "of it, never evicted"),
    ("filling", lambda t: t.reserved, "reserved by fetches and loads"),
    ("draining", lambda t: t.draining, "evicted, still mapped by somebody"),
    ("kept", lambda t: t.kept, "interrupted fetches, which give way"),
    ("left", lambda t: t.left, "of the budget"),
    ("mount", lambda t: t.total, "size of the file system"),
    ("  free", lambda t: t.free, "of it, for anybody"),
    ("  others", lambda t: t.other, "of it, used by others"),
)


@click.command("status", short_help="Show what the daemon holds and what room is left.")
@click.option("--json", "as_json", is_flag=True, help="One object.")
@click.pass_obj
def command(socket: str | None, as_json: bool) -> None:
    """Show the daemon: its state, where every byte of its budgets is, its leases and transfers."""
    with connect(socket) as client:
        status, path = client.status(), str(client.socket)
    if as_json:
        emit({"type": "status", **status_fields(status, path)})
        return
    for line in _lines(status, path):
        click.echo(line)
    if status.under_way:
        click.echo()
        header = ("TRANSFER", "PHASE", "DONE", "OF", "RATE", "")
        columns(header, [_under_way(t) for t in status.under_way], right=(2, 3, 4), shrink={0: 24})


def _lines(status: StatusInfo, path: str) -> Iterator[str]:
    yield f"weightd {status.version}, {status.state.value}, process {status.pid}, up {duration(status.uptime)}"
    yield f"socket {path}, state in {status.state_directory}"
    yield f"{status.models} models, {status.leases} leases, {status.transfers} transfers"
    yield from _counted(status.counters, status.verify)
    yield _verified(status.verify)
    yield ""
    yield f"{'':<10}{'SHM':>11}{'NVME':>11}"
    for name, value, meaning in LINES:
        yield f"{name:<10}{human(value(status.shm)):>11}{human(value(status.nvme)):>11}  {meaning}"
    yield from (squeezed(name, tier) for name, tier in (("shm", status.shm), ("nvme", status.nvme)) if tight(tier))
    if status.shm.resident:
        yield f"{human(status.shm_huge_bytes)} of shm in huge pages"
    yield from map(_spent, status.quotas)


def tight(tier: TierInfo) -> bool:
    """Somebody else has taken room that the budget counts on."""
    return tier.total > 0 and tier.free < tier.left


def squeezed(name: str, tier: TierInfo) -> str:
    """Of a tier that is `tight`."""
    return f"{name}: of {human(tier.left)} left only {human(tier.free)} are free, others use {human(tier.other)}"


def _counted(c: CountersInfo, v: VerifyInfo) -> Iterator[str]:
    begin = "since the start: "
    acquires = f"{c.acquires} acquires" + (f" ({share(c.hits, c.acquires)} at once)" if c.acquires else "")
    yield f"{begin}{human(c.bytes_fetched)} fetched, {human(c.bytes_loaded)} loaded, {acquires},"
    found = f"{v.damaged} damaged, {v.repaired} repaired, {v.lost} lost"
    yield f"{'':{len(begin)}}{c.evictions} evicted, {c.adopted} adopted, {found}"


def _verified(verify: VerifyInfo) -> str:
    how = f"verified every {duration(verify.every)}" if verify.every else "not verified in the background"
    return f"{how}; oldest verified {ago(verify.oldest)}"


def _under_way(t: TransferInfo) -> tuple[str, ...]:
    total = human(t.total) if t.total else ""
    urgent = "a worker waits" if t.urgent else ""
    return t.ref, t.phase.name.lower(), share(t.done, t.total), total, rate(t.rate), urgent


def _spent(quota: QuotaInfo) -> str:
    left = f", {quota.left} left" if quota.left >= 0 else ""
    waited = f", spent {quota.waits} times" if quota.waits else ""
    return f"{quota.origin}: {quota.requests} requests of its quota {quota.bucket}{left}{waited}"
