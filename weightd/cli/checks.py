"""What `weightd doctor` looks at on the host. Each check tries the thing itself, and knows its own remedy."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import platform
import resource
import secrets
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

import msgspec

from weightd.core.budget import human
from weightd.core.errors import ConfigError
from weightd.sources.proxies import Proxies
from weightd.storage.direct import room_of
from weightd.storage.pages import huge_mode, mount_options

GIB: Final = 1 << 30
SHM: Final = Path("/dev/shm")
THP: Final = Path("/sys/kernel/mm/transparent_hugepage")
NETWORK: Final = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "gpfs", "glusterfs", "afs", "beegfs")
VOLATILE: Final = ("tmpfs", "ramfs")
HUGE_FIX: Final = (
    "Now: mount -o remount,huge=within_size /dev/shm. For good, in /etc/fstab: "
    "tmpfs /dev/shm tmpfs rw,nosuid,nodev,huge=within_size 0 0. Or where systemd runs weightd, in its unit: "
    "ExecStartPre=+/bin/mount -o remount,huge=within_size /dev/shm"
)
"""Of `SHM`."""


class Check(msgspec.Struct, frozen=True):
    """One result; `fix` is "" when there is nothing to mend."""

    name: str
    status: Literal["ok", "warning", "failed"]
    found: str
    fix: str = ""


def host_checks(state_dir: Path, segments: Path = SHM) -> Iterator[Check]:
    """All of them, in the order in which they are shown. `segments`: the directory that they are in. Never raises for
    what a host may lack."""
    yield shm_size(segments)
    yield shm_huge(segments)
    yield thp()
    yield from state_checks(state_dir)
    yield nofile()
    yield memlock()
    yield cores()
    yield sha256_speed()
    yield kernel(platform.release())
    yield python()
    yield from (library(name) for name in ("uvloop", "xxhash", "aiohttp", "grpcio"))


def shm_size(root: Path = SHM) -> Check:
    """Size and free space of shared memory."""
    try:
        free, total = room_of(root)
    except OSError as e:
        return Check("shm", "failed", f"{root}: {e.strerror}", f"Mount it: mount -t tmpfs tmpfs {root}.")
    found = f"{root}: {human(total)}, {human(free)} free"
    if not os.access(root, os.W_OK | os.X_OK):
        return Check("shm", "failed", f"{root} may not be written by this user", f"chmod 1777 {root}")
    fix = f"Enlarge it: mount -o remount,size=80% {root}; in a container --shm-size or an emptyDir of medium Memory."
    if free < 64 << 20:
        return Check("shm", "failed", found, f"Free space there. {fix}")
    return Check("shm", "warning", found, fix) if total < GIB else Check("shm", "ok", found)


def shm_huge(root: Path = SHM, mounts: str | None = None) -> Check:
    """The mount option `huge=`, which is worth a factor of two and more in fetching (DESIGN §4)."""
    fix = (
        HUGE_FIX if root == SHM else f"mount -o remount,huge=within_size {root}, and huge=within_size where it is made."
    )
    kind, _ = mount_options(root, mounts)
    if kind != "tmpfs":
        return Check("shm huge pages", "warning", f"{root} is {kind or 'not mounted'}, not tmpfs", fix)
    mode = huge_mode(root, mounts)
    if mode == "always":
        found = "huge=always: every segment ends in a whole huge page, which budgets do not count"
        return Check("shm huge pages", "warning", found, fix)
    if mode in ("within_size", "advise"):
        return Check("shm huge pages", "ok", f"huge={mode}")
    return Check("shm huge pages", "warning", f"huge={mode}: 4 KiB pages, so fetching and loading are slower", fix)


def thp(root: Path = THP) -> Check:
    """`shmem_enabled` has no say over mounts, except that "deny" turns their huge pages off."""
    try:
        mode = _chosen((root / "shmem_enabled").read_text())
    except OSError:
        fix = "Use a kernel with CONFIG_TRANSPARENT_HUGEPAGE."
        return Check("transparent huge pages", "warning", "the kernel has none", fix)
    if mode == "deny":
        return Check(
            "transparent huge pages", "warning", "shmem_enabled=deny", f"echo never > {root}/shmem_enabled as root"
        )
    return Check("transparent huge pages", "ok", f"shmem_enabled={mode}")


def _chosen(text: str) -> str:
    """From "always within_size [never] deny"."""
    return text.partition("[")[2].partition("]")[0] or text.strip()


def state_checks(state_dir: Path) -> Iterator[Check]:
    """Rights, file system and direct I/O of the state directory, or of where it would be made."""
    place = next(p for p in (state_dir.absolute(), *state_dir.absolute().parents) if p.exists())
    name = str(state_dir) if place == state_dir.absolute() else f"{state_dir} (to be made in {place})"
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Check(
            "state directory",
            "failed",
            f"{name} may not be written by this user",
            "Change its owner, or choose another with daemon.state_dir or --state-dir.",
        )
        return
    free, _ = room_of(place)
    small = free < GIB
    fix = "Free space there, or choose a larger disk with daemon.state_dir." if small else ""
    yield Check("state directory", "warning" if small else "ok", f"{name}: {human(free)} free", fix)
    yield file_system(place)
    yield direct_io(place)


def file_system(place: Path, mounts: str | None = None) -> Check:
    """Locks and rename must be sound, and the data must outlive a reboot."""
    kind, _ = mount_options(place.resolve(), mounts)
    fix = "Put daemon.state_dir on a local disk, best NVMe."
    if kind in NETWORK or kind.startswith("fuse"):
        found = f"{kind}: a network or FUSE file system, whose locks may not keep a second daemon out"
        return Check("state file system", "warning", found, fix)
    if kind in VOLATILE:
        return Check("state file system", "warning", f"{kind}: memory, counted twice and lost at a reboot", fix)
    if kind == "overlay":
        return Check("state file system", "warning", "overlay: slower, and lost with the container", fix)
    return Check("state file system", "ok", kind)


def direct_io(directory: Path) -> Check:
    """Really writes and reads back a block."""
    path = directory / f".weightd-doctor-{secrets.token_hex(6)}"
    fix = "Use a file system with O_DIRECT (ext4, xfs); without it the page cache holds a second copy of every blob."
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | os.O_DIRECT, 0o600)
    except OSError as e:
        # On EINVAL the kernel may have made the file before it refused the flag.
        path.unlink(missing_ok=True)
        status: Literal["warning", "failed"] = "warning" if e.errno == errno.EINVAL else "failed"
        return Check("direct I/O", status, f"cannot open with O_DIRECT: {e.strerror}", fix)
    try:
        return _try_block(fd, fix)
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)


def _try_block(fd: int, fix: str) -> Check:
    with mmap.mmap(-1, 4096) as out, mmap.mmap(-1, 4096) as back:
        out.write(secrets.token_bytes(4096))
        try:
            os.pwrite(fd, out, 0)
            os.preadv(fd, [back], 0)
        except OSError as e:
            return Check("direct I/O", "failed", f"a block cannot be written and read: {e.strerror}", fix)
        if out[:] != back[:]:
            return Check("direct I/O", "failed", "a block came back different", "Do not use this file system.")
    return Check("direct I/O", "ok", "a block was written and read past the page cache")


def nofile() -> Check:
    """The daemon raises its soft limit to the hard one; the hard one counts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = _limit(hard, str)
    if hard != resource.RLIM_INFINITY and hard < 8192:
        return Check("open files", "warning", shown, "ulimit -Hn 65536, or LimitNOFILE=65536 in the unit.")
    return Check("open files", "ok", shown)


