"""`weightd inspect`"""

from __future__ import annotations

import sys

import click

from weightd.cli.daemon import connect
from weightd.cli.progress import LineReporter, Reporter, emit, reporter
from weightd.cli.stop import sigterm_raises
from weightd.cli.text import CHECKED, columns, count
from weightd.client.lease import Lease
from weightd.core.budget import human
from weightd.core.refs import parse_ref


@click.command("inspect", short_help="List the tensors of a model.")
@click.argument("ref")
@click.option("--json", "as_json", is_flag=True, help="One object.")
@click.pass_obj
def command(socket: str | None, ref: str, as_json: bool) -> None:
    """List the tensors of REF: name, dtype, shape, size and file.

    Acquires the model for as long as it takes, and brings it here first where need be.
    """
    shown = parse_ref(ref).shown
    with sigterm_raises(), connect(socket) as client, _progress() as report:
        with client.acquire(ref, on_progress=lambda p: report.update(shown, p)) as lease:
            fields, rows = _fields(lease), _rows(lease)
            summary = _summary(lease)
    if as_json:
        emit(fields)
        return
    click.echo(summary)
    if rows:
        click.echo()
        columns(("TENSOR", "DTYPE", "SHAPE", "SIZE", "FILE"), rows, right=(3,))


def _progress() -> Reporter:
    # On stdout there is one answer only, also with --json.
    return reporter(as_json=False) if sys.stderr.isatty() else LineReporter()


def _fields(lease: Lease) -> dict[str, object]:
    return {
        "type": "tensors",
        "ref": lease.ref,
        "revision": lease.revision,
        "format": lease.format,
        "directory": str(lease.path),
        "verification": lease.verification.name.lower(),
        "files": [
            {"path": f.path, "size": f.length, "digest": f.digest, "verification": f.verification.name.lower()}
            for f in lease.files.values()
        ],
        "tensors": [
            {
                "name": name,
                "dtype": t.info.dtype,
                "shape": list(t.info.shape),
                "size": t.info.length,
                "file": t.file.path,
                "offset": t.info.offset,
            }
            for name, t in lease.tensors().items()
        ],
    }


def _rows(lease: Lease) -> list[tuple[str, ...]]:
    return [
        (name, t.info.dtype, "×".join(map(str, t.info.shape)) or "scalar", human(t.info.length), t.file.path)
        for name, t in lease.tensors().items()
    ]


def _summary(lease: Lease) -> str:
    size = sum(f.length for f in lease.files.values())
    return (
        f"{lease.ref} ({lease.format}, revision {lease.revision}): {count(len(lease.tensors()), 'tensor')} in "
        f"{count(len(lease.files), 'file')}, {human(size)}, {CHECKED[lease.verification]}, in {lease.path}"
    )
