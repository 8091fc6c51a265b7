"""An S3 server with the files of one directory in a bucket, each with its CRC64NVME: SeaweedFS.

Run as `python -m demo.s3 DIR HOME`, with the keys that it is to have in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. It
prints the model's ref and its own endpoint, and ends when standard input ends. Its files are below HOME.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import Unable
from benchmarks.weed import serve

BUCKET = "models"
PREFIX = "all-MiniLM-L6-v2/"


def main() -> int:
    model, home = Path(sys.argv[1]), Path(sys.argv[2])
    home.mkdir()
    try:
        keys = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        with serve(home, home / "volumes", *keys) as endpoint:
            upload(model, endpoint)
            print(json.dumps({"url": f"s3://{BUCKET}/{PREFIX}", "endpoint": endpoint}), flush=True)
            sys.stdin.read()
    except Unable as e:
        print(json.dumps({"error": str(e)}), flush=True)
        return 1
    return 0


def upload(model: Path, endpoint: str) -> None:
    client = _client(endpoint)
    client.create_bucket(Bucket=BUCKET)
    for path in sorted(p for p in model.rglob("*") if p.is_file()):
        key = PREFIX + path.relative_to(model).as_posix()
        with path.open("rb") as body:
            client.put_object(Bucket=BUCKET, Key=key, Body=body, ChecksumAlgorithm="CRC64NVME")


def _client(endpoint: str) -> Any:
    import botocore.session
    from botocore.config import Config

    config = Config(s3={"addressing_style": "path"})
    return botocore.session.get_session().create_client("s3", "us-east-1", endpoint_url=endpoint, config=config)


if __name__ == "__main__":
    sys.exit(main())
