"""What the configuration says of NUMA nodes, checked against those that there are."""

from __future__ import annotations

import pytest

from weightd.core.errors import ConfigError
from weightd.core.numa import NumaMode, Placement, parse_nodes, parse_placement


@pytest.mark.parametrize(
    ("text", "mode", "nodes"),
    [
        ("interleave", NumaMode.INTERLEAVE, (0, 1, 4)),
        ("interleave:all", NumaMode.INTERLEAVE, (0, 1, 4)),
        ("interleave:4,0", NumaMode.INTERLEAVE, (0, 4)),
        ("interleave:0-1", NumaMode.INTERLEAVE, (0, 1)),
        ("bind:1", NumaMode.BIND, (1,)),
        ("bind:0-1,4,4", NumaMode.BIND, (0, 1, 4)),
        ("bind:all", NumaMode.BIND, (0, 1, 4)),
    ],
)
def test_is_read(text: str, mode: NumaMode, nodes: tuple[int, ...]) -> None:
    assert parse_placement(text, [4, 0, 1]) == Placement(mode, nodes)


def test_nothing_said_is_the_kernels_choice() -> None:
    assert parse_placement("", [0, 1]) is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("bind", "does not say to which nodes"),
        ("bind:", "is for hosts"),
        ("bind:2", "names NUMA node 2, which this host has no memory on; this host has memory on NUMA nodes 0, 1"),
        ("interleave:1-3", "names NUMA nodes 2, 3, which"),
        ("interleave:x", "is not understood"),
        ("interleave:0,", "is not understood"),
        ("interleave:-1", "is not understood"),
        ("interleave: 0", "is not understood"),
        ("bind:0-99999", "is not understood"),
        ("preferred:0", "is not understood"),
        ("all", "is not understood"),
        ("Interleave", "is not understood"),
    ],
)
def test_what_is_wrong_is_said_with_the_nodes_there_are(text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as e:
        parse_placement(text, [0, 1])
    assert f'"{text}"' in e.value.message
    assert "NUMA nodes 0, 1" in e.value.message
    assert "bind:0" in e.value.remedy


@pytest.mark.parametrize("text", ["interleave", "bind:all", "bind:0"])
def test_a_host_without_nodes(text: str) -> None:
    with pytest.raises(ConfigError, match="no NUMA node"):
        parse_placement(text, [])


@pytest.mark.parametrize("text", ["interleave:0", "bind:0,2-3"])
def test_is_shown_as_it_is_written(text: str) -> None:
    placement = parse_placement(text, range(4))
    assert placement == parse_placement(str(placement), range(4))


@pytest.mark.parametrize(
    ("text", "nodes"), [("", []), ("0", [0]), ("0-3", [0, 1, 2, 3]), ("0,2-3,7", [0, 2, 3, 7]), ("3-2", [])]
)
def test_lists_as_the_kernel_writes_them(text: str, nodes: list[int]) -> None:
    assert parse_nodes(text) == nodes
