"""What the Hugging Face client on this host is set up with. The one file that imports it, when it is first asked.

Its API calls are not used: they share one HTTP client with everybody in the process, know neither our authorities nor
proxies, and sleep where nobody can end them. What is the client's own, and changes with it, is asked of it: where
tokens, caches and endpoints are told.
"""

from __future__ import annotations

import importlib
import re
import types
from typing import NamedTuple

from weightd.core.errors import DependencyMissing, SourceDenied, TokenRefused, WeightdError

_TOKEN = re.compile(r"[\x21-\x7e]+")


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
    HF_HUB_DISABLE_IMPLICIT_TOKEN is set. Blocking. Raises DependencyMissing, SourceDenied, TokenRefused."""
    if _module("huggingface_hub.constants").HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return ""
    try:
        token = _module("huggingface_hub").get_token() or ""
    except _faults() as e:
        raise SourceDenied(
            f"the Hugging Face token cannot be read: {type(e).__name__}",
            remedy="Check HF_TOKEN, HF_TOKEN_PATH and the rights of the file, or log in again (hf auth login).",
        ) from None
    if token and _TOKEN.fullmatch(token) is None:
        # A line break would end the header that it stands in; other characters have no place in one.
        raise TokenRefused(
            "what HF_TOKEN or the file of hf auth login holds is no token",
            remedy="It is one word of ASCII characters; log in again (hf auth login).",
        )
    return token


def _faults() -> tuple[type[Exception], ...]:
    """What reading a token fails with, or renewing a login, or exchanging that of a CI system for one; HTTP's are
    httpx's or httpx2's."""
    errors = _module("huggingface_hub.errors")
    found = (getattr(errors, name, None) for name in ("OIDCError", "DeviceCodeError", "HTTPError"))
    kinds = [kind for kind in found if isinstance(kind, type) and issubclass(kind, Exception)]
    return (OSError, ValueError, RuntimeError, *kinds)


def _module(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise missing() from None


def missing() -> WeightdError:
    """For those who installed weightd without it."""
    return DependencyMissing("hf:// refs need huggingface_hub", remedy="Install it: pip install 'weightd[daemon]'.")
