"""`weightd verify`"""

from __future__ import annotations

import sys
from contextlib import closing

import click

from weightd.cli.daemon import connect
from weightd.cli.progress import emit
from weightd.cli.text import CHECKED, count
from weightd.client.types import CopyState, FileCheck
from weightd.core.budget import human
from weightd.core.errors import Corruption

WIDTH = 60


@click.command("verify", short_help="Check again what is at rest, and repair it.")
@click.argument("ref", default="")
@click.option("--quick", is_flag=True, help="Compare sizes only; read nothing.")
@click.option("--json", "as_json", is_flag=True, help="Objects of type check and verified, one on a line.")
@click.pass_obj
def command(socket: str | None, ref: str, quick: bool, as_json: bool) -> int:
    """Read every copy of REF, or of all models, on NVMe and in shared memory, and compare its SHA-256: of the current
    snapshot, and of old ones that are held.

    A damaged copy is repaired from the other one or from the origin. What cannot be repaired is not served any more: it
    is put into the quarantine directory below the state directory, and the exit code is 10.
    """
    show = not as_json and sys.stderr.isatty()
    current: dict[str, str] = {}
    checks: list[FileCheck] = []
    with connect(socket) as client:
        with closing(client.verify(ref, quick=quick, on_progress=_progress if show else None)) as found:
            for check in found:
                checks.append(check)
                if show:
                    click.echo("\r" + " " * WIDTH + "\r", nl=False, err=True)
                emit({"type": "check", **_fields(check)}) if as_json else click.echo(_line(check, current))
    return _conclude(checks, quick, as_json)


def _progress(done: int, total: int) -> None:
    text = f"reading {human(done)} of {human(total)}"
    click.echo("\r" + text.ljust(WIDTH)[:WIDTH], nl=False, err=True)


def _line(check: FileCheck, current: dict[str, str]) -> str:
    """`current`: the revision of each ref that came first, which is the current one."""
    old = f" (old snapshot {check.revision})" if current.setdefault(check.ref, check.revision) != check.revision else ""
    copies = ", ".join(f"{name} {s.name.lower()}" for name, s in _copies(check) if s is not CopyState.ABSENT)
    detail = f": {check.detail}" if check.detail else ""
    return f"{check.ref} {check.path}{old}  {human(check.size)}, {CHECKED[check.verification]}  {copies}{detail}"


def _copies(check: FileCheck) -> tuple[tuple[str, CopyState], ...]:
    return ("nvme", check.nvme), ("shm", check.shm)


def _fields(check: FileCheck) -> dict[str, object]:
    return {
        "ref": check.ref,
        "revision": check.revision,
        "path": check.path,
        "size": check.size,
        "digest": check.digest,
        "verification": check.verification.name.lower(),
        "nvme": check.nvme.name.lower(),
        "shm": check.shm.name.lower(),
        "detail": check.detail,
    }


def _conclude(checks: list[FileCheck], quick: bool, as_json: bool) -> int:
    lost = sum(CopyState.LOST in (c.nvme, c.shm) for c in checks)
    repaired = sum(CopyState.REPAIRED in (c.nvme, c.shm) for c in checks) - sum(
        {c.nvme, c.shm} >= {CopyState.LOST, CopyState.REPAIRED} for c in checks
    )
    sound = len(checks) - lost - repaired
    if as_json:
        emit({"type": "verified", "quick": quick, "sound": sound, "repaired": repaired, "lost": lost})
    else:
        how = "sizes compared" if quick else "every byte read"
        click.echo(f"{count(len(checks), 'file')}, {how}: {sound} sound, {repaired} repaired, {lost} lost")
    return Corruption.exit_code if lost else 0
