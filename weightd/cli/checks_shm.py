"""What `weightd doctor` looks at in shared memory beside its size: what takes segments away, or left some behind."""

from __future__ import annotations

import configparser
import os
import pwd
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from weightd.cli.checks import SHM, Check
from weightd.core.budget import human
from weightd.core.errors import AccessDenied
from weightd.storage.nodes import memory_nodes, room_on
from weightd.storage.owners import segment_owner
from weightd.storage.pages import mount_options
from weightd.storage.tmpfs import BLOCK
from weightd.storage.tmpfs_store import NAMED, PREFIX

LINGER: Final = Path("/var/lib/systemd/linger")
LAST_SYSTEM_USER: Final = 999
"""As systemd is built, unless told otherwise (systemd's docs/UIDS-GIDS.md)."""
OWN_MOUNT: Final = (
    "Give weightd a tmpfs of its own: systemd/run-weightd-shm.mount, or mount -t tmpfs -o "
    "size=80%,huge=within_size,noswap,mode=0750,uid=weightd,gid=weightd tmpfs /run/weightd/shm, and name it as "
    "shm.directory"
)


def shm_checks(state_dir: Path, directory: Path = SHM) -> Iterator[Check]:
    """`directory`: where segments are."""
    yield noswap(directory, release=os.uname().release)
    yield remove_ipc(daemon_user(state_dir), directory)
    yield numa()
    yield leftovers(state_dir, directory)


def noswap(
    directory: Path = SHM, mounts: str | None = None, swaps: Path = Path("/proc/swaps"), *, release: str = "6.4"
) -> Check:
    """Pages of a tmpfs that were swapped out come back one by one, while a worker waits. tmpfs(5): `noswap` is of Linux
    6.4, and a remount does not set it."""
    try:
        areas = [line.split()[0] for line in swaps.read_text().splitlines()[1:]]
    except OSError:
        areas = []
    if not areas:
        return Check("swap", "ok", "none")
    if "noswap" in mount_options(directory, mounts)[1]:
        return Check("swap", "ok", f"{', '.join(areas)}; not for {directory}, which is mounted noswap")
    found = f"{', '.join(areas)}: segments in {directory} may be swapped out, and workers wait for them"
    if _version(release) < (6, 4):
        return Check("swap", "warning", found, "swapoff -a, or a kernel of 6.4 or later and the mount option noswap.")
    return Check("swap", "warning", found, f"A remount cannot forbid it. {OWN_MOUNT}. Or: swapoff -a.")


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(p) for p in re.findall(r"\d+", release)[:2])


def daemon_user(state_dir: Path) -> int:
    """The user that the daemon runs as: whoever owns its state, else this one."""
    try:
        return state_dir.stat().st_uid
    except OSError:
        return os.geteuid()


def remove_ipc(uid: int, directory: Path = SHM, root: Path = Path("/")) -> Check:
    """logind.conf(5): when the last session of a user ends, everything of the user in /dev/shm is removed, but of users
    of the system."""
    name = "RemoveIPC"
    if directory != SHM:
        return Check(name, "ok", f"{directory} is not cleaned by logind")
    if uid <= LAST_SYSTEM_USER:
        return Check(name, "ok", f"user {uid} is one of the system, whose segments logind keeps")
    if not (root / "run/systemd/seats").exists():
        return Check(name, "ok", "no logind runs here")
    if not _removes_ipc(root):
        return Check(name, "ok", "no: logind keeps segments")
    user = _login(uid)
    if (root / LINGER.relative_to("/") / user).exists():
        return Check(name, "ok", f"yes, but user {user} lingers")
    return Check(
        name,
        "warning",
        f"yes: when user {user} logs out, logind removes all of its segments",
        f"RemoveIPC=no in /etc/systemd/logind.conf, or loginctl enable-linger {user}, or a user below "
        f"{LAST_SYSTEM_USER + 1} for weightd, or shm.directory on another tmpfs than /dev/shm.",
    )


def _removes_ipc(root: Path) -> bool:
    """The last word of logind's files: the main one of the first place that has one, then the drop-ins by name."""
    places = [root / p for p in ("etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd")]
    main = [p / "logind.conf" for p in places if (p / "logind.conf").is_file()][:1]
    drop_ins = {f.name: f for p in reversed(places) for f in (p / "logind.conf.d").glob("*.conf")}
    said = "yes"
    for file in [*main, *(drop_ins[name] for name in sorted(drop_ins))]:
        parser = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
        try:
            parser.read_string(file.read_text())
        except (OSError, UnicodeDecodeError, configparser.Error):
            continue
        said = parser.get("Login", "RemoveIPC", fallback=said) or "yes"
    return said.strip().lower() in ("1", "yes", "y", "true", "t", "on")


def _login(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def numa() -> Check:
    """The nodes that this process may have memory of."""
    there = memory_nodes()
    if not there:
        return Check("NUMA nodes", "ok", "the kernel knows none")
    return Check("NUMA nodes", "ok", ", ".join(f"{n} ({human(room_on([n])[1])})" for n in there))


def leftovers(state_dir: Path, directory: Path = SHM) -> Check:
    """Segments, by the state directories of their daemons, of which a name tells only a hash."""
    sizes = _sizes(directory)
    ours = segment_owner(state_dir)
    own, whose, idle = sizes.pop(ours, []), *_whose(state_dir)
    said = [f"{_amount(own)} of {whose}"] if own else []
    if others := list(sizes.values()):
        which = "another state directory" if len(others) == 1 else f"{len(others)} other state directories"
        said.append(f"{_amount([size for found in others for size in found])} of {which}")
    found = "; ".join(said) or "none"
    if own and idle:
        fix = f"Start weightd, which takes them over. Or, if it shall not run: rm {directory}/{PREFIX}-{ours}-*"
        return Check("segments", "warning", found, fix)
    return Check("segments", "ok", found)


def _whose(state_dir: Path) -> tuple[str, bool]:
    """What to call the daemon of a state directory, and whether nobody is seen to be it."""
    from weightd.daemon.lock import holder

    try:
        pid = holder(state_dir)
    except AccessDenied:
        return "this state directory, whose lock this user may not read", False
    return (f"process {pid}", False) if pid else ("a daemon that is not seen to run", True)


def _sizes(directory: Path) -> dict[str, list[int]]:
    """Bytes of each segment, by the owner in its name."""
    sizes: defaultdict[str, list[int]] = defaultdict(list)
    try:
        for entry in os.scandir(directory):
            if match := NAMED.match(entry.name):
                sizes[match[1]].append(entry.stat(follow_symlinks=False).st_blocks * BLOCK)
    except OSError:  # It is not there, or what was there has gone meanwhile: enough was seen.
        pass
    return sizes


def _amount(sizes: list[int]) -> str:
    return f"{len(sizes)} segment{'s' if len(sizes) > 1 else ''}, {human(sum(sizes))}"
