"""How steps are carried out, and what must be true of each answer: right bytes, or a typed error."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from soak.host import WEIGHTD, Host
from soak.journal import Journal, Violation
from soak.plan import Export, Fetch, Hold, Operate, Step, Verify
from soak.worker import digest as digest_of_view
from soak.world import World
from weightd.client.lease import Lease
from weightd.client.types import CopyState, FileCheck, ModelInfo
from weightd.core.digest import Digest
from weightd.core.errors import WeightdError, all_errors
from weightd.core.verification import Verification

LIMIT_S = 150.0
"""After which anything that was asked for counts as hung."""
EXIT_CODES = {cls.exit_code for cls in all_errors().values()} - {1}


class Cancelled(Exception):
    """By plan."""


@dataclass(frozen=True)
class Kit:
    """What every actor works with."""

    host: Host
    world: World
    journal: Journal
    stopping: threading.Event

    def check(self, key: str, path: str, digest: str, what: str) -> None:
        """Raises Violation for bytes that the origin never had, or that are not those that the configuration names."""
        if not self.world.is_honest(key, path, Digest(digest)):
            raise Violation(f"{what} of {key} {path} has {digest}, which the origin never served")


def outcome_of(error: BaseException) -> str:
    """Raises Violation for what a caller cannot act on."""
    if type(error) is WeightdError or not isinstance(error, WeightdError):
        raise Violation(f"not a typed error: {error!r}") from error
    if not error.message:
        raise Violation(f"an error without a message: {error!r}") from error
    return type(error).__name__


class hung:
    """Raises Violation when what is inside takes too long. It is told at the time, because it may never end."""

    def __init__(self, kit: Kit, what: str) -> None:
        self._timer = threading.Timer(LIMIT_S, lambda: kit.journal.violation("watch", f"hung: {what}"))
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def fetch(kit: Kit, step: Fetch) -> str:
    sha256 = _sha256(kit, step)
    if step.by_command:
        return _fetch_by_command(kit, step, sha256)
    until = None if step.cancel is None else time.monotonic() + step.cancel
    disturbed = kit.host.disturbed

    def progress(_: object) -> None:
        if kit.stopping.is_set() or (until is not None and time.monotonic() > until):
            raise Cancelled

    try:
        with kit.host.client() as client, hung(kit, str(step)):
            model = client.fetch(kit.world.ref(step.key), sha256 or None, step.tier, progress)  # type: ignore[arg-type]
    except Cancelled:
        return "cancelled"
    except WeightdError as e:
        return outcome_of(e)
    for file in model.files:
        kit.check(step.key, file.path, file.digest, "a fetched file")
        pinned = kit.world.files[kit.world.models[step.key].files[file.path]].pinned
        if (pinned or sha256) and file.verification is not Verification.SHA256:
            raise Violation(f"{step.key} {file.path} was given a digest, and is verified by {file.verification.name}")
    _read_directory(kit, step.key, model, disturbed)
    return "ok"


def _sha256(kit: Kit, step: Fetch) -> str:
    files = list(kit.world.models[step.key].files.values())
    if not step.sha256 or len(files) != 1:
        return ""
    return "ab" * 32 if step.sha256 == "wrong" else kit.world.current(files[0]).digest[7:]


def _fetch_by_command(kit: Kit, step: Fetch, sha256: str) -> str:
    command = ["--socket", str(kit.host.socket), "fetch", kit.world.ref(step.key), "--tier", step.tier, "--json"]
    if sha256:
        command += ["--sha256", sha256]
    code, output = _command(kit, command, step.cancel)
    if code == -signal.SIGKILL:
        return "killed"
    if code:
        return _of_exit(code, output)
    for line in output.splitlines():
        event = json.loads(line)
        for file in event.get("files", []) if event["type"] == "model" else []:
            kit.check(step.key, file["path"], file["digest"], "a file fetched by command")
    return "ok"


def _command(kit: Kit, args: list[str], kill: float | None) -> tuple[int, str]:
    """Exit code and output; killed after `kill` seconds."""
    process = subprocess.Popen([*WEIGHTD, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/")
    with hung(kit, " ".join(args)), killed_at(process, kill), stopped_with(kit, process):
        output, errors = process.communicate()
    if "Traceback" in errors:
        raise Violation(f"{args} printed a traceback: {errors[-2000:]}")
    return process.returncode, output


def _of_exit(code: int, output: str) -> str:
    """The class of the error that the command printed."""
    last = json.loads(output.splitlines()[-1]) if output.strip() else {}
    if code not in EXIT_CODES or last.get("type") != "error" or not last.get("message"):
        raise Violation(f"exit code {code} with {output[-500:]!r}")
    return str(last["kind"])


@contextlib.contextmanager
def killed_at(process: subprocess.Popen[Any], seconds: float | None) -> Iterator[None]:
    """By SIGKILL, unless it ends before."""
    timer = threading.Timer(seconds or 0, process.kill)
    if seconds is not None:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if seconds is not None:
            timer.join()


@contextlib.contextmanager
def stopped_with(kit: Kit, process: subprocess.Popen[Any]) -> Iterator[None]:
    """A process that is of no more use when the soak ends."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            if kit.stopping.is_set():
                process.kill()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _read_directory(kit: Kit, key: str, model: ModelInfo, disturbed: int) -> None:
    """As an unmodified program does it."""
    with contextlib.suppress(LookupError), kit.host.reading(disturbed, partial(_held, kit, model)):
        for file in model.files:
            digest, size = digest_of_file(Path(model.directory) / file.path)
            kit.check(key, file.path, digest, "a file in the model's directory")
            if digest != file.digest:
                raise Violation(f"{key} {file.path} in its directory has {digest}, not the answered {file.digest}")
            kit.journal.saw(size)


