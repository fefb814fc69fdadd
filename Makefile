# make help lists the targets. Everything runs in .venv; PYTHON=… chooses the interpreter that makes it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO_OUT ?= demo-out
BENCH_OUT ?= bench-out
SEED := $(or $(SEED),$(shell od -An -N4 -tu4 /dev/urandom | tr -d ' '))

.PHONY: help setup demo test test-all test-faults lint format bench results docs lock clean

help: ## what the targets do
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: $(STAMP) ## create .venv with everything, once

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "quantune needs Python 3.11 or later, $(PYTHON) is %d.%d; choose another with: make setup PYTHON=python3.11" % v[:2])'
	@start=$$SECONDS; \
	echo "creating $(VENV) with $$($(PYTHON) --version)"; \
	$(PYTHON) -m venv $(VENV); \
	echo "installing torch 2.13 (the CPU build is enough: set PIP_EXTRA_INDEX_URL to an index that has it)"; \
	$(PIP) install -q 'torch>=2.13,<2.14'; \
	echo "installing quantune and its tools"; \
	$(PIP) install -q -e '.[dev]'; \
	touch $(STAMP); \
	echo "ready after $$((SECONDS - start)) s: $(BIN)/quantune-compile --help"

demo: setup ## search the best int8 MobileNetV2 for this processor; results in demo-out
	$(BIN)/quantune-compile builtin:mobilenet_v2_shapes --calib "builtin:shapes?count=2000" --eval "builtin:shapes?count=2000" \
	  --target cpu --max-trials 16 --max-drop 0.01 --objective latency -o $(DEMO_OUT)

test: lint ## lint, types, and all tests but the slow ones
	$(BIN)/pytest -q -m "not slow"

test-all: lint ## every test, the slow ones too; hypothesis draws anew, SEED=… repeats what it drew
	@echo "hypothesis draws from seed $(SEED); the same again: make test-all SEED=$(SEED)"
	$(BIN)/pytest -q --hypothesis-profile=random --hypothesis-seed=$(SEED)

test-faults: setup ## break children, files and disks on purpose; prints what was tried and held; FAULTS=full: hours
	QUANTUNE_FAULTS=$(FAULTS) $(BIN)/pytest -q test/faults

lint: setup ## ruff and pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

format: setup ## rewrite the sources as ruff formats them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: setup ## measure trials, a whole space and the search algorithms; long, wants an idle machine
	@mkdir -p $(BENCH_OUT)
	$(BIN)/python test/benchmark/trial_cost.py
	$(BIN)/python test/benchmark/table.py --out $(BENCH_OUT)/table.json
	$(BIN)/python test/benchmark/search_replay.py $(BENCH_OUT)/table.json

results: setup ## write docs/results.md again from the numbers in docs/results
	$(BIN)/python test/benchmark/results.py

docs: setup ## regenerate docs/passes.md from the passes
	$(BIN)/quantune-opt --list-passes --markdown > docs/passes.md.new
	mv docs/passes.md.new docs/passes.md

lock: setup ## renew requirements-demo.lock, the exact packages of the demo's container
	$(PIP) install -q --dry-run --ignore-installed --report pip-report.json ".[compile]"
	$(BIN)/python third_party/lock.py < pip-report.json > requirements-demo.lock.new
	mv requirements-demo.lock.new requirements-demo.lock
	rm pip-report.json

clean: ## remove what the other targets made, .venv included
	rm -rf $(VENV) $(DEMO_OUT) build *.egg-info .pytest_cache .ruff_cache .hypothesis test/lit/Output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
