# Two commands do everything on a machine with Python 3.11, git and make: `make demo` and `make test`.
#
# On a machine without CUDA, PIP_ARGS saves gigabytes, e.g.
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
PYTEST_ARGS ?=
# Most tests with real processes wait for them, so two at a time take less than half the time, on one core too.
TEST_WORKERS ?= 2
BENCH_ARGS ?=

.PHONY: demo test lint bench bench-fleet bench-metrics fuzz protos dashboards clean

demo: $(VENV)/.installed  ## a fleet on this machine forgets a class of real images; writes results/demo.html
	mkdir -p results
	$(BIN)/clue-coordinator demo --report results/demo.html $(DEMO_ARGS)

test: $(VENV)/.installed  ## all tests, the ones with real processes included
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(VENV)/.installed  ## ruff, mypy --strict, import contracts, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sdk/clue protos/clue_protocol device_agent/clue_agent coordinator/clue_coordinator
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check
	$(BIN)/python coordinator/dashboards/generate.py --check

bench: $(VENV)/.installed  ## unlearning methods beside Retrain; writes results/bench.json
	mkdir -p results
	$(BIN)/python benchmarks/digits.py --json results/bench.json $(BENCH_ARGS)

bench-fleet: $(VENV)/.installed  ## 1,000 and 10,000 simulated devices; BENCH_ARGS=--quick for 100 and 1,000
	mkdir -p results
	$(BIN)/python benchmarks/fleet.py --json results/bench-fleet.json $(BENCH_ARGS)

fuzz: $(VENV)/.installed  ## 1,000,000 damaged documents through every parser that meets strangers
	mkdir -p results
	$(BIN)/python benchmarks/fuzz.py --json results/fuzz.json $(BENCH_ARGS)

bench-metrics: $(VENV)/.installed  ## what a scrape costs at 10,000 devices; writes results/bench-metrics.json
	mkdir -p results
	$(BIN)/python benchmarks/metrics.py --json results/bench-metrics.json $(BENCH_ARGS)

dashboards: $(VENV)/.installed  ## regenerate coordinator/dashboards/*.json
	$(BIN)/python coordinator/dashboards/generate.py

protos: $(VENV)/.installed  ## regenerate protos/clue_protocol/v1
	$(BIN)/python protos/generate.py

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing pinned dependencies into $(VENV) (once)"
	@# torch first: a build that is there already is then not replaced by a larger one.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist results .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
