"""What `weightd fetch` and `weightd load` have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from weightd.cli.daemon import model_fields
from weightd.cli.progress import Reporter
from weightd.cli.text import CHECKED, count
from weightd.client.client import OnProgress
from weightd.client.types import ModelInfo
from weightd.core.budget import human
from weightd.core.refs import parse_ref


def bring(refs: Sequence[str], verb: Callable[[str, OnProgress], ModelInfo], report: Reporter) -> None:
    """Run `verb` for each ref in turn, and report it. The first that fails ends it."""
    for ref in refs:
        shown = parse_ref(ref).shown
        began = time.monotonic()
        model = verb(ref, partial(report.update, shown))
        took = time.monotonic() - began
        text = (
            f"{shown}: {count(len(model.files), 'file')}, {human(model.size)}, {CHECKED[model.verification]}, "
            f"in {took:.1f} s: {model.directory}"
        )
        report.result({"type": "model", **model_fields(model), "seconds": round(took, 3)}, text)
