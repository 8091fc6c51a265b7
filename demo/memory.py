"""What the kernel says about the memory of a process: /proc/<pid>/smaps and smaps_rollup (proc_pid_smaps(5)).

PSS, the proportional set size, counts a page that n processes map as 1/n of a page in each of them. So the PSS of all
who map a thing adds up to the memory that it really takes, however many they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_HEADER = re.compile(r"^[0-9a-f]+-[0-9a-f]+ (\S{4}) \S+ \S+ \d+\s*(.*)$")


class Mapping(NamedTuple):
    """One mapping of a process. `rights` as in smaps, for instance "r--s". Sizes in bytes."""

    rights: str
    path: str
    rss: int
    pss: int
    private_dirty: int


class Usage(NamedTuple):
    """A whole process, in bytes. `private` are anonymous pages and pages that it wrote and nobody shares."""

    pss: int
    private: int


def parse_smaps(lines: Iterable[str]) -> Iterator[Mapping]:
    """Every mapping in the text of smaps."""
    head: re.Match[str] | None = None
    fields: dict[str, int] = {}
    for line in lines:
        match = _HEADER.match(line)
        if match is None:
            name, _, value = line.partition(":")
            if value.endswith((" kB\n", " kB")):
                fields[name] = int(value.split()[0]) * 1024
            continue
        if head is not None:
            yield _mapping(head, fields)
        head, fields = match, {}
    if head is not None:
        yield _mapping(head, fields)


def _mapping(head: re.Match[str], fields: dict[str, int]) -> Mapping:
    path = head[2].removesuffix(" (deleted)")
    return Mapping(head[1], path, fields.get("Rss", 0), fields.get("Pss", 0), fields.get("Private_Dirty", 0))


def mappings(pid: int, prefix: str) -> list[Mapping]:
    """The mappings of `pid` of files whose path begins with `prefix`."""
    with Path(f"/proc/{pid}/smaps").open() as smaps:
        return [m for m in parse_smaps(smaps) if m.path.startswith(prefix)]


def usage(pid: int) -> Usage:
    """The whole of `pid`, all mappings."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        fields[name] = int(value.split()[0]) * 1024
    return Usage(fields["Pss"], fields["Private_Dirty"])
