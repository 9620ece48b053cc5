# make demo    install eqflow into .venv, train and sample small models, leave pictures in runs/demo
# make test    lint, types and the fast tests; what .ci/run runs
# make slow    every test, minutes
# make faults  inject every fault, and write what came of each into docs/survival.md
# make soak    an hour of train, kill, resume, sample, score; says what was lost
# make lint    style and types alone
# make format  rewrite the source in the house style
# make clean   remove .venv, caches and builds; runs and data stay

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
# The tests are many small tensors: more threads than this only get in each other's way.
TEST_THREADS ?= 1
# Processes that share the tests; a file's tests stay together, so that what they share is made once.
TEST_PROCESSES ?= 2
OLDER_TRITON := 3.6.0
SOAK_MINUTES ?= 60
# The first Python here that is 3.11 to 3.13; say PYTHON=… to choose another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; \
	then echo $$python; break; fi; done)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test slow faults soak lint format clean

help:
	@sed -n 's/^# //p' Makefile | sed -n '/^make/p'

# Installing is what takes long: a stamp says it was done for these dependencies.
$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "eqflow needs Python 3.11, 3.12 or 3.13; found none. Say make PYTHON=/path/to/python." >&2; \
		exit 2; \
	fi
	$(PYTHON) -m venv .venv

.venv/installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/installed
	$(BIN)/eqflow demo out=runs/demo

lint: .venv/installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: .venv/installed-dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# Kernels have to compile with the Triton of older torch as well, where there is one.
.venv/triton-$(OLDER_TRITON)/installed: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --no-deps --target $(@D) triton==$(OLDER_TRITON) \
		|| { echo "no Triton $(OLDER_TRITON) for this system: its test is left out" >&2; mkdir -p $(@D); }
	@touch $@

test: lint .venv/triton-$(OLDER_TRITON)/installed
	export OMP_NUM_THREADS=$(TEST_THREADS); \
	if [ -d .venv/triton-$(OLDER_TRITON)/triton ]; \
	then export EQFLOW_OLDER_TRITON=$(CURDIR)/.venv/triton-$(OLDER_TRITON); fi; \
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile

slow: .venv/installed-dev
	OMP_NUM_THREADS=$(TEST_THREADS) $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile -m ''

faults: .venv/installed-dev
	OMP_NUM_THREADS=$(TEST_THREADS) $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile \
		-m '' --timeout 1200 tests/faults --fault-table=docs/survival.md

soak: .venv/installed-dev
	PYTHONPATH=.:benchmarks $(BIN)/python benchmarks/soak.py $(SOAK_MINUTES)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