def _held(kit: Kit, model: ModelInfo) -> bool:
    """Whether this snapshot still is: what nobody leases may have made room."""
    try:
        with kit.host.client() as client:
            return client.model(model.ref, model.revision) is not None
    except WeightdError as e:
        outcome_of(e)
        return False


def digest_of_file(path: Path) -> tuple[str, int]:
    """With its size."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}", file.tell()


def hold(kit: Kit, step: Hold) -> str:
    refs = [kit.world.ref(key) for key in step.keys]
    options = [str(kit.host.socket), str(step.seconds), str(int(step.clings))]
    command = [sys.executable, "-m", "soak.worker", *options, *refs]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kill = step.at if step.signal == "kill" else None
    with hung(kit, str(step)), killed_at(process, kill), stopped_with(kit, process), _frozen(kit, process, step):
        output, errors = process.communicate()
    outcome = "ok"
    for line in output.splitlines():
        outcome = _look(kit, _object(line, process.returncode), outcome)
    if process.returncode == -signal.SIGKILL and (kill is not None or kit.stopping.is_set()):
        return "killed"
    if process.returncode:
        raise Violation(f"a worker ended with {process.returncode}: {errors[-2000:]}")
    return outcome


def check_lease(kit: Kit, key: str, lease: Lease) -> None:
    """In this process."""
    for path, file in lease.files.items():
        found = digest_of_view(file.buffer)
        kit.check(key, path, found, "a mapped file")
        if found != file.digest:
            raise Violation(f"{key} {path} is mapped as {found}, its handle promised {file.digest}")
        kit.journal.saw(file.length)


def _object(line: str, code: int) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        if code == -signal.SIGKILL:  # in the middle of a line
            return {"what": "cut"}
        raise
    return found


def _look(kit: Kit, event: dict[str, Any], outcome: str) -> str:
    match event["what"]:
        case "file":
            kit.check(kit.world.key_of(event["ref"]), event["path"], event["digest"], "a mapped file")
            if event["digest"] != event["promised"]:
                raise Violation(f"a mapped file is not what its handle promised: {event}")
            kit.journal.saw(event["size"])
        case "changed":
            raise Violation(f"a mapping changed: {event}")
        case "error":
            cls = all_errors().get(event["kind"], WeightdError)
            return outcome_of(cls(event["text"]))
        case "done":
            kit.journal.saw(event["size"])
    return outcome


@contextlib.contextmanager
def _frozen(kit: Kit, process: subprocess.Popen[Any], step: Hold) -> Iterator[None]:
    """SIGSTOP and SIGCONT at their times. Its leases must stay while it stands still."""
    if step.signal != "stop":
        yield
        return
    over = threading.Event()

    def body() -> None:
        if over.wait(step.at):
            return
        process.send_signal(signal.SIGSTOP)
        over.wait(step.stopped)
        process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def export(kit: Kit, step: Export) -> str:
    """However often it is killed: nothing wrong is ever in the directory, and at the end all of it or nothing."""
    directory = kit.host.home / "exports" / str(time.monotonic_ns())
    command = ["fetch", kit.world.ref(step.key), "--to", str(directory), "--config", str(kit.host.config), "--json"]
    try:
        outcome = "ok"
        for kill in (*step.kills, None):
            code, output = _command(kit, command, kill)
            if code == -signal.SIGKILL:
                _check_exported(kit, step.key, directory, whole=False)
                if kit.stopping.is_set():
                    return "killed"
                continue
            _check_exported(kit, step.key, directory, whole=code == 0)
            outcome = "ok" if code == 0 else _of_exit(code, output)
        return outcome
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _check_exported(kit: Kit, key: str, directory: Path, *, whole: bool) -> None:
    found = {p.name for p in directory.iterdir()} if directory.is_dir() else set()
    visible = {n for n in found if not n.startswith(".weightd-")}
    for name in visible:
        digest, size = digest_of_file(directory / name)
        kit.check(key, name, digest, "an exported file")
        kit.journal.saw(size)
    if whole and found != set(kit.world.models[key].files) and not _optional(kit, key, found):
        raise Violation(f"the export of {key} left {sorted(found)}")


def _optional(kit: Kit, key: str, found: set[str]) -> bool:
    """A directory that cannot be listed is what its origin shows: siblings may be refused, an index too."""
    files = set(kit.world.models[key].files)
    return not kit.world.models[key].named and found <= files and bool(found)


def operate(kit: Kit, step: Operate) -> str:
    """As an operator does. What is leased or pinned is refused, and stays."""
    try:
        with kit.host.client() as client, hung(kit, str(step)):
            getattr(client, step.verb)(kit.world.ref(step.key))
    except WeightdError as e:
        return f"{step.verb}: {outcome_of(e)}"
    return step.verb


def verify(kit: Kit, step: Verify) -> str:
    ref = kit.world.ref(step.key) if step.key else ""
    if step.by_command:
        options = ["--quick"] if step.quick else []
        command = ["--socket", str(kit.host.socket), "verify", *([ref] if ref else []), *options, "--json"]
        code, output = _command(kit, command, step.cancel)
        if code == 10 and '"verified"' in output:
            return "lost"
        return "killed" if code == -signal.SIGKILL else _of_exit(code, output) if code else "ok"
    until = None if step.cancel is None else time.monotonic() + step.cancel
    before, damaged = kit.host.disturbed, kit.host.damaged or kit.host.lost
    try:
        checks = checked(kit, ref, step.quick, until)
    except Cancelled:
        return "cancelled"
    except WeightdError as e:
        return outcome_of(e)
    bad = [c for c in checks if {c.nvme, c.shm} & {CopyState.LOST, CopyState.REPAIRED}]
    if bad and kit.host.disturbed == before and not damaged:
        raise Violation(f"damage that nobody did: {bad[0]}")
    return "damaged" if bad else "ok"


def checked(kit: Kit, ref: str, quick: bool, until: float | None) -> list[FileCheck]:
    """What a verification says of each file. Raises Cancelled."""

    def progress(*_: object) -> None:
        if kit.stopping.is_set() or (until is not None and time.monotonic() > until):
            raise Cancelled

    with kit.host.client() as client, hung(kit, f"verify {ref}"):
        with contextlib.closing(client.verify(ref, quick=quick, on_progress=progress)) as found:
            return list(found)


DO: dict[type[Step], Callable[[Kit, Any], str]] = {
    Fetch: fetch,
    Hold: hold,
    Export: export,
    Verify: verify,
    Operate: operate,
}
