# Everything on a fresh machine with Python 3.11+ and make:  make demo   |   make test   |   make bench   |   make docs
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-engines bench docs release soak lock clean

demo: $(VENV)/.installed
	$(BIN)/energylens demo

test: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The long tests whose seeded parts `make test` runs: scans, mutations, sweeps killed again and again.
soak: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m soak -n 2 --dist worksteal

bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks

docs: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The pages: build/site/index.html"

# A wheel and an sdist, their content checked, each installed in an empty environment.
release: $(VENV)/.installed-test
	$(BIN)/python -m tools.release

# Real engines on the CPU (vLLM, transformers), and sweeps on Ray and Slurm's local cluster:
# about 4 minutes and 2.7 GB to install, and 16 minutes to run.
test-engines: $(VENV)-engines/.installed
	$(VENV)-engines/bin/python -m pytest tests/test_engines_real.py tests/test_sweeps.py \
		tests/test_control_real.py

$(VENV)-engines/.installed: tools/engine_env/build.py
	$(PYTHON) tools/engine_env/build.py $(VENV)-engines
	touch $@

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "energylens needs Python 3.11 or newer; say make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[report,ensembles]'
	touch $@

# LOCKED=1 takes every package by version and hash from requirements/test.lock, nothing else.
$(VENV)/.installed-test: $(BIN)/python pyproject.toml
ifdef LOCKED
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/test.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
else
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
endif
	touch $@ $(VENV)/.installed

# Newer versions into the lock file: run the tests after it.
lock:
	uv pip compile pyproject.toml --extra test --universal --python-version 3.11 \
		--generate-hashes --no-header --quiet --upgrade -o requirements/test.lock

clean:
	rm -rf $(VENV) $(VENV)-engines build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
