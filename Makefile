# `make demo` and `make test` are the README's two commands: each sets everything up by itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo -n)
PLUGINS := $(wildcard plugins/rib-plugin-*)
STAMP := $(VENV)/.installed

.PHONY: demo test fast faults lint types docs clean chromium

# Versions are those of constraints.txt; `make CONSTRAINTS= …` takes the newest.
CONSTRAINTS ?= -c constraints.txt

# Python compiles a module when it is first imported; pip would compile all of torch before.
$(STAMP): pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip $(CONSTRAINTS)
	$(BIN)/python -m pip install --quiet --no-compile $(CONSTRAINTS) --editable . $(PLUGINS:%=--editable %) --group dev
	touch $@

demo: $(STAMP)
	$(BIN)/rib-harness run --method lwf

# A test opens the report's page in a browser; without one it is skipped, with a reason.
chromium:
	@command -v chromium >/dev/null || \
	{ $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends chromium; } \
	>/dev/null 2>&1 || echo "chromium cannot be installed here: the page's test will be skipped"

# One worker a core; one that runs dry takes over half of what is left to another, so that files stay
# together, and what they share is made once.
JOBS ?= logical
# glibc gives large blocks back to the system and takes them again at each step of a net; here it
# keeps them.
PYTEST := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 $(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 8 --dist worksteal

test: $(STAMP) chromium
	$(PYTEST)

fast: $(STAMP)
	$(PYTEST) -m "not slow"

# Hundreds of faults on tiny runs, about ten minutes on two cores; CI runs a part of them.
faults: $(STAMP)
	$(BIN)/python tests/faults

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m rib_harness.registry --check

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) dist docs/_build docs/components
