# Every target prints one line in `make help`. PYTHON names the interpreter the environment is made with.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Paths may hold spaces, so make never sees one: every recipe works from the checkout with relative paths.
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-text test check faults bench gpu members compose clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: this Python lacks venv; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: requirements/demo.lock pyproject.toml | $(BIN)/python
	$(PIP) install -q -r requirements/demo.lock
	$(PIP) install -q --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements/dev.lock pyproject.toml | $(BIN)/python
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: the lock for development is for Python 3.11 and 3.12; remove .venv, then make setup PYTHON=python3.12"; exit 1; }
	$(PIP) install -q torch==2.13.0
	$(PIP) install -q -r requirements/dev.lock
	$(PIP) install -q --no-deps -e .
	@touch $@ $(VENV)/.demo

setup: $(VENV)/.dev ## Make .venv with everything (training, tests, linters)

demo: $(VENV)/.demo ## Serve the digits cascade and print every route side by side
	$(BIN)/committee demo

demo-text: $(VENV)/.demo ## Plan, render and serve a cascade of texts, the tokenizer in the server
	$(BIN)/committee demo --text

test: setup ## Run every test but the slow ones, in as many processes as there are cores (four at most)
	$(BIN)/python -m pytest -m "not slow and not gpu and not alone" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 25
	$(BIN)/python -m pytest -m "alone and not slow and not gpu"

check: setup ## Lint, types, layers, size and shape of the tree, manifests for Kubernetes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.architecture
	$(BIN)/python -m pytest -q -m "not triton" tests/test_kubernetes.py

faults: setup ## Try every fault of the matrix on the served product and write docs/reliability.md
	$(BIN)/python -m tests.faults --write docs/reliability.md

members: setup ## Train the digits members where they are not up to date, plan and render their cascade
	$(BIN)/python -m perf digits
	$(BIN)/committee record digits_small digits_medium digits_large --data digits:plan -o build/digits_plan.npz
	$(BIN)/committee plan build/digits_plan.npz --name digits_cascade --max-mean-cost-share 0.166666 --reference digits_large --epsilon 0.02 --delta 0.1 -o build/digits_cascade.json
	$(BIN)/committee render build/digits_cascade.json

compose: $(VENV)/.demo ## Render model_repository/ for docker compose into build/compose
	$(BIN)/committee render --standalone --output build/compose/model_repository

bench: setup ## Measure every route side by side in ten minutes and write perf/RESULTS.md
	$(BIN)/python -m perf run

gpu: setup ## Measure cascades of large networks on an NVIDIA GPU and write perf/GPU.md (docs/gpu.md)
	$(BIN)/python -m perf gpu

clean: ## Remove everything that was made here
	rm -rf $(VENV) build
