"""Who asks, for the operators of a host: this process, as it knows itself.

Read once for each process, when it first acquires; files of /proc, which wait for no disk.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from weightd.wire.gen import weightd_pb2 as pb

LONGEST_COMMAND: Final = 200
LONGEST_PATH: Final = 1000
"""Characters."""
IN_KUBERNETES: Final = Path("/var/run/secrets/kubernetes.io")
"""Mounted into every pod that has a service account."""
_POD: Final = re.compile(r"pod([0-9a-f]{8}[-_]?(?:[0-9a-f]{4}[-_]?){3}[0-9a-f]{12})(?![0-9a-f])")
"""In the path of a pod's cgroup; the systemd driver has "_" for "-", a static pod's UID has neither."""

_known: pb.Holder | None = None


def this_process() -> pb.Holder:
    """Not to be changed: the same one each time, but anew in a forked child."""
    global _known
    if _known is None:
        _known = _read(Path("/proc/self"), os.environ)
    return _known


def _forget() -> None:
    global _known
    _known = None


os.register_at_fork(after_in_child=_forget)


def _read(process: Path, env: Mapping[str, str]) -> pb.Holder:
    cgroup = cgroup_v2(_text(process / "cgroup"))
    return pb.Holder(
        pid=os.getpid(),
        started=start_time(_text(process / "stat")),
        command=command(_text(process / "cmdline")),
        cgroup=_shown(cgroup, LONGEST_PATH),
        pod=_shown(pod(env, cgroup, IN_KUBERNETES.exists()), LONGEST_PATH),
    )


def _text(path: Path) -> str:
    """Empty where it cannot be read (hidepid=, another /proc)."""
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def start_time(stat: str) -> int:
    """Field 22 of proc_pid_stat(5): clock ticks after boot. 0 when it is not there. The second field, a name in
    parentheses, may hold anything."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[19].isdecimal() else 0


def command(cmdline: str) -> str:
    """The program, and of Python the script or module that it runs; never an argument, as that may be a secret.

    `cmdline` as proc_pid_cmdline(5) has it. A process may have put a title there, of which the first word is shown.
    """
    program = (cmdline.partition("\0")[0].split() or [""])[0]
    if os.path.basename(program).startswith("python"):
        program = f"{os.path.basename(program)} {_script()}".rstrip()
    return _shown(program, LONGEST_COMMAND)


def _script() -> str:
    """As `python -m` was given it, or the path of a file; of a process that multiprocessing spawned, its parent's."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return f"-m {spec.name.removesuffix('.__main__')}"
    script = sys.argv[0] if getattr(sys, "argv", None) else ""
    return script if script not in ("-c", "-m") else ""


def cgroup_v2(cgroup: str) -> str:
    """The path in the unified hierarchy, see cgroups(7); empty where there is none."""
    return next((line[3:] for line in cgroup.splitlines() if line.startswith("0::")), "")


def pod(env: Mapping[str, str], cgroup: str, in_kubernetes: bool) -> str:
    """namespace/name, or the name, where the pod's specification puts them in the environment (the downward API); else
    the UID that the cgroup is named for; else the host name, which is the pod's name unless it has the host's network.
    """
    name = env.get("POD_NAME", "")
    if name:
        return "/".join(filter(None, (env.get("POD_NAMESPACE", ""), name)))
    uid = _POD.search(cgroup) if "kubepods" in cgroup else None
    if uid is not None:
        return uid[1].replace("_", "-")
    return env.get("HOSTNAME", "") if in_kubernetes else ""


def _shown(text: str, longest: int) -> str:
    """Such as protobuf and a terminal take."""
    return "".join(c if c.isprintable() else "?" for c in text[:longest])
