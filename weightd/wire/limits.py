"""What both peers set gRPC's limits to."""

from __future__ import annotations

from typing import Final

MAX_REQUEST: Final = 1 << 20
MAX_ANSWER: Final = 64 << 20
"""Bytes of one message; a manifest of 200,000 files fits."""
MAX_METADATA: Final = 64 * 1024
"""Bytes (8 KiB unless told); holds any error's detail."""
METADATA: Final = [("grpc.max_metadata_size", MAX_METADATA), ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA)]
