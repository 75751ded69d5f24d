# Every target creates what it needs: a fresh clone needs `make test` and nothing before it.
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
ARGS   ?=

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

# Kept bytecode, whatever the caller's environment says: every process imports torch, which takes seconds longer without.
unexport PYTHONDONTWRITEBYTECODE

# JOBS workers share the cores, so each computes on one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help venv demo test quick test-all lint types format bench train gpu zoo clean

help: ## print every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# torch comes first and pinned, or pip fetches gigabytes of CUDA libraries; setuptools with it,
# so that the editable install builds without a second download. Python compiles what it imports, not all of it here:
# half the time.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@

venv: $(STAMP) ## create .venv and install everything into it

demo: $(STAMP) ## train residual, hc and mhc side by side and show losses and gains
	$(BIN)/python -m mhc_compile demo $(ARGS)

test: lint ## lint, type-check and run all tests but the slow ones
	$(BIN)/mypy & types=$$!; $(PYTEST) -m "not slow" $(ARGS); tests=$$?; wait $$types && exit $$tests

quick: lint ## lint and run the tests that compile nothing: the inner loop
	$(PYTEST) -m "not slow and not compiles" $(ARGS)

test-all: lint types ## the same, with the slow tests and more random networks
	MHC_EXAMPLES=$${MHC_EXAMPLES:-100} $(PYTEST) $(ARGS)

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## type-check
	$(BIN)/mypy

format: $(STAMP) ## mend style and formatting where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## measure speed and memory
	$(BIN)/python -m bench $(ARGS)

train: $(STAMP) ## measure training and inference beside other libraries; installs these
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[peers]"
	$(BIN)/python -m bench.train $(ARGS)

gpu: ## check and time the kernels on a GPU; ARGS=--dry-run without one
	bash bench/gpu.sh $(ARGS)

zoo: $(STAMP) ## run the model zoo; installs the libraries it takes models from
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[zoo]"
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.zoo --jobs $(JOBS) $(ARGS)

clean: ## remove .venv and everything built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