def memlock() -> Check:
    """Matters to workers that pin memory for a GPU; weightd itself locks nothing."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    shown = _limit(hard, human)
    if hard != resource.RLIM_INFINITY and hard < 64 << 20:
        fix = "For workers that pin memory: ulimit -l unlimited, LimitMEMLOCK=infinity or --ulimit memlock=-1."
        return Check("locked memory", "warning", shown, fix)
    return Check("locked memory", "ok", shown)


def _limit(value: int, show: Callable[[int], str]) -> str:
    return "no limit" if value == resource.RLIM_INFINITY else f"at most {show(value)}"


def cores() -> Check:
    """Those that this process may use."""
    count = len(os.sched_getaffinity(0))
    if count < 2:
        return Check("cores", "warning", f"{count}", "Give weightd two cores or more: receiving and hashing share one.")
    return Check("cores", "ok", str(count))


def sha256_speed(seconds: float = 0.05) -> Check:
    """One core, OpenSSL, blocks of 1 MiB."""
    block, state, done = bytes(1 << 20), hashlib.sha256(), 0
    began = time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        state.update(block)
        done += len(block)
    speed = done / took / GIB
    if speed < 0.7:
        fix = "The processor or OpenSSL lacks SHA instructions: give more cores and raise fetch.hash_threads."
        return Check("SHA-256", "warning", f"{speed:.2f} GiB/s per core", fix)
    return Check("SHA-256", "ok", f"{speed:.2f} GiB/s per core")


def kernel(release: str) -> Check:
    """MADV_POPULATE_WRITE, needed under huge=advise, came with 5.14."""
    version = tuple(int(p) for p in release.split("-")[0].split(".")[:2] if p.isdigit())
    if version < (5, 14):
        return Check("kernel", "warning", release, "Use 5.14 or later; until then avoid huge=advise on /dev/shm.")
    return Check("kernel", "ok", release)


def proxy(proxies: Proxies) -> Check:
    """Which one a daemon with this configuration and environment uses; never its credentials."""
    try:
        return Check("proxy", "ok", ", ".join(proxies.shown()) or "none")
    except ConfigError as e:
        return Check("proxy", "failed", e.message, e.remedy)


def python() -> Check:
    """With its OpenSSL, which hashes."""
    import ssl

    return Check("python", "ok", f"{platform.python_version()}, {ssl.OPENSSL_VERSION}")


def library(name: str) -> Check:
    """Installed or not; imports nothing."""
    try:
        return Check(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(
            name, "warning", "not installed: the daemon needs it, clients do not", "pip install 'weightd[daemon]'"
        )
