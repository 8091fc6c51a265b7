"""grpc, imported with its own fork handlers off, unless the user asked for them or imported grpc before weightd.

While a lease is held a thread is always inside gRPC, and then the handlers do nothing but print a line at each fork;
and where they run between two calls of other threads, the forked child can die of SIGSEGV in them (grpcio 1.85: one
fork of about 100). What takes their place is in weightd.client.forks.
"""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "GRPC_ENABLE_FORK_SUPPORT"

if VARIABLE in os.environ:
    import grpc as grpc
else:
    # Read once, at the import; not left in the environment for children and other libraries.
    os.environ[VARIABLE] = "0"
    try:
        import grpc as grpc
    finally:
        del os.environ[VARIABLE]
