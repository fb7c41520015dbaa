# make demo   search, retrain and export on scikit-learn's digits, in .venv
# make test   the test suite, in .venv
# make lint   formatting, style and types; versions are pinned in setup.cfg
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

$(BIN)/nas: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.test: $(BIN)/nas
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

demo: $(BIN)/nas
	$(BIN)/nas demo --out runs/demo

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

lint: $(VENV)/.test
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

bench: $(BIN)/nas
	$(BIN)/python -m benchmarks.cost_exactness
	$(BIN)/python -m benchmarks.masking_growth
	$(BIN)/python -m benchmarks.flat_memory
	$(BIN)/python -m benchmarks.search_budgets
	$(BIN)/python -m benchmarks.search_quality --data digits
	$(BIN)/python -m benchmarks.full_supergraphs
	$(BIN)/python -m benchmarks.zoo
	$(BIN)/python -m benchmarks.predictor_pretraining
	$(BIN)/python -m benchmarks.early_stopping
	$(BIN)/python -m benchmarks.sample_efficiency
	$(BIN)/python -m benchmarks.supergraph_step
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.evolution --part optimum
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.evolution --part settings
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.evolution --part speed

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
