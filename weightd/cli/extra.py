"""What `pip install weightd` leaves out."""

from __future__ import annotations

import importlib.util

from weightd.core.errors import DependencyMissing

NEEDED = ("aiobotocore", "aiohttp", "uvloop", "xxhash", "yarl", "grpc_reflection")


def need_daemon_extra(what: str) -> None:
    """Raises DependencyMissing when the daemon's libraries are not installed. Imports none of them."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise DependencyMissing(
            f"{what} needs libraries that are not installed: {', '.join(missing)}",
            remedy="Install them: pip install 'weightd[daemon]'.",
        )
