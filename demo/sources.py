"""Where the model comes from: an HTTP origin, an S3 server or a Hub of Hugging Face, each started by `start`."""

from __future__ import annotations

import secrets
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from demo.processes import Child, Children, DemoError

RATE = 40e6
"""Bytes per second of a fetch: slow enough to see the progress bar."""
LIMITED = f"""
[fetch]
max_rate = {RATE:.0f}
"""
REPO = "sentence-transformers/all-MiniLM-L6-v2"


class Source(NamedTuple):
    """A source that runs. `environment` and `config` are what the daemon, and no other, is told of it.

    `counted` asks it what it did; returns the bytes that it sent and a sentence.
    """

    name: str
    child: Child
    ref: str
    limit: str
    counted: Callable[[], tuple[int, str]]
    environment: Mapping[str, str] = {}
    config: str = ""
    about: str = ""
    """One line more, for its start."""
    repo: str = ""
    """Its name at the Hub, if it has one."""


def http(children: Children, model: Path, home: Path) -> Source:
    child = children.python("origin", ["demo.origin", str(model), "--rate", str(RATE)])
    url = child.answer()["url"]

    def counted() -> tuple[int, str]:
        told = child.asked({"do": "stats"})
        return told["bytes_sent"], f"It was asked {told['requests']} times"

    return Source("origin", child, url, f"the origin is held to {RATE / 1e6:.0f} MB/s", counted)


def s3(children: Children, model: Path, home: Path) -> Source:
    """The daemon finds the server and its key in its environment, as AWS's tools do."""
    from demo.s3 import start

    key, secret = "demo", secrets.token_hex(16)
    child, endpoint, ref, counted = start(children, model, home, key, secret)
    environment = {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    about = f"SeaweedFS at {endpoint}; the daemon alone has its key"
    return Source("S3", child, ref, _LIMIT, counted, environment, LIMITED, about)


def hub(children: Children, model: Path, home: Path) -> Source:
    """A private repository, whose token is in the daemon's environment alone."""
    token = "hf_" + secrets.token_hex(17)
    child = children.python("Hub", ["demo.hub", str(model), REPO], more={"HF_TOKEN": token})
    endpoint = child.answer()["endpoint"]
    refused = status(f"{endpoint}/api/models/{REPO}")
    if refused != 401:
        raise DemoError(f"the Hub answered {refused} to a request without a token, not 401")

    def counted() -> tuple[int, str]:
        told = child.asked({"do": "stats"})
        if told["at_cdn_with_token"]:
            raise DemoError(f"{told['at_cdn_with_token']} requests at the CDN had the token")
        return told["bytes_sent"], (
            f"The Hub was asked {told['with_token']} times with the token, its CDN {told['at_cdn']} times without it"
        )

    # A home of its own: neither the user's token nor what is in the user's cache.
    environment = {"HF_ENDPOINT": endpoint, "HF_TOKEN": token, "HF_HOME": str(home / "hf")}
    about = f"at {endpoint}; private: {refused} without the token of the daemon"
    return Source("Hub", child, f"hf://{REPO}", _LIMIT, counted, environment, LIMITED, about, REPO)


SOURCES: Mapping[str, Callable[[Children, Path, Path], Source]] = {"http": http, "s3": s3, "hf": hub}
TITLES = {"http": "An HTTP origin", "s3": "An S3 server", "hf": "A Hugging Face Hub"}
_LIMIT = f"fetch.max_rate holds the daemon to {RATE / 1e6:.0f} MB/s"


def status(url: str) -> int:
    """Of the answer to a GET without credentials."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as e:
        return e.code
