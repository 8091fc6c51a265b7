"""Policies of a real daemon, and what its operator says, from the command line."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.host import Ended, Host, assert_refused, daemon, safetensors
from tests.e2e.worker import until
from tests.support.origin import Origin
from weightd import Client
from weightd.cli.main import run
from weightd.client.types import EventKind
from weightd.core.lifecycle import Residency

MIB = 1 << 20
FILES = {f"{name}.safetensors": safetensors(2 * MIB, name.encode()) for name in ("hot", "cold", "brief", *"abcdefgh")}
CONFIG = """
[shm]
budget = "20MiB"
high = "60%"
low = "40%"
cold_idle = "1s"
[fetch]
retries = 1
"""
"""Above five models, all go but three."""


@pytest.fixture(scope="module")
def files() -> Iterator[Origin]:
    with Origin(FILES) as origin:
        yield origin


@pytest.fixture(scope="module")
def host(files: Origin) -> Iterator[Host]:
    rules = {"hot": 'policy = "hot"', "cold": 'policy = "cold"', "brief": 'keep_idle = "1s"'}
    models = "".join(
        f'[models.{name}]\nsource = "{files.url(f"{name}.safetensors")}"\n{rule}\n' for name, rule in rules.items()
    )
    with daemon("--at-stop", "auto", config=CONFIG + models) as host:
        yield host
        assert host.stop(signal.SIGINT) == 0, host.text()
        assert host.segments() == []


@pytest.fixture
def client(host: Host) -> Iterator[Client]:
    with Client(host.socket) as client:
        yield client


@pytest.fixture
def cli(host: Host, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command line, in this process."""

    def call(*arguments: str) -> Ended:
        capfd.readouterr()
        return Ended(run(["--socket", str(host.socket), *arguments]), *capfd.readouterr())

    return call


def in_memory(client: Client) -> set[str]:
    return {m.ref for m in client.models() if m.shm is Residency.RESIDENT}


def test_hot_is_there_without_being_asked_for_and_stays(client: Client, cli: Callable[..., Ended]) -> None:
    until(lambda: "hot" in in_memory(client))
    for command in ("evict", "rm", "unpin"):
        assert_refused(cli(command, "hot", "--json"), 6, "ModelPinned", "hot", "configuration")
    assert client.status().shm.pinned > 2 * MIB


@pytest.mark.parametrize("name", ["cold", "brief"])
def test_what_is_idle_leaves_shared_memory_and_stays_on_disk(name: str, client: Client) -> None:
    client.fetch(name)
    if name == "cold":
        assert "cold" not in in_memory(client)
    with client.acquire(name) as lease, client.watch() as events:
        tensor = lease["t"]
        assert name in in_memory(client)
        lease.release()
        gone = next(e for e in events if e.kind is EventKind.EVICTED)
    assert (gone.ref, gone.detail) == (name, "2.0 MiB of shared memory freed after it was idle")
    assert name not in in_memory(client)
    assert client.model(name).nvme is Residency.RESIDENT
    assert tensor.nbytes == 2 * MIB


def test_above_the_high_mark_models_go_until_the_low_one(client: Client, files: Origin) -> None:
    refs = [files.url(f"{name}.safetensors") for name in "abcdefgh"]
    with client.watch() as events, client.acquire(refs[0]):
        for ref in refs[1:]:
            client.fetch(ref)
        gone = [next(e for e in events if e.kind is EventKind.EVICTED and e.ref in refs) for _ in range(3)]
        until(lambda: client.status().shm.resident <= 0.6 * client.status().shm.budget)
        assert {"hot", refs[0]} <= in_memory(client)
    assert {e.detail for e in gone} == {"2.0 MiB of shared memory freed above the high watermark"}


def test_the_operator_has_the_last_word_over_restarts_as_well(
    host: Host, client: Client, files: Origin, cli: Callable[..., Ended]
) -> None:
    ref = files.url("a.safetensors")
    assert cli("load", ref, "--json").objects[-1]["shm"] == "resident"
    (pinned,) = cli("pin", ref, "--json").objects
    assert (pinned["ref"], pinned["pinned"], pinned["policy"]) == (ref, True, "warm")
    for command in ("evict", "rm"):
        assert_refused(cli(command, ref, "--json"), 6, "ModelPinned", ref)
    assert host.stop(signal.SIGTERM) == 0
    host.start_again()
    assert client.model(ref).pinned
    assert_refused(cli("evict", ref, "--json"), 6, "ModelPinned", ref)
    assert cli("unpin", ref, "--json").objects[0]["pinned"] is False

    with client.acquire(ref):
        for command in ("evict", "rm"):
            lease, error = cli(command, ref, "--json").objects
            assert (lease["type"], lease["ref"], lease["confirmed"]) == ("lease", ref, True)
            assert (error["kind"], error["exit_code"]) == ("ModelLeased", 6)
        everything = cli("evict", "--all", "--json")
        assert everything.code == 0
        stays = {(o["ref"], o["kind"]) for o in everything.objects if o["type"] == "stays"}
        assert {("hot", "ModelPinned"), (ref, "ModelLeased")} <= stays
        # What was adopted is still being compared, maybe, and is mapped for it.
        until(lambda: in_memory(client) == {"hot", ref} or cli("evict", "--all").code)
        assert in_memory(client) == {"hot", ref}
    until(lambda: client.leases(ref) == [])

    (gone,) = cli("evict", ref, "--json").objects
    assert (gone["type"], gone["draining"]) == ("evicted", 0)
    assert gone["shm"] > 2 * MIB
    (removed,) = cli("rm", ref, "--json").objects
    assert (removed["type"], removed["shm"]) == ("removed", 0)
    assert removed["nvme"] == gone["shm"]
    for command in ("evict", "rm", "load", "pin", "unpin", "leases"):
        ended = cli(command, ref, "--json")
        assert ended.code == 4, (command, ended)
    assert json.loads(cli("status", "--json").out)["leases"] == 0
