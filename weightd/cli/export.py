"""`weightd fetch --to`: the engine in this process, without a daemon."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from weightd.cli.extra import need_daemon_extra
from weightd.cli.progress import Reporter
from weightd.cli.stop import Terminated
from weightd.cli.text import CHECKED, count
from weightd.core.budget import human
from weightd.core.digest import Digest
from weightd.core.errors import ManifestError
from weightd.core.refs import parse_ref

if TYPE_CHECKING:
    from weightd.engine.export import ExportedFile
    from weightd.sources.protocols import Source


def export(
    refs: tuple[str, ...], directory: Path, sha256: Digest | None, config: Path | None, report: Reporter
) -> None:
    """Fetch all into `directory`. Raises Terminated on SIGTERM and KeyboardInterrupt on Ctrl-C, after cleaning up."""
    need_daemon_extra("weightd fetch --to")
    import uvloop

    uvloop.run(_until_sigterm(refs, directory, sha256, config, report))


async def _until_sigterm(
    refs: tuple[str, ...], directory: Path, sha256: Digest | None, config: Path | None, report: Reporter
) -> None:
    loop = asyncio.get_running_loop()
    work = loop.create_task(_export(refs, directory, sha256, config, report))
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        work.cancel()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        await work
    except asyncio.CancelledError:
        if terminated:
            raise Terminated from None
        raise


async def _export(
    refs: tuple[str, ...], directory: Path, sha256: Digest | None, config_file: Path | None, report: Reporter
) -> None:
    from weightd.daemon.config import load_config
    from weightd.daemon.options import make_sources, transfer_options
    from weightd.engine.export import fetch_to

    config = load_config(config_file, env=os.environ, uid=os.geteuid())
    allowed = config.sources.allow_list(config.models)
    for ref in refs:
        allowed.check(parse_ref(ref))
    sources = make_sources(config)
    try:
        if len(refs) > 1:
            await _refuse_collisions(refs, sources)
        for ref in refs:
            shown = parse_ref(ref).shown
            began = time.monotonic()
            files = await fetch_to(
                ref,
                directory,
                sources=sources,
                sha256=sha256,
                options=transfer_options(config),
                on_progress=partial(report.update, shown),
            )
            _report(shown, directory, files, time.monotonic() - began, report)
    finally:
        await sources.close()


async def _refuse_collisions(refs: tuple[str, ...], sources: Source) -> None:
    """Before anything is written: two refs must not leave files of one name."""
    owners: dict[str, str] = {}
    for ref in refs:
        parsed = parse_ref(ref)
        for file in (await sources.resolve(parsed)).files:
            if file.path in owners:
                raise ManifestError(
                    f"{owners[file.path]} has a file of that name too",
                    ref=parsed.shown,
                    file=file.path,
                    remedy="Fetch them into two directories.",
                )
            owners[file.path] = parsed.shown


def _report(ref: str, directory: Path, files: list[ExportedFile], took: float, report: Reporter) -> None:
    size = sum(f.size for f in files)
    checked = min(f.verification for f in files)
    fields: dict[str, object] = {
        "type": "model",
        "ref": ref,
        "directory": str(directory.absolute()),
        "size": size,
        "verification": checked.name.lower(),
        "files": [
            {"path": f.path, "size": f.size, "digest": f.digest, "verification": f.verification.name.lower()}
            for f in files
        ],
        "seconds": round(took, 3),
    }
    text = f"{ref}: {count(len(files), 'file')}, {human(size)}, {CHECKED[checked]}, in {took:.1f} s: {directory}"
    repaired = sum(len(f.repaired) for f in files)
    if repaired:
        fields["repaired_parts"] = repaired
        text += f" ({count(repaired, 'part')} came wrong at first and were fetched again)"
    report.result(fields, text)
