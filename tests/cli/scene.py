"""A host in the middle of its day, as `weightd top` may see one."""

from __future__ import annotations

from weightd.cli.top_frame import Page
from weightd.cli.top_sample import History, Sample
from weightd.client.types import (
    CountersInfo,
    Holder,
    LeaseInfo,
    ModelFile,
    ModelInfo,
    StatusInfo,
    TierInfo,
    TransferInfo,
    VerifyInfo,
)
from weightd.core.lifecycle import DaemonState, Residency
from weightd.core.policy import Policy
from weightd.core.progress import Phase
from weightd.core.verification import Verification

GIB = 1 << 30
NOW = 1_764_000_000.0
HERE, FILLING, GONE = Residency.RESIDENT, Residency.FILLING, Residency.ABSENT


def model(
    ref: str,
    size: float,
    *,
    shm: Residency = HERE,
    leases: int = 0,
    used: float = 60.0,
    policy: Policy = Policy.WARM,
    pinned: bool = False,
    current: bool = True,
) -> ModelInfo:
    """`size` in GiB, `used` so many seconds ago."""
    nbytes = int(size * GIB)
    file = ModelFile("model.safetensors", nbytes, f"sha256:{ref}", Verification.SHA256, shm, HERE, NOW)
    return ModelInfo(
        *(ref, "0123456789abcdef", "safetensors", "/d", nbytes, Verification.SHA256, shm, HERE, leases),
        *(NOW - used, (file,), NOW, current, policy, pinned),
    )


MODELS = [
    model("hf://meta-llama/Llama-3.3-70B-Instruct@main", 131.4, leases=8, used=3, policy=Policy.HOT),
    model("hf://Qwen/Qwen3-30B-A3B-Instruct-2507@main", 56.9, leases=2, used=41),
    model("hf://BAAI/bge-m3@main", 2.1, leases=4, used=1, pinned=True),
    model("hf://mistralai/Mistral-Small-3.2-24B-Instruct-2506@main", 44.7, shm=FILLING, used=9),
    model("s3://acme-models/finetunes/support-bot/2026-11-19/", 15.0, used=5000, pinned=True),
    model("s3://acme-models/finetunes/support-bot/2026-11-12/", 15.0, shm=GONE, used=90000, current=False),
    model("whisper", 2.9, shm=GONE, used=7200, policy=Policy.COLD),
    model("https://weights.example.com/releases/reranker-large/model.safetensors", 1.1, shm=GONE, used=86400 * 9),
    model("hf://openai/gpt-oss-120b@main", 60.8, shm=GONE, used=86400 * 2),
]
POD = "/kubepods.slice/kubepods-burstable.slice/kubepods-pod8f.slice/cri-containerd-3b9f1c.scope"


def lease(ref: str, pid: int, command: str, since: float, **more: object) -> LeaseInfo:
    waiting = bool(more.pop("waiting", False))
    fields: dict[str, object] = {"started": 1, "cgroup": POD, "pod": "", "confirmed": True, "uid": 1000, **more}
    holder = Holder(pid=pid, command=command, **fields)  # type: ignore[arg-type]
    return LeaseInfo(ref, "" if waiting else "0123456789abcdef", NOW - since, holder, waiting)


VLLM = "python -m vllm.entrypoints.openai.api_server --model llama --tensor-parallel-size 8"
LEASES = [
    *(lease(MODELS[0].ref, 41200 + i, VLLM, 7300, pod="serving/llama-70b-6f5d4-x2x9k") for i in range(8)),
    lease(MODELS[1].ref, 51007, "sglang serve --model qwen3", 1900, pod="serving/qwen3-0"),
    lease(MODELS[1].ref, 51008, "sglang serve --model qwen3", 1900, pod="serving/qwen3-0"),
    lease(MODELS[2].ref, 1207, "/usr/bin/python3 embedder.py", 250000, cgroup="/system.slice/embedder.service"),
    lease(MODELS[2].ref, 17, "python embed.py --batch 64", 40, confirmed=False, pod="batch/embed-77"),
    lease(MODELS[3].ref, 60311, "python -m vllm.entrypoints.openai.api_server", 9, waiting=True, pod="serving/mistral"),
]
UNDER_WAY = (
    TransferInfo(MODELS[3].ref, Phase.LOADING, int(30.2 * GIB), int(44.7 * GIB), 6.1 * GIB, True),
    TransferInfo("hf://deepseek-ai/DeepSeek-V3.2@main", Phase.FETCHING, 81 * GIB, 642 * GIB, 1.4 * GIB, False),
    TransferInfo("hf://google/gemma-3-27b-it@main", Phase.RESOLVING, 0, 0, 0.0, False),
)
SHM = TierInfo(
    *(400 * GIB, 45 * GIB, 205 * GIB, 96 * GIB),
    leased=190 * GIB,
    pinned=148 * GIB,
    draining=15 * GIB,
    total=504 * GIB,
    other=31 * GIB,
)
NVME = TierInfo(3400 * GIB, 561 * GIB, 330 * GIB, 2400 * GIB, 190 * GIB, 148 * GIB, 0, 122 * GIB, 3576 * GIB, 60 * GIB)


def status(at: float = 0.0, *, pid: int = 4711, uptime: float = 270000.0) -> StatusInfo:
    """`at` seconds after the first."""
    counters = CountersInfo(
        int(1.4 * GIB * at), int((4 + 2 * (at % 5)) * GIB * at), int(40 * at) + 991, int(39 * at) + 980, 12, 5
    )
    return StatusInfo(
        *("0.2.0", pid, DaemonState.SERVING, uptime + at, "/var/lib/weightd", SHM, NVME, 13, 9, 3, 200 * GIB),
        verify=VerifyInfo(3600.0, NOW, 0, 0, 0),
        counters=counters,
        under_way=UNDER_WAY,
    )


def sample(at: float = 0.0, *, pid: int = 4711, uptime: float = 270000.0) -> Sample:
    return Sample(at, NOW + at, status(at, pid=pid, uptime=uptime), MODELS, LEASES)


def history(samples: int = 30) -> History:
    """One sample a second."""
    it = History()
    for at in range(samples):
        it.add(sample(float(at)))
    return it


def page(width: int, height: int | None, *, colours: bool = True, now: float = 29.0) -> Page:
    return Page(width, height, colours, now, NOW + now, 1.0)
