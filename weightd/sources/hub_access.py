"""Which Hub a repository is asked of, and with which token; the token goes there and nowhere else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from weightd.core.credentials import Credential, matching
from weightd.core.errors import ConfigError, SourceDenied, WeightdError
from weightd.sources import hub_home, urls
from weightd.sources.hub_errors import Asked
from weightd.sources.hub_home import Home

_FRESH_S = 30.0
"""For which a token that was read is used: who logs in need not start the daemon again."""


class HubOptions(msgspec.Struct, frozen=True):
    """ "" and None leave it to what huggingface_hub is set up with: `endpoint`, `token_file`, `offline`, and `cache`,
    which is "auto", "off" or a directory. `include` and `exclude` are for refs that have none themselves."""

    endpoint: str = ""
    token_file: str = ""
    cache: str = "auto"
    offline: bool | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    credentials: tuple[Credential, ...] = ()


class Access:
    """Any thread; blocks, the first time for long."""

    def __init__(
        self,
        options: HubOptions,
        home: Callable[[], Home] = hub_home.home,
        token: Callable[[], str] = hub_home.token,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options, self._home, self._token, self._clock = options, home, token, clock
        self._implicit: tuple[float, str] | None = None
        self._lock = threading.Lock()

    @property
    def offline(self) -> bool:
        """Whether nothing may be asked."""
        return self._home().offline if self._options.offline is None else self._options.offline

    @property
    def cache(self) -> Path | None:
        """Where the Hugging Face cache is."""
        match self._options.cache:
            case "off":
                return None
            case "auto" | "":
                return Path(self._home().cache)
            case path:
                return Path(path)

    def endpoint(self, repo: str) -> str:
        """Without "/" at its end. Raises ConfigError."""
        one = matching(self._options.credentials, f"hf://{repo}")
        said = (one.endpoint if one else "") or self._options.endpoint
        try:
            return checked_endpoint(said or self._home().endpoint)
        except ValueError as e:
            name = "the endpoint of hf:// in the configuration" if said else "HF_ENDPOINT"
            raise ConfigError(f"{name}: {e}", remedy="Correct it.") from None

    def token(self, repo: str) -> tuple[str, str]:
        """It, and where it is from, for people; both "" for none. Raises SourceDenied, DependencyMissing."""
        one = matching(self._options.credentials, f"hf://{repo}")
        if one is not None and one.anonymous:
            return "", ""
        if one is not None and one.token_file:
            return _read(one.token_file), one.token_file
        if self._options.token_file:
            return _read(self._options.token_file), self._options.token_file
        token = self._found()
        return token, "HF_TOKEN or hf auth login" if token else ""

    def asked(self, repo: str) -> tuple[Asked, dict[str, str]]:
        """For error texts, and the headers to ask with."""
        token, source = self.token(repo)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return Asked(self.endpoint(repo), source), headers

    def _found(self) -> str:
        with self._lock:
            if self._implicit is None or self._clock() >= self._implicit[0] + _FRESH_S:
                self._implicit = (self._clock(), self._token())
            return self._implicit[1]


def checked_endpoint(text: str) -> str:
    """The address of a Hub, without "/" at its end. Raises ValueError, whose text repeats no credentials."""
    try:
        encoded = urls.encode(text)
        origin = urls.target(encoded).origin
        if origin.scheme not in ("http", "https") or not origin.host or "?" in text or "@" in text:
            raise ValueError
    except (ValueError, KeyError, WeightdError):
        raise ValueError("not a web address; write https://host, without user and password") from None
    return encoded.rstrip("/")


def _read(file: str) -> str:
    try:
        text = Path(file).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not a token"
        raise SourceDenied(
            f"the token file {file} cannot be read: {reason}", remedy="Check hf.token_file or [[credentials]]."
        ) from None
    if not text or any(c <= " " for c in text):
        raise SourceDenied(f"the token file {file} holds no token", remedy="Write the token alone into it.")
    return text
