"""Model weights to every worker on a host: fetched once, verified, shared without a copy.

    from weightd import Client

    with Client().acquire("https://host/path/model.safetensors") as lease:
        lease["embeddings.weight"]

Names are imported when first used, so that `import weightd` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from weightd.version import __version__

if TYPE_CHECKING:
    from weightd.client.aio import AsyncClient
    from weightd.client.client import Client
    from weightd.client.lease import Lease
    from weightd.core import errors
    from weightd.core.errors import WeightdError

__all__ = ["AsyncClient", "Client", "Lease", "WeightdError", "__version__", "errors"]

_HOMES: Final = {
    "AsyncClient": "weightd.client.aio",
    "Client": "weightd.client.client",
    "Lease": "weightd.client.lease",
    "WeightdError": "weightd.core.errors",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        found: Any = import_module("weightd.core.errors")
    elif name in _HOMES:
        found = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
