"""What both clients' channels and calls have in common."""

from __future__ import annotations

from typing import Any, Final

from weightd.wire.limits import MAX_ANSWER, METADATA

ANSWER_LIMIT: Final = 30.0
"""Seconds for what the daemon answers from its memory."""

OPTIONS: Final[list[tuple[str, Any]]] = [
    ("grpc.max_receive_message_length", MAX_ANSWER),
    *METADATA,
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    # Each client connects by itself, and soon again: the defaults wait from 1 s up to 2 minutes after a failure.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
