"""For all tests."""

import signal


def pytest_configure() -> None:
    # A shell starts its background jobs with SIGINT ignored, and programs inherit that: those under test must not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
