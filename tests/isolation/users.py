"""Other users of this host, without accounts: ids are enough for the kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[2]
FIRST = 61_000
"""Ids from here on; below those that systemd gives to dynamic users, 61184 (systemd's uids-gids.md)."""


class User(NamedTuple):
    """`groups` beside `gid`. `capabilities`: those that it has, None for all of root's."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    capabilities: str | None = ""

    @property
    def setpriv(self) -> list[str]:
        """Goes before a command."""
        if self.capabilities is None:
            return []
        groups = f"--groups={','.join(map(str, self.groups))}" if self.groups else "--clear-groups"
        bounds = [f"--bounding-set=-all,{self.capabilities}"] if self.capabilities else []
        return ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", groups, *bounds]


ROOT = User(0, 0, capabilities=None)
CONTAINER_ROOT = User(0, 0, capabilities="+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+mknod")
"""Root with what container runtimes leave it of files (the OCI default set), in no user namespace."""
READ_ONLY_SHM = "mount --bind /dev/shm /dev/shm && mount -o remount,bind,ro /dev/shm"
"""As a volume that is mounted read-only into a container."""
DAEMON = User(FIRST + 1, FIRST + 1)
"""Runs what is tested; its group may read segments."""
MEMBER = User(FIRST + 2, FIRST + 2, (DAEMON.gid,))
OUTSIDER = User(FIRST + 3, FIRST + 3)
TENANT_A = User(FIRST + 4, FIRST + 4, (FIRST + 14,))
TENANT_B = User(FIRST + 5, FIRST + 5, (FIRST + 15,))
LANDLORD = DAEMON._replace(groups=(*TENANT_A.groups, *TENANT_B.groups))
"""Runs a daemon that gives sockets to the tenants' groups."""

WHY_NOT = (
    "becomes other users, which needs root, setpriv and unshare"
    if os.geteuid() != 0
    or not all(map(shutil.which, ("setpriv", "unshare")))
    or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode
    else ""
)
"""The printed reason of the tests that cannot run here; else empty."""


class Become:
    """Runs commands as other users, who can start this Python wherever it is installed.

    Where it lies below a directory that is closed to them (/root/.pyenv), they get a mount namespace in which that
    directory holds nothing else, and is open. /dev/shm and /tmp are the host's.
    """

    def __init__(self, scratch: Path) -> None:
        needed = {Path(p).resolve() for p in (sys.base_prefix, sys.prefix, PACKAGE)}
        self._hidden = {p: closed for p in sorted(needed) if (closed := _closed(p)) is not None}
        self._scratch = scratch

    def prefix(self, user: User, *mounts: str) -> list[str]:
        """Goes before a command. `mounts` are shell commands that run as root before."""
        script = "\n".join(["set -e", *self._opened(), *mounts, 'exec "$@"'])
        return ["unshare", "-m", "sh", "-c", script, "sh", *user.setpriv]

    def _opened(self) -> Iterator[str]:
        places = {path: self._scratch / f"bind{i}" for i, path in enumerate(self._hidden)}
        for path, place in places.items():
            yield f"mkdir -p {place} && mount --bind {path} {place}"
        for closed in sorted(set(self._hidden.values())):
            yield f"mount -t tmpfs -o mode=0755 none {closed}"
        for path, place in places.items():
            yield f"mkdir -p {path} && mount --bind {place} {path}"

    def start(self, user: User, *command: str | Path, mounts: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Our Python with these arguments, its standard streams pipes."""
        return subprocess.Popen(
            [*self.prefix(user, *mounts), sys.executable, *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env=environment(),
        )

    def run(self, user: User, *command: str | Path, mounts: Sequence[str] = (), stdin: str = "") -> str:
        """As `start`, to its end; what it printed."""
        with self.start(user, *command, mounts=mounts) as process:
            out, err = process.communicate(stdin, timeout=60)
        assert process.returncode == 0, err
        return out


def environment() -> dict[str, str]:
    """Ours, without what would change weightd's configuration, and with this very package."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WEIGHTD_", "XDG_"))}
    return {**kept, "PYTHONPATH": str(PACKAGE), "PYTHONDONTWRITEBYTECODE": "1"}


def _closed(path: Path) -> Path | None:
    """The outermost directory above it that others cannot pass."""
    return next((p for p in reversed((path, *path.parents)) if not p.stat().st_mode & 0o001), None)


@contextmanager
def becoming() -> Iterator[Become]:
    """With an empty directory at its end."""
    scratch = Path(tempfile.mkdtemp(prefix="weightd-isolation-"))
    scratch.chmod(0o755)
    try:
        yield Become(scratch)
    finally:
        shutil.rmtree(scratch)
