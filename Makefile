# Two commands: `make run` trains the first experiment, `make test` runs the tests. Each makes its own virtual environment.
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
WORKERS ?= 2
PYTEST = $(PY) -m pytest -q --benchmark-skip -n $(WORKERS) --dist loadfile

.PHONY: run test test-slow test-exhaustive check bench golden docs gallery clean help

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/'

run: $(VENV)/.installed  ## install and train experiments/first.py:First
	$(PY) -m forgather_dsl run

test: check  ## install and run the tests, after the linter and the type checker
	$(PYTEST) -m "not slow and not exhaustive" tests

test-slow: $(VENV)/.installed-dev  ## the slow tests
	$(PYTEST) -m "slow and not exhaustive" tests

test-exhaustive: $(VENV)/.installed-dev  ## every page of docs/, and the matrices of which the others take a part
	$(PYTEST) -m exhaustive tests

check: $(VENV)/.installed-dev  ## ruff and pyright alone
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(PY)

bench: $(VENV)/.installed-dev  ## the benchmarks; figures worth keeping go to benchmarks/LOG.md
	$(PY) -m pip install -q -e '.[bench]'
	$(PY) -m pytest -q --benchmark-only benchmarks

golden: $(VENV)/.installed-dev  ## write the golden snapshots and models of experiments/ anew, for review in the diff
	UPDATE_GOLDEN=1 $(PY) -m pytest -q tests/test_experiments.py tests/codegen/test_golden_models.py

docs: $(VENV)/.installed-dev  ## write the reference, the gallery and the pictures of docs/ anew, for review in the diff
	$(PY) docs/write

gallery: $(VENV)/.installed-dev  ## write docs/gallery.md anew: the plans of the recipes, and what docs/results.json holds
	$(PY) docs/write gallery

clean:  ## remove the virtual environment and caches of tools
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .benchmarks *.egg-info build

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; this is $$($(PYTHON) --version). Write make PYTHON=python3.12 ..."; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed pyproject.toml
	$(PY) -m pip install -q -e '.[dev]'
	$(VENV)/bin/pyright --version > /dev/null  # its first start downloads the type checker
	touch $@
