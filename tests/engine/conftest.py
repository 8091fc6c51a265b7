"""Failed assertions of helpers say what differed, too."""

import pytest

pytest.register_assert_rewrite(
    "tests.engine.machine_checks",
    "tests.engine.machine_driver",
    "tests.engine.machine_orders",
    "tests.engine.machine_rules",
)
