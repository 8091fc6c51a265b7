"""What the process asks of the kernel and the interpreter, and what it measures of its own loop."""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
from typing import Final

log = logging.getLogger("weightd.daemon")

LAG_WARNING_S: Final = 0.25
SWITCH_INTERVAL_S: Final = 0.001
"""CPython's default of 5 ms is what an RPC waits for each busy thread; threads here hold the GIL only for moments."""


def raise_limits() -> None:
    """Open files up to the hard limit: connections, segments and blobs each need one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sys.setswitchinterval(SWITCH_INTERVAL_S)


async def watch_lag(period: float = 0.5) -> None:
    """Warn when the event loop was held up for longer than LAG_WARNING_S. Ends when cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        before = loop.time()
        await asyncio.sleep(period)
        lag = loop.time() - before - period
        if lag > LAG_WARNING_S:
            log.warning("the event loop was held up for %.0f ms", lag * 1000)
