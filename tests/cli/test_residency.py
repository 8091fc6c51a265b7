"""`weightd load`, `pin`, `unpin`, `evict`, `rm` and `leases`, as a script calls them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.conftest import Cli
from tests.cli.hosted import Hosted, hosted
from tests.support.fake_engine import DEMO, REF, fetching
from weightd.cli.forecast import Host, forecast
from weightd.client.client import Client
from weightd.client.types import Evicted
from weightd.core.errors import ModelBusy, ModelLeased, ModelNotFound, ModelPinned
from weightd.core.lifecycle import Residency
from weightd.core.policy import Policy
from weightd.core.progress import Phase
from weightd.engine.api import Holder, LeaseState, TransferState

SIZE = sum(map(len, DEMO.values()))
OTHER = "https://host/other"
GONE = "https://host/gone"


@pytest.fixture
def fake() -> Iterator[Hosted]:
    with hosted() as it:
        it.engine.add(OTHER, {"model.safetensors": b"12345678"})
        yield it


@pytest.fixture
def host(cli: Cli, fake: Hosted) -> Cli:
    return lambda *arguments: cli("--socket", fake.socket, *arguments)


def lease(fake: Hosted, ref: str = REF, number: int = 1, **holder: object) -> None:
    fake.engine.leases.states[number] = LeaseState(ref, "r", 1000.0, Holder(**holder))  # type: ignore[arg-type]


def test_load(host: Cli, fake: Hosted) -> None:
    assert host("evict", REF).code == 0
    fake.engine.steps = [fetching(10), fetching(100)]
    result = host("load", REF, "--json")
    assert result.code == 0
    assert [o["type"] for o in result.objects] == ["progress", "progress", "model"]
    assert result.objects[0]["ref"] == REF
    assert (result.objects[-1]["shm"], result.objects[-1]["policy"]) == ("resident", "warm")
    assert host("load", REF, OTHER).out.startswith(f"{REF}: 3 files, ")


def test_load_of_what_is_not_held_ends_with_4(host: Cli) -> None:
    result = host("load", GONE, REF)
    assert (result.code, result.out) == (4, "")


def test_pin_and_unpin(host: Cli, fake: Hosted) -> None:
    assert host("pin", REF, OTHER).out == f"{REF}: pinned\n{OTHER}: pinned\n"
    assert fake.engine.pinned == {REF, OTHER}
    (model,) = host("pin", REF, "--json").objects
    assert (model["type"], model["ref"], model["pinned"]) == ("model", REF, True)
    (line,) = [x for x in host("ls").out.splitlines() if x.startswith(REF)]
    assert "warm, pinned" in line
    assert host("unpin", REF, OTHER).out == f"{REF}: not pinned\n{OTHER}: not pinned\n"
    assert host("unpin", REF, "--json").objects[0]["pinned"] is False


def test_pin_tells_when_there_is_nothing_to_keep_in_shared_memory(host: Cli) -> None:
    host("evict", REF)
    assert host("pin", REF).out == f"{REF}: pinned; not in shared memory: weightd load {REF}\n"


def test_every_ref_is_tried_and_the_first_fault_is_the_exit_code(host: Cli, fake: Hosted) -> None:
    fake.engine.policies[OTHER] = Policy.HOT
    result = host("unpin", OTHER, GONE, REF)
    assert result.code == 6
    assert result.out == f"{REF}: not pinned\n"
    first, second = result.err.splitlines()
    assert "hot" in first
    assert GONE in second
    assert host("pin", GONE, "--json").objects[0]["exit_code"] == 4


@pytest.mark.parametrize("command", ["load", "pin", "unpin", "evict", "rm"])
def test_a_ref_that_cannot_be_parsed_ends_it_before_anything_is_done(host: Cli, fake: Hosted, command: str) -> None:
    result = host(command, REF, "ftp://h/x")
    assert (result.code, result.out) == (3, "")
    assert fake.engine.pinned == set()
    assert fake.engine.model(REF).files[0].shm is Residency.RESIDENT


def test_evict(host: Cli, fake: Hosted) -> None:
    fake.engine.draining = 8
    assert host("evict", OTHER).out == f"{OTHER}: 8 B left shared memory, 8 B of it still mapped\n"
    assert host("evict", OTHER, "--json").objects == [
        {"type": "evicted", "ref": OTHER, "shm": 0, "draining": 8, "dry_run": False}
    ]


def test_evict_all_tells_what_stays_and_why(host: Cli, fake: Hosted) -> None:
    fake.engine.add("pinned", {"a": b"1234"})
    fake.engine.add("leased", {"a": b"12345"})
    fake.engine.pinned.add("pinned")
    lease(fake, "leased", pid=4711)
    dry = host("evict", "--all", "--dry-run")
    assert dry.out.splitlines()[-1] == f"2 models, {SIZE + 8} B would leave shared memory; 2 stay"
    assert host("evict", "--all", "--dry-run").out == dry.out
    lines = host("evict", "--all").out.splitlines()
    assert lines == [
        f"{REF}: {SIZE} B left shared memory",
        f"{OTHER}: 8 B left shared memory",
        "pinned: stays: the model is pinned",
        "leased: stays: process 4711 lease the model",
        f"2 models, {SIZE + 8} B left shared memory; 2 stay",
    ]
    result = host("evict", "--all", "--json")
    assert result.code == 0
    assert [(o["type"], o["ref"], o.get("kind")) for o in result.objects] == [
        ("stays", "pinned", "ModelPinned"),
        ("stays", "leased", "ModelLeased"),
    ]


def test_evict_wants_refs_or_all(host: Cli) -> None:
    assert host("evict").code == host("evict", REF, "--all").code == 2


@pytest.mark.parametrize("command", ["evict", "rm"])
def test_who_holds_a_leased_model_is_told(host: Cli, fake: Hosted, command: str) -> None:
    for number in range(7):
        lease(fake, number=number, pid=100 + number, command="python worker.py", pod="ns/p")
    result = host(command, REF, OTHER)
    assert result.code == 6
    assert OTHER in result.out
    error, *holders = result.err.splitlines()
    assert error.startswith("weightd: error: ")
    assert holders[0].startswith("  process 100?, python worker.py, ns/p, leases it since ")
    assert len(holders) == 6
    assert holders[5] == f"  and 2 more leases: weightd leases {REF}"
    objects = host(command, REF, "--json").objects
    assert [o["type"] for o in objects] == ["lease"] * 7 + ["error"]
    assert objects[-1]["kind"] == "ModelLeased"


def test_rm(host: Cli, fake: Hosted) -> None:
    before = host("ls", "--json").out
    dry = host("rm", OTHER, "--dry-run")
    assert dry.out == f"{OTHER}: would be removed: 8 B from NVMe, 8 B from shared memory\n"
    assert host("rm", OTHER, "--dry-run", "--json").objects[0]["dry_run"] is True
    assert host("ls", "--json").out == before
    assert host("rm", OTHER).out == f"{OTHER}: removed: 8 B from NVMe, 8 B from shared memory\n"
    assert host("rm", OTHER).code == host("rm", OTHER, "--dry-run").code == 4
    assert host("rm", REF, "--json").objects == [
        {"type": "removed", "ref": REF, "shm": SIZE, "nvme": SIZE, "dry_run": False}
    ]


def test_a_forecast_counts_each_blob_once_and_none_that_others_have(fake: Hosted) -> None:
    fake.engine.add("twin", {"a": b"1234", "b": b"1234", "c": b"12345678"})
    with Client(fake.socket) as client:
        host = Host(client.models(), [])
        assert forecast(host, "twin", remove=True) == Evicted(shm=4, nvme=4)
        client.evict(OTHER)
        host = Host(client.models(), [])
        assert forecast(host, "twin", remove=False) == Evicted(shm=12)
        assert forecast(host, "twin", remove=True) == Evicted(shm=12, nvme=4)
        with pytest.raises(ModelNotFound):
            forecast(host, GONE, remove=True)
        lease(fake, "twin")
        with pytest.raises(ModelLeased):
            forecast(Host(client.models(), client.leases()), "twin", remove=True)
        client.pin(OTHER)
        with pytest.raises(ModelPinned):
            forecast(Host(client.models(), []), OTHER, remove=True)
        fake.engine.fill(REF)
        with pytest.raises(ModelBusy):
            forecast(Host(client.models(), []), REF, remove=True)


def test_leases(host: Cli, fake: Hosted) -> None:
    assert host("leases").out.split() == ["REF", "PID", "COMMAND", "WHERE", "STATE", "FOR"]
    lease(fake, pid=4711, command="python worker.py", cgroup="/system.slice/worker.service", confirmed=True, uid=7)
    fake.engine.leases.states[2] = LeaseState(OTHER, "", 2.0, Holder(pid=9, pod="ns/p"), waiting=True)
    _, first, second = host("leases").out.splitlines()
    assert first.split()[:6] == [REF, "4711", "python", "worker.py", "worker.service", "leased"]
    assert second.split()[:5] == [OTHER, "9?", "-", "ns/p", "waiting"]
    assert host("leases", OTHER).out.splitlines()[1].split() == second.split()
    shown, waiting = host("leases", "--json").objects
    assert shown == {
        "type": "lease",
        "ref": REF,
        "revision": "r",
        "since": 1000.0,
        "waiting": False,
        "pid": 4711,
        "started": 0,
        "command": "python worker.py",
        "cgroup": "/system.slice/worker.service",
        "pod": "",
        "confirmed": True,
        "uid": 7,
        "tenant": "",
    }
    assert (waiting["waiting"], waiting["confirmed"], waiting["uid"]) == (True, False, None)
    assert host("leases", GONE).code == 4
    lease(fake, pid=3, tenant="team-a")
    header, *rows = (line.split() for line in host("leases").out.splitlines())
    assert (header[-1], sorted(row[-1] for row in rows)) == ("TENANT", ["-", "team-a"])
    assert sorted(found["tenant"] for found in host("leases", "--json").objects) == ["", "team-a"]


def test_a_real_lease_is_listed_with_this_process(host: Cli, fake: Hosted) -> None:
    with Client(fake.socket) as client, client.acquire(REF):
        (shown,) = host("leases", "--json").objects
        assert shown["ref"] == REF
        assert host("rm", REF).code == 6
    fake.run(fake.engine.wait_leases(0))
    assert host("leases", "--json").objects == []


def test_status_tells_where_every_byte_is(host: Cli, fake: Hosted) -> None:
    text = host("status").out
    assert all(len(line) <= 80 or "state in" in line for line in text.splitlines())
    numbers = {line.split("  ")[0].strip() or line: line for line in text.splitlines()}
    for name, shm, nvme in [
        ("budget", "100 B", "1000 B"),
        ("resident", "20 B", "20 B"),
        ("filling", "1 B", "0 B"),
        ("draining", "4 B", "0 B"),
        ("kept", "0 B", "5 B"),
        ("left", "75 B", "975 B"),
        ("mount", "200 B", "2.0 KiB"),
    ]:
        assert f"{shm:>11}{nvme:>11}  " in numbers[name], name
    for name, shm in (("leased", "15 B"), ("pinned", "10 B"), ("free", "79 B"), ("others", "3 B")):
        assert f"  {name:<8}{shm:>11}" in text
    assert "since the start: 10 B fetched, 20 B loaded, 30 acquires (83 % at once),\n" in text
    assert " 3 evicted, 1 adopted, 3 damaged, 2 repaired, 1 lost\n" in text
    assert "nvme: of 975 B left only 880 B are free, others use 100 B" in text
    assert "shm: of" not in text
    (status,) = host("status", "--json").objects
    assert status["shm"] == {
        "budget": 100,
        "reserved": 1,
        "resident": 20,
        "free": 79,
        "leased": 15,
        "pinned": 10,
        "draining": 4,
        "kept": 0,
        "total": 200,
        "other": 3,
    }
    assert status["counters"]["hits"] == 25  # type: ignore[index]
    assert status["transfers_under_way"] == []


def test_status_lists_what_is_under_way(host: Cli, fake: Hosted) -> None:
    fake.engine.under_way = (
        TransferState(REF, Phase.LOADING, 5 << 20, 10 << 20, 2.5 * (1 << 20), urgent=True),
        TransferState(OTHER, Phase.RESOLVING),
    )
    header, first, second = host("status").out.splitlines()[-3:]
    assert header.split() == ["TRANSFER", "PHASE", "DONE", "OF", "RATE"]
    assert first.split() == [REF, "loading", "50", "%", "10.0", "MiB", "2.5", "MiB/s", "a", "worker", "waits"]
    assert second.split() == [OTHER, "resolving"]
    (status,) = host("status", "--json").objects
    assert status["transfers_under_way"] == [
        {
            "ref": REF,
            "phase": "loading",
            "bytes_done": 5 << 20,
            "bytes_total": 10 << 20,
            "bytes_per_second": 2621440,
            "urgent": True,
        },
        {
            "ref": OTHER,
            "phase": "resolving",
            "bytes_done": 0,
            "bytes_total": 0,
            "bytes_per_second": 0,
            "urgent": False,
        },
    ]


def test_nothing_that_a_process_says_moves_the_cursor(host: Cli, fake: Hosted) -> None:
    lease(fake, pid=1, command="a\x1b[2Jb\u202e", pod="x\ny")
    result = host("leases")
    assert len(result.out.splitlines()) == 2
    assert "\x1b" not in result.out
    assert "\u202e" not in result.out
    assert "\x1b" not in host("rm", REF).err
