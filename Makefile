# Every command that a contributor runs. Each does the set-up that it needs; `.ci/run` uses the same.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

# The first Python on this machine that is new enough; `make PYTHON=python3.13 test` names another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.10; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo "$$python" && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Tests wait for disks, clocks and processes a third of their time, so three suit two cores; `make WORKERS=8 unit` suits more.
WORKERS ?= 3

# Servers, disks and clocks are real, and sometimes somebody else has the machine: what fails is told,
# and run once more. What fails twice has failed. $(1) is pytest and what both runs need, $(2) the rest.
twice = $(1) $(2) || { code=$$?; [ $$code -eq 1 ] || exit $$code; \
		echo "the tests that failed above are run once more" >&2; \
		$(1) --last-failed --last-failed-no-failures none; }

.PHONY: help setup test lint types unit docs-test wheel-test test-stack run stack bench constraints clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "otel-audit needs Python 3.10 or newer, and none was found: install one, or name it by 'make PYTHON=/path/to/python3 ...'" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "'$(PYTHON) -m venv' failed (above): on Debian and Ubuntu, 'apt-get install python3-venv' provides it" >&2; exit 1; }
	$(PIP) install --quiet --upgrade --constraint constraints.txt pip
	$(PIP) install --quiet --constraint constraints.txt --group build
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --group dev --editable ".[fastapi,example]"
	@touch $@

setup: $(INSTALLED) ## make .venv as constraints.txt says (the other targets do it by themselves)

test: lint types unit wheel-test ## everything but tests/stack

lint: $(INSTALLED) ## ruff (rules and format) and the layers of the package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(INSTALLED) ## mypy, strict, on the package, its tests, examples, benchmarks and collector/
	$(BIN)/mypy

unit: $(INSTALLED) ## the tests and the documents' examples, with the coverage gate
	@# Not pytest-cov: in each of xdist's processes it would be the third that measures, and write the third file.
	$(BIN)/coverage erase
	$(call twice,$(BIN)/coverage run -m pytest,--numprocesses $(WORKERS) --dist worksteal)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	$(BIN)/coverage json --quiet
	$(BIN)/python tests/project/branches.py coverage.json

docs-test: $(INSTALLED) ## the examples of README.md and docs/ only
	$(BIN)/python -m pytest tests/project/test_documents.py

wheel-test: $(INSTALLED) ## the wheel, in an environment that has nothing else
	$(BIN)/python -m pytest tests/wheel

test-stack: $(INSTALLED) ## tests with the real Collector, Loki, Prometheus and tools; as root it installs what is missing
	tests/stack/setup
	$(PIP) install --quiet --constraint constraints.txt --group stack
	$(BIN)/python -m collector.stack.build
	$(call twice,$(BIN)/python -m pytest tests/stack)

run: $(INSTALLED) ## start the example application, and say where to click (ARGS="--port 8080")
	$(BIN)/python -m examples.agenthub $(ARGS)

stack: $(INSTALLED) ## Collector, Loki and Prometheus, and the example application shipping to them
	$(BIN)/python -m collector.stack

bench: $(INSTALLED) ## the benchmarks, as ratios within one run
	$(BIN)/python -m benchmarks

constraints: ## renew constraints.txt (needs all Pythons that are supported)
	$(PYTHON) tests/project/constraints.py python3.10 python3.11 python3.12 python3.13

clean: ## remove .venv and everything that the checks left behind
	rm -rf $(VENV) build dist .coverage .coverage.* coverage.json htmlcov .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find otel_audit tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
