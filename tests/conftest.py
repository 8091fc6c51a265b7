"""For all tests."""

import os
import signal


def pytest_configure() -> None:
    # A shell starts its background jobs with SIGINT ignored, and programs inherit that: those under test must not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # All origins of the tests are on this host: no proxy knows them.
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            del os.environ[name]
