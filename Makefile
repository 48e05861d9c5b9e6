# SPDX-License-Identifier: Apache-2.0
.DEFAULT_GOAL := help
.PHONY: help quickstart test verify lint types docs benchmark clean

VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?= -n 2
PYTHONS := $(strip $(PYTHON) python3 python3.14 python3.13 python3.12 $(wildcard $(HOME)/.pyenv/versions/*/bin/python3))
# Each one is run, not only looked up: a pyenv shim may exist and fail, Debian may lack ensurepip.
USABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 12))

help:
	@echo "make quickstart  install into $(VENV) and run examples/quickstart.py"
	@echo "make test        run the tests; PYTEST_ARGS=... passes options to pytest"
	@echo "make verify      run the long statistical checks; verify.xml has the results and the commit"
	@echo "make lint        ruff check and ruff format --check"
	@echo "make types       mypy on the package"
	@echo "make docs        build docs/_build/index.html"
	@echo "make benchmark   measure accuracy and speed"
	@echo "make clean       remove $(VENV), caches and built documentation"

quickstart: $(VENV)/.installed-plots
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

verify: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m verify $(PYTEST_ARGS) --junitxml verify.xml \
	  -o junit_suite_name="$$(git describe --always --dirty --abbrev=40)"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-test
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build

benchmark: $(VENV)/.installed-benchmarks
	$(BIN)/python -m benchmarks.accuracy
	$(BIN)/python -m benchmarks.speed

clean:
	rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache docs/_build

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[$*]"
	@touch $@

# venv makes pip last: its presence says that the environment is whole.
$(BIN)/pip:
	@for python in $(PYTHONS); do \
	  if "$$python" -c "$(USABLE)" 2>/dev/null; then \
	    echo "$$("$$python" --version) ($$python) -> $(VENV)"; \
	    exec "$$python" -m venv $(VENV); \
	  fi; \
	done; \
	echo "No Python >= 3.12 with the venv module found; tried: $(PYTHONS)." >&2; \
	echo "Install one (on Debian with its python3-venv package, or: pyenv install 3.12)," >&2; \
	echo "or name one: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; \
	exit 1
