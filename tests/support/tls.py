"""A real certificate, made by the openssl command."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_certificate(file: Path) -> Path:
    """Key and self-signed certificate for 127.0.0.1 in one PEM file, which is its own authority."""
    key, cert = file.with_suffix(".key"), file.with_suffix(".crt")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", key, "-out", cert),
        ],
        check=True,
        capture_output=True,
    )
    file.write_bytes(key.read_bytes() + cert.read_bytes())
    return file
