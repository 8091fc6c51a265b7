"""Network namespaces of one run: made, used, and removed with all that is in them. Needs root."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.machine import Unable, need

PREFIX = "weightd-bench-"
NAMESPACES, FILES = Path("/run/netns"), Path("/etc/netns")
SETTINGS = {
    "net.ipv4.tcp_no_metrics_save": "1",  # No connection learns from those of the contender before.
    "net.ipv6.conf.all.disable_ipv6": "1",
}


@contextlib.contextmanager
def namespace(label: str, *, resolver: str = "") -> Iterator[str]:
    """A new namespace whose loopback is up; its name. `resolver` is the address of its DNS server. Raises Unable."""
    if os.geteuid() != 0:
        raise Unable("network namespaces need root: run this as root")
    sweep()
    name = f"{PREFIX}{os.getpid()}-{label}"
    try:
        _ip("netns", "add", name)
        if resolver:
            (FILES / name).mkdir(parents=True)
            (FILES / name / "resolv.conf").write_text(f"nameserver {resolver}\n")
        _ip("-n", name, "link", "set", "lo", "up")
        for key, value in SETTINGS.items():
            _run([*within(name), need("sysctl", "procps"), "-q", "-w", f"{key}={value}"])
        yield name
    finally:
        remove(name)


def within(name: str) -> Sequence[str]:
    """What comes before a command to run it there. It is replaced by the command: its pid is the command's."""
    return (need("ip", "iproute2"), "netns", "exec", name)


def remove(name: str) -> None:
    """Its devices go with it, once nothing runs there. Idempotent."""
    subprocess.run([need("ip", "iproute2"), "netns", "delete", name], capture_output=True)
    shutil.rmtree(FILES / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        FILES.rmdir()  # Empty it means nothing.


def sweep() -> None:
    """Remove what runs left that were killed."""
    for directory in (NAMESPACES, FILES):
        for path in directory.glob(f"{PREFIX}*"):
            owner = re.match(rf"{PREFIX}(\d+)-", path.name)
            if owner and not Path(f"/proc/{owner[1]}").exists():
                remove(path.name)


def _ip(*arguments: str) -> None:
    _run([need("ip", "iproute2"), *arguments])


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise Unable(f"{' '.join(command)}: {result.stderr.strip()}")
