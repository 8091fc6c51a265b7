"""A certificate authority of one run, and a certificate for its origin, made by the openssl command."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

from benchmarks.machine import Unable, need

DAYS = "2"
EXTENSIONS = """\
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
subjectAltName={names}
"""


class Certificate(NamedTuple):
    """PEM files: what the server shows, its key, and the authority that clients have to trust."""

    chain: Path
    key: Path
    ca: Path


def make(directory: Path, names: str = "IP:127.0.0.1,DNS:localhost") -> Certificate:
    """`names` as in openssl's subjectAltName. P-256, which every contender takes. Raises Unable without openssl."""
    binary = need("openssl", "openssl")
    ca, ca_key, chain, key = (directory / n for n in ("ca.pem", "ca.key", "server.pem", "server.key"))
    request, extensions = directory / "server.csr", directory / "server.ext"
    extensions.write_text(EXTENSIONS.format(names=names))
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    _run(binary, "req", "-x509", *curve, "-days", DAYS, "-subj", "/CN=weightd benchmark authority",
         "-keyout", str(ca_key), "-out", str(ca))  # fmt: skip
    _run(binary, "req", *curve, "-subj", "/CN=weightd benchmark origin", "-keyout", str(key), "-out", str(request))
    _run(binary, "x509", "-req", "-in", str(request), "-CA", str(ca), "-CAkey", str(ca_key), "-CAcreateserial",
         "-days", DAYS, "-extfile", str(extensions), "-out", str(chain))  # fmt: skip
    return Certificate(chain, key, ca)


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise Unable(f"openssl {command[1]} failed: {result.stderr.strip()[-500:]}")
