# Everything that a developer or CI does, each a line that a person could type.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := $(shell command -v uv 2>/dev/null)
INSTALL := $(if $(UV),uv pip install --python $(BIN)/python,$(BIN)/pip install -q) -c constraints.txt
# A process for each core, at most 4, each of one thread. Each gets a part of the files, whose tests share runs, and takes
# tests from the others when it has none left.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist worksteal
# Under these, calls of fcnlab's functions must be as their annotations say, shapes included (tests/annotations.py). They
# slow imports down, and nothing that is compiled, exported or started as a process of its own would have them.
CHECK_ANNOTATIONS := --jaxtyping-packages=fcnlab,annotations.checked -m 'not slow and not unchecked' \
	tests/models tests/inference tests/data tests/comparison tests/evaluation tests/runs \
	tests/training/test_losses.py tests/training/test_optimizers.py tests/training/test_segmenter.py

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow campaigns faults fuzz bench rivals lint docs notebooks table figures clean

help:  ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

setup: $(STAMP)  ## make .venv and install fcnlab into it, editable, with pinned versions

$(STAMP): pyproject.toml constraints.txt
ifdef UV
	test -x $(BIN)/python || uv venv --python 'python>=3.11' $(VENV)
	$(INSTALL) -e '.[dev]'
else
	test -x $(BIN)/pip || python3 -m venv $(VENV)
	$(INSTALL) -e '.[dev]'
endif
	touch $@

train: setup  ## the main job: FCN-8s on generated shapes, some minutes on a CPU
	$(BIN)/fcnlab train

test: setup  ## tests, one case of each kind
	$(PYTEST) -m 'not slow'

test-slow: setup  ## the matrices, other processes, the wheel; models, data and scores again, annotations checked
	$(PYTEST) -m 'slow and not campaign'
	$(PYTEST) $(CHECK_ANNOTATIONS)

campaigns: setup  ## what make test-slow shows, again with more sizes and random numbers
	$(PYTEST) -m campaign

fuzz: setup  ## fuzz files from other sources and overrides: tests/fuzz, 2000 new examples of each property
	FCNLAB_FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest -q --timeout 7200 tests/fuzz

faults: setup  ## disturb training runs 200 times and compare their results; interrupt commands while they start
	$(BIN)/python tests/faults/harness.py --count 200 --seed 1
	$(BIN)/python tests/faults/starts.py --count 20 --seed 1

bench: setup  ## measure against others, side by side; some 15 minutes (outputs/bench)
	$(BIN)/fcnlab bench

rivals: setup  ## install the libraries that make bench compares with
	$(INSTALL) -e '.[rivals]'
	$(INSTALL) --no-deps torchfcn==1.9.7

lint: setup  ## format check, lint, types
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/pyright
	$(BIN)/mypy

docs: setup  ## build the documentation: docs/_build/html/index.html; every warning is an error
	$(BIN)/python -m sphinx -E -W --keep-going -n -q -b html docs docs/_build/html

notebooks: setup  ## run the notebooks and keep their outputs; the second trains three models, some minutes
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

table: setup  ## write the table of docs/reference/networks.md
	$(BIN)/python docs/scripts/model_table.py

figures: setup  ## draw the images of docs/explanation/fcn.md
	$(BIN)/python docs/scripts/figures.py

clean:  ## remove what was made: .venv, caches, drawn shapes, decoded images (runs in outputs/ stay)
	rm -rf $(VENV) dist .pytest_cache .ruff_cache outputs/shapes outputs/cache
	find src tests -name __pycache__ -type d -exec rm -rf {} +
