"""What the Hugging Face client on this host is set up with. The one file that imports it, when it is first asked.

Its API calls are not used: they share one HTTP client with everybody in the process, know neither our authorities nor
proxies, and sleep where nobody can end them. What is the client's own, and changes with it, is asked of it: where
tokens, caches and endpoints are told.
"""

from __future__ import annotations

import importlib
import types
from typing import NamedTuple

from weightd.core.errors import DependencyMissing, SourceDenied, WeightdError


class Home(NamedTuple):
    """`endpoint` without "/" at its end; `cache` is the directory of "models--…"."""

    endpoint: str
    cache: str
    offline: bool


def home() -> Home:
    """HF_ENDPOINT, HF_HUB_CACHE or HF_HOME, HF_HUB_OFFLINE, and what stands for them. Blocking: the import takes time.
    Raises DependencyMissing."""
    constants = _module("huggingface_hub.constants")
    return Home(constants.ENDPOINT, constants.HF_HUB_CACHE, bool(constants.HF_HUB_OFFLINE))


def token() -> str:
    """Of HF_TOKEN, the file of HF_TOKEN_PATH, or the one that `hf auth login` wrote; "" where nobody logged in, or
    HF_HUB_DISABLE_IMPLICIT_TOKEN is set. Blocking. Raises DependencyMissing, SourceDenied."""
    if _module("huggingface_hub.constants").HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return ""
    try:
        return _module("huggingface_hub").get_token() or ""
    except (OSError, ValueError, RuntimeError) as e:
        raise SourceDenied(
            f"the Hugging Face token cannot be read: {type(e).__name__}",
            remedy="Check HF_TOKEN, HF_TOKEN_PATH and the rights of the file, or log in again (hf auth login).",
        ) from None


def _module(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise missing() from None


def missing() -> WeightdError:
    """For those who installed weightd without it."""
    return DependencyMissing("hf:// refs need huggingface_hub", remedy="Install it: pip install 'weightd[daemon]'.")
