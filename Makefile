# Everything that a developer or CI does, each a line that a person could type.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := $(shell command -v uv 2>/dev/null)
# A process for each core, at most 4, each of one thread; the tests of a file stay together, since they share its runs.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow faults fuzz bench lint notebooks table figures clean

help:  ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

setup: $(STAMP)  ## make .venv and install fcnlab into it, editable, with pinned versions

$(STAMP): pyproject.toml constraints.txt
ifdef UV
	test -x $(BIN)/python || uv venv --python 'python>=3.11' $(VENV)
	uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]'
else
	test -x $(BIN)/pip || python3 -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
endif
	touch $@

train: setup  ## the main job: FCN-8s on generated shapes, some minutes on a CPU
	$(BIN)/fcnlab train

test: setup  ## tests, one case of each kind
	$(PYTEST) -m 'not slow'

test-slow: setup  ## the matrices, other processes, the wheel
	$(PYTEST) -m slow

fuzz: setup  ## foreign files and words: the properties of tests/fuzz, 2000 new examples of each
	FCNLAB_FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest -q --timeout 7200 tests/fuzz

faults: setup  ## disturb trainings 200 times and compare their ends
	$(BIN)/python tests/faults/harness.py --count 200 --seed 1

bench: setup  ## measure against others, side by side; some minutes (their JSON: outputs/benchmarks)
	for name in input_pipeline confusion evaluation startup; do \
		$(BIN)/python benchmarks/$$name.py --json outputs/benchmarks/$$name.json || exit 1; done

lint: setup  ## format check, lint, types
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/pyright

notebooks: setup  ## run the notebooks and keep their outputs; the second trains three nets, some minutes
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

table: setup  ## write README's table of variants and backbones
	$(BIN)/python docs/model_table.py

figures: setup  ## draw the pictures of docs/fcn.md
	$(BIN)/python docs/figures.py

clean:  ## remove what was made: .venv, caches, drawn shapes, decoded pictures (runs in outputs/ stay)
	rm -rf $(VENV) dist .pytest_cache .ruff_cache outputs/shapes outputs/cache
	find src tests -name __pycache__ -type d -exec rm -rf {} +
