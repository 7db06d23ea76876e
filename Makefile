# Everything a user or a developer runs. `make` alone lists it.
#
# Settings, from the environment or the command line (make demo STUDY=studies/mine):
#   VENV         where the virtual environment is made         (.venv)
#   PYTHON       the interpreter that makes it, 3.11 or newer   (python3)
#   TORCH        the torch requirement, installed first         (torch==2.13.0)
#   STUDY        the study that `make demo` makes               (studies/demo)
#   PYTEST_ARGS  more options for pytest                        (two at a time)
# UNMASK_CACHE, HF_HOME, HF_TOKEN and NO_COLOR reach unmask as they are.

VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
STUDY ?= studies/demo
PYTEST_ARGS ?= -n 2 --dist worksteal

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install demo test services test-fast bench lint format lock build clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## make the virtual environment from requirements.lock

# torch comes first and by version, so that this machine's own build (CPU or CUDA) serves; the rest comes by hash.
$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || \
	  { echo "make: no $(PYTHON) here. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1), unmask needs 3.11 or newer. Name another: make PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "make: $(PYTHON) cannot make a virtual environment (on Debian or Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PIP) install --quiet '$(TORCH)'
	$(PIP) install --quiet --require-hashes --no-deps -r requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)  ## run a whole study on the embedded model and say where its report is
	$(BIN)/unmask run --preset demo $(STUDY)
	@test -f $(STUDY)/report.html && echo "The report: $(abspath $(STUDY))/report.html"

test: lint services  ## everything: lint, types, layers, and all tests with the slow ones
	$(BIN)/python -m pytest $(PYTEST_ARGS)

services:
	@tools/sshd.sh

test-fast: $(STAMP)  ## the tests that load no real model
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

BENCHMARKS ?= collect four_readings generate streaming_pca store judge steer
BENCH_ARGS ?=

bench: $(STAMP)  ## the benchmarks of collection, judging and steering, one after the other (BENCH_ARGS=--quick for a look)
	@for name in $(BENCHMARKS); do \
	  echo "== $$name"; $(BIN)/python benchmarks/$$name.py $(BENCH_ARGS) || exit 1; \
	done

lint: $(STAMP)  ## ruff, formatting, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --python $(VENV)
	$(BIN)/lint-imports --no-logo

format: $(STAMP)  ## let ruff mend and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## write requirements.lock anew from pyproject.toml (needs uv)
	tools/lock.sh

build: $(STAMP)  ## build the wheel into dist/
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

clean:  ## remove build outputs and caches; the environment and studies stay
	rm -rf build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage htmlcov src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
