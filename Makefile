# Everything that a developer or CI does, each a line that a person could type.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := $(shell command -v uv 2>/dev/null)
INSTALL := $(if $(UV),uv pip install --python $(BIN)/python,$(BIN)/pip install -q) -c constraints.txt
# A process for each core, at most 4, each of one thread. Each gets a part of the files, whose tests share runs, and takes
# tests from the others when it has none left.
PYTEST_OPTIONS := -q -n logical --maxprocesses 4 --dist worksteal
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_OPTIONS)
# Under these, calls of fcnlab's functions must be as their annotations say, shapes included (tests/annotations.py). They
# slow imports down, and nothing that is compiled, exported or started as a process of its own would have them.
CHECK_ANNOTATIONS := --jaxtyping-packages=fcnlab,annotations.checked -m 'not slow and not unchecked' \
	tests/models tests/inference tests/data tests/comparison tests/evaluation tests/runs \
	tests/training/test_losses.py tests/training/test_optimizers.py tests/training/test_segmenter.py

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow test-lowest test-newest campaigns faults fuzz simulate same-loss settings bench rivals lint \
	docs notebooks table figures release clean

help:  ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

setup: $(STAMP)  ## make .venv and install fcnlab into it, editable, with pinned versions

$(STAMP): pyproject.toml constraints.txt src/fcnlab/version.py
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

# Each in a venv of its own, because the versions are not those of constraints.txt. uv finds or downloads the Python.
UV_OR_OWN := $(or $(UV),$(BIN)/uv)
define TEST_VERSIONS
	$(UV_OR_OWN) venv --quiet --clear --python $(PYTHON) $(@:test-%=.venv-%)
	$(UV_OR_OWN) pip install --quiet --python $(@:test-%=.venv-%) --resolution $(RESOLUTION) -e '.[dev]'
	OMP_NUM_THREADS=1 $(@:test-%=.venv-%)/bin/python -m pytest $(PYTEST_OPTIONS) -m 'not slow'
endef

$(BIN)/uv: $(STAMP)
	$(INSTALL) uv

test-lowest: PYTHON := 3.11
test-lowest: RESOLUTION := lowest-direct
test-lowest: $(UV_OR_OWN)  ## make test with the oldest Python and dependencies that pyproject.toml allows
	$(TEST_VERSIONS)

test-newest: PYTHON := 3.14
test-newest: RESOLUTION := highest
test-newest: $(UV_OR_OWN)  ## make test with the newest Python and dependencies
	$(TEST_VERSIONS)

campaigns: setup  ## what make test-slow shows, again with more sizes and random numbers
	$(PYTEST) -m campaign

fuzz: setup  ## fuzz files from other sources and overrides: tests/fuzz, 2000 new examples of each property
	FCNLAB_FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest -q --timeout 7200 tests/fuzz

faults: setup  ## disturb training runs 200 times and compare their results; interrupt commands while they start
	$(BIN)/python tests/faults/harness.py --count 200 --seed 1
	$(BIN)/python tests/faults/starts.py --count 20 --seed 1

simulate: setup  ## simulate comparisons on real per-image counts; some 40 minutes on one core (docs/explanation/comparing-runs.md)
	OMP_NUM_THREADS=1 $(BIN)/python tests/simulation.py

same-loss: setup  ## train with the code of BASE=COMMIT and of the working tree; compare the loss curves bit by bit
	$(BIN)/python scripts/same_loss.py $(or $(BASE),$(error BASE is not set: make same-loss BASE=COMMIT)) $(ARGS)

settings: setup  ## write the list of all settings and defaults (tests/config/settings.txt)
	$(BIN)/python scripts/settings.py

bench: setup  ## measure against others, side by side; some 15 minutes (outputs/bench)
	$(BIN)/fcnlab bench

rivals: setup  ## install the libraries that make bench compares with
	$(INSTALL) -e '.[rivals]'
	$(INSTALL) --no-deps torchfcn==1.9.7

lint: setup  ## format check, lint, types
	$(BIN)/ruff format --check src tests benchmarks scripts template
	$(BIN)/ruff check src tests benchmarks scripts template
	$(BIN)/pyright
	$(BIN)/mypy

docs: setup  ## build the documentation: docs/_build/html/index.html; every warning is an error
	$(BIN)/python -m sphinx -E -W --keep-going -n -q -b html docs docs/_build/html

notebooks: setup  ## run the notebooks and keep their outputs; two of them train networks, some minutes
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

table: setup  ## write the table of docs/reference/networks.md
	$(BIN)/python docs/scripts/model_table.py

figures: setup  ## draw the images of docs/explanation/fcn.md
	$(BIN)/python docs/scripts/figures.py

release: setup  ## version, changelog, wheel, commit and tag of VERSION=X.Y.Z; publishes nothing
	$(INSTALL) -e '.[release]'
	$(BIN)/python scripts/release.py $(or $(VERSION),$(error VERSION is not set: make release VERSION=X.Y.Z))

clean:  ## remove what was made: .venv, caches, drawn shapes, decoded images (runs in outputs/ stay)
	rm -rf $(VENV) .venv-* dist .pytest_cache .ruff_cache outputs/shapes outputs/cache
	find src tests -name __pycache__ -type d -exec rm -rf {} +
