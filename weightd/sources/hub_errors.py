"""What a Hub's refusals mean; its own codes go before its statuses (huggingface_hub, utils/_http.py)."""

from __future__ import annotations

from typing import NamedTuple

from weightd.core.errors import (
    RepoDisabled,
    RepoGated,
    RepoNotFound,
    RevisionNotFound,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    TokenRefused,
    WeightdError,
)
from weightd.core.hub_ref import HubRef
from weightd.core.ranges import is_transient
from weightd.sources.asker import Told
from weightd.sources.quota import parse_limit

_DISABLED = "Access to this resource is disabled."
_INVALID = ("invalid credentials", "invalid user token", "user access token", "oauth token", "token is expired")


class Asked(NamedTuple):
    """Of whom, with which token: `token_of` says where it is from, "" for none."""

    endpoint: str
    token_of: str


def refusal(told: Told, ref: HubRef, asked: Asked) -> WeightdError:
    """The error for an answer that is no success. The Hub does not tell a private repository from none."""
    code, text = told.headers.get("x-error-code", ""), told.headers.get("x-error-message", "")[:300]
    page = f"{asked.endpoint}/{ref.repo}"
    status, said = told.status, f" ({text})" if text else ""
    if status == 429:
        return _busy(told, asked)
    if status == 401 and asked.token_of and (not code or any(m in text.lower() for m in _INVALID)):
        return TokenRefused(
            f"{asked.endpoint} refuses the token of {asked.token_of}{said}",
            remedy="It is expired or revoked, or of another Hub: log in again (hf auth login), or give the token of "
            "this endpoint as hf.token_file or in [[credentials]].",
        )
    if code == "GatedRepo":
        return RepoGated(f"{ref.repo} is gated{said}", remedy=_accept(page, asked))
    if text == _DISABLED:
        return RepoDisabled(f"{ref.repo} is disabled: {asked.endpoint} gives nobody access", remedy=f"See {page}.")
    if code == "RevisionNotFound":
        return RevisionNotFound(f"{ref.repo} has no revision {ref.revision!r}", remedy=f"See {page}/tree/main.")
    if code == "EntryNotFound":
        return SourceNotFound(f"{ref.repo} has no {ref.path!r} at {ref.revision!r}", remedy=f"See {page}/tree/main.")
    if code == "RepoNotFound" or status in (401, 404, 410):
        return _no_repo(ref, asked, said)
    if status in (403, 451):
        return SourceDenied(
            f"{asked.endpoint} answered {status} for {ref.repo}{said}",
            remedy="Check that the token may read this repository (a fine-grained one names those it may).",
        )
    if is_transient(status):
        return SourceUnavailable(f"{asked.endpoint} answered {status} for {ref.repo}{said}", remedy="Try again later.")
    return SourceUnavailable(
        f"{asked.endpoint} answered {status} for {ref.repo}{said}",
        remedy="Check that hf.endpoint or HF_ENDPOINT is a Hugging Face Hub or a mirror of one.",
    )


def _accept(page: str, asked: Asked) -> str:
    if not asked.token_of:
        return f"Accept the conditions at {page}, then give a token: HF_TOKEN, hf auth login, or hf.token_file."
    return f"Accept the conditions at {page} as the user of the token of {asked.token_of}, or give another's token."


def _no_repo(ref: HubRef, asked: Asked, said: str) -> WeightdError:
    if asked.token_of:
        text = f"{ref.repo} does not exist, or the user of the token of {asked.token_of} may not see it"
        return RepoNotFound(f"{text}{said}", remedy=f"Check the name at {asked.endpoint}, or give another's token.")
    return RepoNotFound(
        f"{ref.repo} does not exist, or is private{said}",
        remedy="Check the name; for a private repository give a token: HF_TOKEN, hf auth login, or hf.token_file.",
    )


def _busy(told: Told, asked: Asked) -> WeightdError:
    limit = parse_limit(told.headers)
    what = f"the quota of {limit.bucket} is spent for {limit.reset:.0f} s" if limit is not None else "too many requests"
    more = "" if asked.token_of else " With a token the quota is larger: HF_TOKEN, hf auth login, or hf.token_file."
    error = SourceUnavailable(f"{asked.endpoint} answered 429: {what}", remedy=f"Try again later.{more}")
    error.retry_after = limit.reset if limit is not None else None
    return error
