"""The results as a picture: a column for each trace, hit rates above, waiting below."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.eviction.policies import BASE, BOUND, OURS
from benchmarks.eviction.report import Point, means
from benchmarks.machine import Unable

STYLES = {
    OURS: {"color": "#0072B2", "marker": "o", "linewidth": 2.4, "zorder": 5},
    BASE: {"color": "#000000", "marker": "s", "linewidth": 1.4},
    "LRFU": {"color": "#56B4E9", "marker": "D", "linewidth": 1.2},
    "LFU": {"color": "#E69F00", "marker": "^", "linewidth": 1.2},
    "GDSF": {"color": "#CC79A7", "marker": "v", "linewidth": 1.2},
    BOUND: {"color": "#777777", "marker": "", "linewidth": 1.6, "linestyle": (0, (4, 2))},
}
"""Colours of Okabe and Ito, which people with any colour vision tell apart; markers say the same in grey."""
ROWS = (("hit_rate", "hits"), ("byte_hit_rate", "bytes hit"), ("waited", "seconds waited\n÷ LRU's"))
MOST = 1.6
"""Of the lowest row: who waits longer leaves the picture."""
COLUMN, ROW = 2.0, 2.1
"""Inches."""


def check(path: Path) -> None:
    """Raises Unable without matplotlib, or a place for the picture: before the work, not after."""
    if not path.parent.is_dir():
        raise Unable(f"{path.parent} is no directory; make it first")
    if importlib.util.find_spec("matplotlib") is None:
        raise Unable("--plot needs matplotlib: pip install 'weightd[bench]'")


def draw(found: Sequence[Point], tier: str, path: Path) -> None:
    """Of one tier, the means over seeds. The suffix of `path` says the format."""
    import matplotlib

    matplotlib.use("agg")
    # The same numbers give the same file; text stays text, which is smaller and can be searched.
    matplotlib.rcParams.update({"svg.hashsalt": "weightd", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    cells = means([p for p in found if p.tier == tier])
    traces = list(dict.fromkeys(p.trace for p in cells.values()))
    size = (COLUMN * len(traces) + 1, ROW * len(ROWS) + 0.9)
    figure, axes = pyplot.subplots(len(ROWS), len(traces), figsize=size, sharex=True, sharey="row", squeeze=False)
    try:
        for column, trace in enumerate(traces):
            axes[0][column].set_title(trace)
            for row, (field, _) in enumerate(ROWS):
                _panel(axes[row][column], [p for p in cells.values() if p.trace == trace], field)
        for row, (_, label) in enumerate(ROWS):
            axes[row][0].set_ylabel(label)
        _around(figure, axes)
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    finally:
        pyplot.close(figure)
    if path.suffix == ".png":
        _shrink(path)


def _shrink(path: Path) -> None:
    """To a quarter of the bytes, by a palette: lines and letters need few colours."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def _panel(axis: Any, mine: Sequence[Point], field: str) -> None:
    for name, style in STYLES.items():
        line = sorted((p for p in mine if p.policy == name), key=lambda p: p.share)
        values = [getattr(p, field) for p in line]
        axis.plot([100 * p.share for p in line], values, label=name, markersize=3.5, **style)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    if field == "waited":
        axis.set_ylim(0.4, MOST)
    else:
        axis.set_ylim(0, 1)
        axis.yaxis.set_major_formatter("{x:.0%}")


def _around(figure: Any, axes: Any) -> None:
    for axis in axes[-1]:
        axis.set_xlim(5, 85)
        axis.set_xticks([10, 20, 40, 60, 80])
    figure.supxlabel("size of the tier, % of all bytes that the trace asks for", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
