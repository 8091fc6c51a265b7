"""Generate weightd/wire/gen from proto/, or with --check say whether what is committed is current.

protoc maps the virtual folder weightd/wire/gen onto proto/weightd/v1, so that the generated modules import each other
by their real package path and need no rewriting.
"""

from __future__ import annotations

import filecmp
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
GEN = Path("weightd/wire/gen")
FILES = ("weightd_pb2.py", "weightd_pb2.pyi", "weightd_pb2_grpc.py")


def generate(out: Path) -> None:
    """Write the generated modules below `out`; exits with protoc's status when it fails."""
    status = protoc.main(
        [
            "protoc",
            f"-I{GEN}={ROOT / 'proto/weightd/v1'}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            str(GEN / "weightd.proto"),
        ]
    )
    if status:
        sys.exit(status)


def main() -> None:
    if sys.argv[1:] != ["--check"]:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as tmp:
        generate(Path(tmp))
        _, differ, missing = filecmp.cmpfiles(Path(tmp) / GEN, ROOT / GEN, FILES, shallow=False)
    if differ or missing:
        sys.exit(f"generated gRPC code is not current: {', '.join([*differ, *missing])}; run `make proto`")
    print("generated gRPC code is current")


if __name__ == "__main__":
    main()
