# What a developer or a new user types. Everything that a target needs is installed by scripts/setup.
SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: help run setup test check unit root bench vm clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*##/  make \1\t/p' $(MAKEFILE_LIST)

run:  ## set up what is missing, then run a container under limits and show what it saw
	@scripts/setup run
	@scripts/demo $(BIN)

setup:
	@scripts/setup test

test: setup  ## everything that must hold: checks, unit tests, then real containers as root with real clients
	$(MAKE) --no-print-directory check
	TARE_MUST_RUN=1 $(PYTEST) -q tests/unit tests/root

check:  ## ruff, mypy --strict, the import law
	$(BIN)/ruff check src tests scripts
	$(BIN)/mypy --no-error-summary
	PYTHONPATH=src $(BIN)/lint-imports --no-cache | tail -n 3

unit:  ## no root, no network, seconds
	$(PYTEST) -q tests/unit

root:  ## real containers
	TARE_MUST_RUN=1 $(PYTEST) -q tests/root

bench: setup  ## medians beside docker and podman, where they are installed
	$(BIN)/python tests/bench/bench.py

vm: setup  ## the cgroup v2 subset in a throw-away virtual machine (minutes; outside CI)
	scripts/vm-tests

clean:  ## what the build made; images and containers stay
	rm -rf $(VENV) build *.egg-info src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
