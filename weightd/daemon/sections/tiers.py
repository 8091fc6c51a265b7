"""`[shm]` and `[nvme]`"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from weightd.core.models import NamedModel, rule_of
from weightd.core.period import parse_period
from weightd.core.policy import Policy, Rule, Rules
from weightd.daemon.config_reader import Reader
from weightd.daemon.sizes import BudgetSpec, parse_budget, parse_percent
from weightd.engine.adopt import Adoption
from weightd.engine.evict import Watermarks


class ShmSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[shm]` as it is written."""

    budget: str | int = "auto"
    high: str = "100%"
    low: str = "90%"
    directory: str = ""
    numa: str = ""
    keep_idle: str = ""
    cold_idle: str = "10m"
    adopt: Adoption = Adoption.LAZY
    adopt_grace: str = "60s"
    at_stop: Literal["auto", "keep", "drop"] = "auto"


class NvmeSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[nvme]` as it is written."""

    budget: str | int = "auto"
    high: str = "100%"
    low: str = "90%"


class ShmConfig(msgspec.Struct, frozen=True):
    """`directory`: a tmpfs of its own that holds the segments, None for POSIX shared memory. `keep_idle`: seconds
    after its last use in which a model stays, by policy, None for as long as there is room. `at_stop`: "keep" leaves
    the segments for the next start, "drop" does not, "auto" keeps them unless the stop came from a terminal (SIGINT).
    Nothing that was adopted is evicted for `grace` seconds."""

    budget: BudgetSpec
    marks: Watermarks
    directory: Path | None
    numa: str
    keep_idle: dict[Policy, float | None]
    adoption: Adoption
    grace: float
    at_stop: str

    def keeps(self, number: int) -> bool:
        """Whether segments stay when a stop was asked for by this signal."""
        return self.at_stop == "keep" or (self.at_stop == "auto" and number != signal.SIGINT)

    def rules(self, models: Mapping[str, NamedModel]) -> Rules:
        """Of configured models, and of all others."""
        named = {name: rule_of(model, self.keep_idle) for name, model in models.items()}
        return Rules(named, Rule(Policy.WARM, self.keep_idle[Policy.WARM]))


class NvmeConfig(msgspec.Struct, frozen=True):
    """Of the state directory."""

    budget: BudgetSpec
    marks: Watermarks


def read_shm(reader: Reader, budget: str, at_stop: str) -> ShmConfig:
    """`budget` and `at_stop` of the command line go before the file, unless they are "". Raises ConfigError."""
    section = reader.section("shm", ShmSection, {"at_stop": at_stop} if at_stop else None)
    warm = reader.value(("shm", "keep_idle"), parse_period, section.keep_idle)
    cold = reader.value(("shm", "cold_idle"), parse_period, section.cold_idle)
    return ShmConfig(
        budget=_budget(reader, "shm", section.budget, budget),
        marks=_marks(reader, "shm", section.high, section.low),
        directory=reader.path(section.directory),
        numa=section.numa,
        keep_idle={Policy.WARM: warm or None, Policy.COLD: cold or None},
        adoption=section.adopt,
        grace=reader.value(("shm", "adopt_grace"), parse_period, section.adopt_grace),
        at_stop=section.at_stop,
    )


def read_nvme(reader: Reader, budget: str) -> NvmeConfig:
    """As `read_shm`."""
    section = reader.section("nvme", NvmeSection)
    return NvmeConfig(
        budget=_budget(reader, "nvme", section.budget, budget),
        marks=_marks(reader, "nvme", section.high, section.low),
    )


def _budget(reader: Reader, tier: str, written: str | int, override: str) -> BudgetSpec:
    if override:
        return Reader("", "command line", reader.base).value((tier, "budget"), parse_budget, override)
    return reader.value((tier, "budget"), parse_budget, written)


def _marks(reader: Reader, tier: str, high: str, low: str) -> Watermarks:
    marks = Watermarks(reader.value((tier, "high"), _share, high), reader.value((tier, "low"), _share, low))
    if marks.high < 1.0 and marks.low > marks.high:
        raise reader.fault((tier, "low"), "is above high")
    return marks


def _share(value: str) -> float:
    percent = parse_percent(value)
    if percent is None:
        raise ValueError(f'{value!r} is not a share of the budget; write a percentage, such as "90%"')
    return percent / 100
