"""On which NUMA nodes the pages of segments are: what the configuration says, checked against the nodes there are."""

from __future__ import annotations

import enum
import re
from collections.abc import Collection
from dataclasses import dataclass

from weightd.core.errors import ConfigError

_RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")
"""Linux knows at most 1,024 nodes (CONFIG_NODES_SHIFT)."""


class NumaMode(enum.Enum):
    INTERLEAVE = "interleave"
    """Page by page on each node in turn; where one is full, on the others."""
    BIND = "bind"
    """On these nodes only: full when they are."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Of every page of every segment. `nodes` in ascending order, at least one."""

    mode: NumaMode
    nodes: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.mode.value}:{','.join(map(str, self.nodes))}"


def parse_placement(text: str, there: Collection[int]) -> Placement | None:
    """From `interleave`, `interleave:all`, `interleave:0,2-3`, `bind:0,1`; None from "", which leaves it to the kernel:
    pages are then on the node of whoever touches them first. `there`: the nodes with memory.

    Raises ConfigError that names them.
    """
    if not text:
        return None
    name, separator, which = text.partition(":")
    try:
        mode = NumaMode(name)
        nodes = there if which == "all" or not separator else parse_nodes(which)
    except ValueError:
        raise _wrong(text, "is not understood", there) from None
    if mode is NumaMode.BIND and not separator:
        raise _wrong(text, "does not say to which nodes", there)
    if missing := sorted(set(nodes) - set(there)):
        raise _wrong(text, f"names {_named(missing)}, which this host has no memory on", there)
    if not nodes:
        raise _wrong(text, "is for hosts with NUMA nodes", there)
    return Placement(mode, tuple(sorted(set(nodes))))


def parse_nodes(text: str) -> list[int]:
    """From a list as the kernel writes it: "0-1,3"; [] from "". Raises ValueError."""
    nodes: list[int] = []
    for part in text.split(",") if text else []:
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ValueError(f"{text!r} is no list of nodes")
        nodes.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return nodes


def _wrong(text: str, why: str, there: Collection[int]) -> ConfigError:
    return ConfigError(
        f'shm.numa "{text}" {why}; this host has memory on {_named(sorted(there))}',
        remedy='Write "interleave", "interleave:0,1" or "bind:0", with nodes of this host, or leave it out.',
    )


def _named(nodes: list[int]) -> str:
    if not nodes:
        return "no NUMA node"
    return f"NUMA node{'s' if len(nodes) > 1 else ''} {', '.join(map(str, nodes))}"
