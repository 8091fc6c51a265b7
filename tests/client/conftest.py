from tests.rpc.conftest import daemon, process, short

__all__ = ["daemon", "process", "short"]
