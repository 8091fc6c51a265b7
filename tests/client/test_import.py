"""A worker pays for what it uses."""

from __future__ import annotations

import pytest

import weightd
from tests.support.serving import run_script

SCRIPT = """
import sys
{statement}
print(*sorted(m for m in {heavy!r} if m in sys.modules))
"""
HEAVY = ["torch", "aiohttp", "aiobotocore", "huggingface_hub", "uvloop", "xxhash", "numpy", "ml_dtypes", "grpc"]
OURS = ["weightd.engine", "weightd.storage", "weightd.sources", "weightd.rpc", "weightd.daemon"]


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import weightd", ""),
        ("from weightd import errors, Lease", ""),
        ("from weightd import Client", "grpc"),
        ("from weightd import AsyncClient", "grpc"),
    ],
)
def test_what_an_import_pulls_in(statement: str, loaded: str) -> None:
    assert run_script(SCRIPT.format(statement=statement, heavy=HEAVY + OURS)).stdout.strip() == loaded


def test_every_exported_name_is_there() -> None:
    assert {name: getattr(weightd, name).__name__ for name in ("Client", "AsyncClient", "Lease", "WeightdError")} == {
        name: name for name in ("Client", "AsyncClient", "Lease", "WeightdError")
    }
    assert weightd.errors.all_errors()["WeightdError"] is weightd.WeightdError
    assert weightd.__version__
    assert set(weightd.__all__) <= set(dir(weightd))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = weightd.nonsense
