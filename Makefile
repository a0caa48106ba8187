PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: demo test lint coverage mutation format docs bench bench-env clean help

demo: .venv/.demo-installed ## reconstruct an undersampled brain scan, with its uncertainty
	$(BIN)/potentia demo

test: lint ## lint, check types, then run the tests
	@$(BIN)/pytest -n $(JOBS)

lint: .venv/.dev-installed ## ruff, mypy and pyright on the package
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	cd src && ../$(BIN)/mypy --config-file ../pyproject.toml potentia
	$(BIN)/basedpyright --pythonpath $(BIN)/python

coverage: .venv/.dev-installed ## the tests, and which branches they take: htmlcov/index.html
	$(BIN)/pytest -n $(JOBS) --cov --cov-branch --cov-report=term:skip-covered --cov-report=html

mutation: .venv/.dev-installed ## plant faults in the algebra and the Metropolis rule, and see which tests notice
	$(PIP) install -q -c constraints.txt mutmut
	$(BIN)/python benchmarks/mutation.py

format: .venv/.dev-installed ## put imports and layout in order
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: .venv/.dev-installed ## the documentation as a site: docs/_build/html/index.html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

bench: .venv/.dev-installed ## time steps, energies, sums, sampling, the store, the import and how they scale
	$(BIN)/python benchmarks/imports.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/learned.py
	$(BIN)/python benchmarks/composition.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/scaling.py

bench-env: .venv-bench/.installed ## the peers that benchmarks compare with, in .venv-bench

clean: ## remove the environment, caches and whatever the demonstration wrote
	rm -rf .venv .venv-bench .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage build dist docs/_build demo.zarr demo.png
	rm -rf src/*.egg-info *.egg-info src/.mypy_cache .coverage.* htmlcov .benchmarks
	find src annealers docs energies inference io likelihoods tests -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 20

# Reinstalled only when what to install has changed. The development install holds all that the demonstration needs.
.venv/.demo-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e '.[demo]'
	@touch $@

.venv/.dev-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch .venv/.demo-installed $@

.venv-bench/.installed: benchmarks/peers.txt pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip --disable-pip-version-check install -q -r benchmarks/peers.txt -e .
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Potentia needs Python 3.11 or newer, '$(PYTHON)' is $$($(PYTHON) --version 2>&1): try make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
