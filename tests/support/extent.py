"""How far tests go: `make test` as far as a quarter of an hour allows, `make long` as far as is promised."""

from __future__ import annotations

import os

LONG = os.environ.get("WEIGHTD_LONG") == "1"
"""Set by `make long`, which runs what is marked `long`: whatever uses this."""
