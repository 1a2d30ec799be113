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
BENCH_ARGS ?=

.PHONY: demo test lint bench bench-fleet protos clean

demo: $(VENV)/.installed  ## a fleet on this machine forgets a class of real images; writes results/demo.html
	mkdir -p results
	$(BIN)/clue-coordinator demo --report results/demo.html $(DEMO_ARGS)

test: $(VENV)/.installed  ## all tests, the ones with real processes included
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed  ## ruff, mypy --strict, import contracts, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sdk/clue protos/clue_protocol device_agent/clue_agent coordinator/clue_coordinator
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check

bench: $(VENV)/.installed  ## unlearning methods beside Retrain; writes results/bench.json
	mkdir -p results
	$(BIN)/python benchmarks/digits.py --json results/bench.json $(BENCH_ARGS)

bench-fleet: $(VENV)/.installed  ## 1,000 and 10,000 simulated devices; BENCH_ARGS=--quick for 100 and 1,000
	mkdir -p results
	$(BIN)/python benchmarks/fleet.py --json results/bench-fleet.json $(BENCH_ARGS)

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
