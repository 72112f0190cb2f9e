# The words of this project: `make demo`, `make test`, `make check`, `make bench`, `make format`.
# Each makes the environment (.venv) first, once, and again when pyproject.toml or constraints.txt change.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help environment demo test explore check format bench

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "geoseg needs Python 3.11 or newer; name it: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

environment: $(READY)  ## Make the environment in .venv.

demo: $(READY)  ## Predict the demo scene into out/.
	$(BIN)/geoseg predict demo/banepa.tif --out out

test: $(READY)  ## Run the tests.
	$(BIN)/python -m pytest -n 2

explore: $(READY)  ## Run the tests of the laws on new random examples.
	$(BIN)/python -m pytest -n 2 --hypothesis-profile explore

check: $(READY)  ## Check format, lint, types, layers and the listing of rooms.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -k listing tests/test_startup.py

format: $(READY)  ## Format and repair what can be repaired.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## Measure: speed and memory of predict and of each network, error of stitching, speed of vectorize and of reading chips.
	$(BIN)/python -m benchmarks.predict
	$(BIN)/python -m benchmarks.stitch
	$(BIN)/python -m benchmarks.vectorize
	$(BIN)/python -m benchmarks.cluster
	$(BIN)/python -m benchmarks.networks --table docs/networks.md
	$(BIN)/python -m benchmarks.train
