"""A worker of the demo: `python -m demo.worker`. Orders come as lines of JSON on standard input, answers go back so.

It stands for an inference server: it has torch and transformers, and knows of the daemon only the environment variable
WEIGHTD_SOCKET.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import snapshot_download
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from demo.model import build, embed, tokenizer, warm_up
from demo.snapshot import WEIGHTS, find_model
from weightd import Client
from weightd.core.errors import WeightdError

AGAIN = 20
"""Acquires after the first, of which the median is reported."""


class Worker:
    """Holds at most one loaded model, got by one of three ways."""

    def __init__(self) -> None:
        self.client = Client()
        self.lease: Any = None
        self.model: Any = None
        self.private: dict[str, torch.Tensor] = {}

    def shared(self, ref: str, directory: str, sentences: list[str]) -> dict[str, Any]:
        """Through weightd. `directory` is not used: the lease has one."""
        begin = time.perf_counter()
        self.lease = self.client.acquire(ref)
        acquired = time.perf_counter()
        self.model = build(self.lease.state_dict(), Path(self.lease.path))
        used = self._use(begin, acquired, Path(self.lease.path), sentences)
        levels: dict[str, list[str]] = {}
        for path, file in self.lease.files.items():
            levels.setdefault(file.verification.name.lower(), []).append(path)
        return {**used, "levels": levels}

    def mapped(self, ref: str, directory: str, sentences: list[str]) -> dict[str, Any]:
        """The usual way: transformers, which maps a local safetensors file."""
        begin = time.perf_counter()
        self.model = AutoModel.from_pretrained(directory).eval()
        return self._use(begin, begin, Path(directory), sentences)

    def named(self, repo: str, sentences: list[str]) -> dict[str, Any]:
        """By its name at the Hub, out of the cache of this process, which is offline."""
        directory = snapshot_download(repo)
        begin = time.perf_counter()
        self.model = AutoModel.from_pretrained(repo).eval()
        return {**self._use(begin, begin, Path(directory), sentences), "directory": directory}

    def read(self, ref: str, directory: str, sentences: list[str]) -> dict[str, Any]:
        """The file read into memory of this process's own."""
        begin = time.perf_counter()
        self.private = safetensors.torch.load((Path(directory) / WEIGHTS).read_bytes())
        self.model = build(self.private, Path(directory))
        return self._use(begin, begin, Path(directory), sentences)

    def _use(self, begin: float, acquired: float, directory: Path, sentences: list[str]) -> dict[str, Any]:
        built = time.perf_counter()
        vectors = embed(self.model, tokenizer(directory), sentences)
        used = time.perf_counter()
        return {
            "acquire": acquired - begin,
            "load": built - begin,
            "first": used - begin,
            "vectors": vectors.tolist(),
            "total": self.touch(),
        }

    def touch(self) -> float:
        """Reads every weight, so that every page of the model counts; the sum shows what was read."""
        with torch.inference_mode():
            return float(sum(t.double().sum().item() for t in self.model.state_dict().values()))

    def again(self, ref: str) -> dict[str, Any]:
        """Acquire and release beside the lease that is held."""
        times = []
        for _ in range(AGAIN):
            begin = time.perf_counter()
            lease = self.client.acquire(ref)
            times.append(time.perf_counter() - begin)
            lease.release()
        return {"median": statistics.median(times)}

    def sums(self) -> dict[str, Any]:
        return {"total": self.touch()}

    def attack(self, tensor: str) -> dict[str, Any]:
        """Tries to write the weights in four ways; says what stopped each. Empty: it worked."""
        view = self.lease[tensor]
        address, length = view.__array_interface__["data"][0], min(view.nbytes, mmap.PAGESIZE)
        return {
            "numpy": _stopped(lambda: view.fill(0)),
            "flag": _stopped(lambda: view.setflags(write=True)),
            "kernel": _stopped(lambda: _read_into(address, length)),
            "rights": _stopped(lambda: _make_writable(address)),
        }

    def scribble(self, tensor: str) -> dict[str, Any]:
        """Changes a torch tensor, which is a private view: only this process sees it."""
        before = self.touch()
        with torch.inference_mode():
            self.model.state_dict()[tensor].add_(1.0)
        return {"changed": self.touch() != before}

    def drop(self) -> dict[str, Any]:
        self.model = None
        self.private = {}
        if self.lease is not None:
            self.lease.release()
            self.lease = None
        return {}


def _stopped(act: Any) -> str:
    try:
        act()
    except ValueError as e:
        return f"ValueError: {e}"
    except OSError as e:
        return f"{errno.errorcode[e.errno or 0]}: {e.strerror}"
    return ""


def _checked(result: int) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_LIBC = ctypes.CDLL(None, use_errno=True)


def _read_into(address: int, length: int) -> None:
    """Let the kernel write zeros there, which fails with EFAULT where a write of our own would end the process."""
    fd = os.open("/dev/zero", os.O_RDONLY)
    try:
        _LIBC.read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
        _checked(_LIBC.read(fd, address, length))
    finally:
        os.close(fd)


def _make_writable(address: int) -> None:
    page = address & ~(mmap.PAGESIZE - 1)
    _LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    _checked(_LIBC.mprotect(page, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE))


# Libraries may print: that must not come between the answers.
_ANSWERS, sys.stdout = sys.stdout, sys.stderr


def main() -> None:
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warm_up(find_model())
    worker = Worker()
    _say({"ready": time.time() - _started()})
    for line in sys.stdin:
        order = json.loads(line)
        act = getattr(worker, order.pop("do"))
        try:
            _say(act(**order))
        except (WeightdError, ValueError, OSError) as e:
            _say({"error": f"{type(e).__name__}: {e}"})


def _started() -> float:
    """Unix time of this process's start (proc_pid_stat(5), field 22)."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=_ANSWERS, flush=True)


if __name__ == "__main__":
    main()
