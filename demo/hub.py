"""A Hub of Hugging Face with the files of one directory as a private repository, and its CDN, which has the weights.

Run as `HF_TOKEN=… python -m demo.hub DIR ORG/NAME`: the token is the only good one. It prints its address, answers each
line of standard input with its counters as JSON, and ends when standard input ends. The servers are those of the tests.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.support.hub import Hub

USER = "demo"


def main() -> None:
    model, name = Path(sys.argv[1]), sys.argv[2]
    with Hub() as hub:
        fill(hub, model, name, os.environ["HF_TOKEN"])
        print(json.dumps({"endpoint": hub.endpoint}), flush=True)
        for _ in sys.stdin:
            print(json.dumps(counters(hub)), flush=True)


def fill(hub: Hub, model: Path, name: str, token: str) -> None:
    """One private repository, of which only the weights are in LFS."""
    hub.token(token, USER)
    repo = hub.repo(name)
    repo.private, repo.readers = True, {USER}
    repo.commit(model)


def counters(hub: Hub) -> dict[str, int]:
    """Bytes are those of the CDN."""
    return {
        "with_token": sum("authorization" in asked.headers for asked in hub.requests),
        "at_cdn": len(hub.cdn.requests),
        "at_cdn_with_token": len(hub.cdn.violations),
        "bytes_sent": hub.cdn.bytes_sent,
    }


if __name__ == "__main__":
    main()
