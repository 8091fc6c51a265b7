"""Who asks: what a process says of itself, and what it must not say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.twins import TWINS
from tests.support.fake_engine import REF
from tests.support.serving import DaemonProcess
from weightd.client import holder

UID = "0a1b2c3d-1111-2222-3333-444455556666"


def test_this_process() -> None:
    me = holder.this_process()
    assert me is holder.this_process()
    assert me.pid == os.getpid()
    stat = Path("/proc/self/stat").read_text()
    assert str(me.started) == stat[stat.rindex(")") :].split()[20]
    assert Path(sys.executable).name[:6] == "python"
    assert me.command.startswith("python")
    # Beside other files of tests it runs in "python -c", of which the text is not told.
    assert "pytest" in me.command or (me.command == "python" and "PYTEST_XDIST_WORKER" in os.environ)
    assert me.cgroup == holder.cgroup_v2(Path("/proc/self/cgroup").read_text())
    assert (me.confirmed, me.uid) == (False, 0), "the daemon's to say"


def test_a_forked_child_is_another() -> None:
    parent = holder.this_process()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        child = holder.this_process()
        os.write(write, child.SerializeToString())
        os._exit(0)
    os.waitpid(pid, 0)
    child = type(parent).FromString(os.read(read, 65536))
    os.close(read)
    os.close(write)
    assert (child.pid, child.command) == (pid, parent.command)
    assert child.started >= parent.started
    assert holder.this_process() is parent


def test_the_start_of_a_process_with_any_name() -> None:
    fields = " ".join(str(n) for n in range(4, 53))
    for name in ("python3", "a b", ") R 1 2 3 (", "(((", ""):
        assert holder.start_time(f"7 ({name}) S {fields}\n") == 22
    for broken in ("", "7 (x)", "7 (x) S 1 2", "no parentheses"):
        assert holder.start_time(broken) == 0


@pytest.mark.parametrize(
    ("cmdline", "expected"),
    [
        ("/opt/engine/bin/serve\0--api-key\0sk-123\0", "/opt/engine/bin/serve"),
        ("/usr/bin/tool\0hf_secret\0https://user:pw@host/\0", "/usr/bin/tool"),
        ("VLLM::Worker_TP0\0\0\0", "VLLM::Worker_TP0"),
        ("my server --token=sk-123\0", "my"),
        ("", ""),
        ("\0\0", ""),
        ("/bin/x\ny\x1b[31m\0", "/bin/x"),
        ("/" + "x" * 500 + "\0", "/" + "x" * 199),
    ],
)
def test_a_command_without_arguments(cmdline: str, expected: str) -> None:
    assert holder.command(cmdline) == expected


def test_a_terminal_sees_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["a\x1b]0;title\x07b\u202e.py"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert holder.command("/usr/bin/python3\0-u\0a\0") == "python3 a?]0;title?b?.py"


SAYS = """
import sys
from weightd.client.holder import this_process
print(this_process().command)
"""
SECRETS = ["--token", "hf_SECRET", "--password=SECRET", "-pSECRET", "https://user:SECRET@host/m", "SECRET"]


def test_no_argument_of_a_command_line_leaves_the_process(tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text(SAYS)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text(SAYS)
    (tmp_path / "module.py").write_text(SAYS)
    python = Path(sys.executable).name
    cases = {
        (str(script),): f"{python} {script}",
        ("-X", "dev", "-W", "error", str(script)): f"{python} {script}",
        ("-m", "package"): f"{python} -m package",
        ("-m", "module"): f"{python} -m module",
        ("-c", SAYS + "# SECRET"): python,
    }
    for arguments, expected in cases.items():
        done = subprocess.run(
            [sys.executable, *arguments, *SECRETS], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected
        assert "SECRET" not in done.stdout


def test_a_spawned_worker_is_named_for_the_script_of_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        "import multiprocessing\n"
        "from weightd.client.holder import this_process\n"
        "def command():\n    return this_process().command\n"
        'if __name__ == "__main__":\n'
        '    with multiprocessing.get_context("spawn").Pool(1) as pool:\n'
        "        print(pool.apply(command))\n"
    )
    done = subprocess.run([sys.executable, script, "SECRET"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == f"{Path(sys.executable).name} {script}"


def test_the_unified_cgroup() -> None:
    assert holder.cgroup_v2("0::/system.slice/x.service\n") == "/system.slice/x.service"
    assert holder.cgroup_v2("12:cpu:/a\n1:name=systemd:/b\n0::/c:d\n") == "/c:d"
    assert holder.cgroup_v2("12:cpu:/a\n") == ""
    assert holder.cgroup_v2("") == ""


@pytest.mark.parametrize(
    ("env", "cgroup", "in_kubernetes", "expected"),
    [
        ({"POD_NAME": "w-0", "POD_NAMESPACE": "ml", "HOSTNAME": "h"}, "/kubepods/x", True, "ml/w-0"),
        ({"POD_NAME": "w-0"}, "", False, "w-0"),
        ({"POD_NAMESPACE": "ml"}, "", False, ""),
        ({}, f"/kubepods/burstable/pod{UID}/abc", True, UID),
        ({}, f"/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-1.scope", False, UID),
        ({}, f"/kubepods/pod{UID.replace('-', '')}/c", False, UID.replace("-", "")),
        ({}, "/machine.slice/libpod-0a1b2c3d111122223333444455556666aaaa.scope", False, ""),
        ({"HOSTNAME": "w-0"}, "/", True, "w-0"),
        ({"HOSTNAME": "w-0"}, "/", False, ""),
        ({}, "", True, ""),
    ],
)
def test_the_pod(env: dict[str, str], cgroup: str, in_kubernetes: bool, expected: str) -> None:
    assert holder.pod(env, cgroup, in_kubernetes) == expected


def test_where_proc_cannot_be_read_nothing_is_said(tmp_path: Path) -> None:
    me = holder._read(tmp_path / "no-proc", {})
    assert (me.pid, me.started, me.command, me.cgroup) == (os.getpid(), 0, "", "")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "cmdline").write_bytes(b"/bin/\xff\xfe\0")
    (tmp_path / "cgroup").write_bytes(b"0::/\xff\n")
    me = holder._read(tmp_path, {"POD_NAME": "\udcff", "POD_NAMESPACE": "n"})
    assert me.command == "/bin/��"
    assert me.SerializeToString()


async def test_the_daemon_learns_it_from_both_clients_and_confirms_it(process: DaemonProcess) -> None:
    for twin in TWINS:
        client = twin(process.socket)
        lease = await client.acquire(REF)
        (held,) = await client.leases()
        me = holder.this_process()
        assert (held.holder.pid, held.holder.started) == (os.getpid(), me.started)
        assert (held.holder.command, held.holder.cgroup, held.holder.pod) == (me.command, me.cgroup, me.pod)
        assert (held.holder.confirmed, held.holder.uid) == (True, os.getuid())
        lease.release()
        await client.close()
        assert [process.line(), process.line()] == ["demo 1", "demo 0"]
