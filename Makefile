# What a developer runs. `make help` lists it.
.DEFAULT_GOAL := help
.PHONY: help setup test check coverage demo docs soak lint format clean

BIN := .venv/bin
# A file's tests stay in one process: they share engines and servers. The longest files start first (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder
# Tests that import neither vLLM nor torch and take a minute together.
QUICK := tests/test_*.py tests/pages tests/serving/core tests/serving/baselines tests/data \
  --ignore tests/data/profiling --ignore tests/data/workloads --ignore tests/data/test_shared_data.py

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## *' '{printf "make %-8s %s\n", $$1, $$2}'

setup:  ## make or renew .venv (quick when nothing has changed)
	@scripts/setup.sh

demo: setup  ## the main job, end to end, on real input: writes a report that a browser opens
	@$(BIN)/python scripts/demo.py

test: lint  ## every check there is: format, types, import contracts, tests
	@$(PYTEST) $(PARALLEL) --durations=12 $(PYTEST_ARGS)

check: lint  ## what is quick: format, types, import contracts, tests that need neither vLLM nor torch
	@$(PYTEST) $(PARALLEL) -q -m "not slow" $(QUICK) $(PYTEST_ARGS)

coverage: setup  ## the tests again, three times as slow: which lines they run
	@$(PYTEST) --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

docs: setup  ## the documentation as a site in site/, links checked; no network is needed
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

soak: setup  ## the scheduler under any sequence of calls, 100,000 steps: make soak SOAK_ARGS='--seed 1 --steps 1000'
	@$(BIN)/python scripts/soak.py $(SOAK_ARGS)

lint: setup  ## the quick checks of `make test`
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: setup  ## put the code into the one format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove .venv and every cache
	@rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage *.egg-info build dist site
	@find ecoserve tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
