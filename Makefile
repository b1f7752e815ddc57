# `make demo` and `make test` are the README's two commands: each sets everything up by itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(wildcard plugins/rib-plugin-*)
STAMP := $(VENV)/.installed

.PHONY: demo test fast lint types clean

# Versions are those of constraints.txt; `make CONSTRAINTS= …` takes the newest.
CONSTRAINTS ?= -c constraints.txt

$(STAMP): pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip $(CONSTRAINTS)
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable . $(PLUGINS:%=--editable %) --group dev
	touch $@

demo: $(STAMP)
	$(BIN)/rib-harness run --method lwf

test: $(STAMP)
	$(BIN)/python -m pytest

fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) dist
