"""What is done to the daemon, to its disk, to its shared memory and to its origin."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soak.actors import DO, Cancelled, Kit, check_lease, checked, digest_of_file, hung, outcome_of
from soak.audit import check_after_start
from soak.host import SHM
from soak.journal import Violation
from soak.origin import SoakOrigin
from soak.plan import Break, Change, Chase, Damage, Fill, Kill, Rest, Step
from soak.worker import WAIT_S
from weightd.client.types import CopyState
from weightd.core.errors import Unavailable, WeightdError

VERIFY_S = 60.0
"""For how long a verification after damage is tried again while the daemon goes and comes."""


SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}


def kill(kit: Kit, step: Kill) -> str:
    host = kit.host
    with host.turn:
        host.end(SIGNALS[step.how])
        if step.wipe:
            host.wipe()
            host.damaged = host.lost = False
        elif step.ledger:
            _damage_ingest(kit, step.ledger)
        host.start()
        check_after_start(kit)
        host.admit()
    return step.how + (" and empty" if step.wipe else "")


def _damage_ingest(kit: Kit, how: str) -> None:
    """What a disk or a crash may do to what waits to be resumed."""
    name = "data" if how == "data" else "ledger"
    for path in sorted((kit.host.state / "ingest").glob(f"*/{name}"))[:1]:
        size = path.stat().st_size
        if how == "cut":
            os.truncate(path, size // 2)
        else:
            with path.open("r+b") as file:
                file.seek(size // 2)
                old = file.read(16)
                file.seek(size // 2)
                file.write(bytes(16) if how == "zero" else bytes(b ^ 0x21 for b in old))
        kit.journal.count(f"ingests damaged ({how})")


def damage(kit: Kit, step: Damage) -> str:
    """One blob at rest, and then a verification of everything, after which each blob is what its name says."""
    host = kit.host
    with host.at_rest:
        held = _held(kit)
        blobs = [b for b in host.blobs() if f"sha256:{b.name}" in held and b.stat().st_size]
        if not blobs:
            return "nothing there"
        host.disturbed += 1
        host.damaged = True
        kit.journal.count("blobs damaged")
        try:
            blob = blobs[int(step.pick * len(blobs))]
            _damage_blob(blob, step)
            if step.acquire:
                _acquire(kit, f"sha256:{blob.name}")
            kit.stopping.wait(step.wait)
        except FileNotFoundError:
            return "gone meanwhile"
        finally:
            outcome = _verify_all(kit)
            host.disturbed += 1
    return outcome


def _acquire(kit: Kit, digest: str) -> None:
    """The models that have it."""
    try:
        with kit.host.client() as client, hung(kit, f"acquire {digest}"):
            for model in client.models():
                if digest in {f.digest for f in model.files}:
                    with client.acquire(model.ref, timeout=WAIT_S) as lease:
                        check_lease(kit, kit.world.key_of(model.ref), lease)
    except WeightdError as e:
        kit.journal.note("damage", f"acquire -> {outcome_of(e)}")


def _held(kit: Kit) -> set[str]:
    """Digests of the models' files; blobs that no model has any more are verified by nobody."""
    try:
        with kit.host.client() as client:
            return {f.digest for m in client.models() for f in m.files}
    except WeightdError as e:
        outcome_of(e)
        return set()


def _damage_blob(path: Path, step: Damage) -> None:
    if step.how == "remove":
        path.unlink()
        return
    path.chmod(0o600)
    size = path.stat().st_size
    with path.open("r+b") as file:
        at = int(step.where * size)
        if step.how == "cut":
            file.truncate(at)
        elif step.how == "longer":
            file.seek(0, os.SEEK_END)
            file.write(b"x" * 5000)
        else:
            file.seek(at)
            old = file.read(64)
            file.seek(at)
            file.write(bytes(len(old)) if step.how == "zero" else bytes(b ^ 4 for b in old))
    path.chmod(0o440)


def _verify_all(kit: Kit) -> str:
    end = time.monotonic() + VERIFY_S
    while not kit.stopping.is_set():
        started = kit.host.started
        try:
            checks = checked(kit, "", False, None)
        except Cancelled:
            break
        except WeightdError as e:
            if not isinstance(e, Unavailable) or time.monotonic() > end:
                return outcome_of(e)
            kit.stopping.wait(0.5)
            continue
        if started != kit.host.started:
            continue
        _check_at_rest(kit)
        kit.host.damaged = False
        kit.host.lost = kit.host.lost or any(CopyState.LOST in (c.nvme, c.shm) for c in checks)
        states = {s.name for c in checks for s in (c.nvme, c.shm)}
        return "repaired" if "REPAIRED" in states else "lost" if "LOST" in states else "not in use"
    return "cancelled"


def _check_at_rest(kit: Kit) -> None:
    started, held = kit.host.started, _held(kit)
    for blob in kit.host.blobs():
        try:
            digest, size = digest_of_file(blob)
        except FileNotFoundError:
            continue
        if digest != f"sha256:{blob.name}" and f"sha256:{blob.name}" in held and started == kit.host.started:
            raise Violation(f"after a verification {blob} is {digest}")
        kit.journal.saw(size)


def fill(kit: Kit, step: Fill) -> str:
    """Somebody else takes the room."""
    if not kit.host.private:
        return "not ours to fill"
    path = SHM / "somebody-elses"
    try:
        with path.open("wb") as file:
            status = os.statvfs(SHM)
            wanted = int(status.f_bavail * status.f_frsize * (1 - step.leave))
            try:
                os.posix_fallocate(file.fileno(), 0, max(4096, wanted))
            except OSError as e:
                if e.errno != errno.ENOSPC:
                    raise
            kit.stopping.wait(step.seconds)
    finally:
        path.unlink(missing_ok=True)
    return "ok"


def rest(kit: Kit, step: Rest) -> str:
    return "rest"


def tampering(origin: SoakOrigin) -> dict[type[Step], Callable[[Kit, Any], str]]:
    """What is done to the origin."""

    def change(kit: Kit, step: Change) -> str:
        kit.journal.note("origin", origin.change(step.name, step.factor))
        return "change"

    def chase(kit: Kit, step: Chase) -> str:
        found = origin.chase(step.seconds)
        kit.journal.note("origin", found or "nothing is fetched")
        return "change in mid-fetch" if found else "nothing to change"

    def break_(kit: Kit, step: Break) -> str:
        origin.break_(step.name, step.fault, step.times)
        return step.fault

    return {Change: change, Chase: chase, Break: break_}


def everything(origin: SoakOrigin) -> dict[type[Step], Callable[[Kit, Any], str]]:
    """By kind of step."""
    return {**DO, **tampering(origin), Kill: kill, Damage: damage, Fill: fill, Rest: rest}
