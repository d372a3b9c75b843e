# The two commands of the README are `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# A worker a core; a file's tests stay together, since they build on each other or share a server.
PYTEST := $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder --durations 20

.PHONY: demo test test-long check bench test-versions docs venv clean

demo: $(READY)
	$(BIN)/llama-release demo

test: $(READY)
	$(PYTEST) -m 'not long'

# All of it, with what repeats a kind of test at scale: hours.
test-long: $(READY)
	$(PYTEST) --hypothesis-profile long
	$(BIN)/python -m tests.benchmarks suite
	$(BIN)/python -m tests.versions

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m tests.benchmarks

# The unit and wire tests on the oldest and the newest versions that pyproject.toml allows; half an hour an end.
test-versions: $(READY)
	$(BIN)/python -m tests.versions

docs: $(READY)
	$(BIN)/python docs/generate.py
	$(BIN)/properdocs build --strict

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llama-release needs Python 3.11 or newer: set PYTHON=...")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python's venv is not whole: install python3-venv (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt --editable '.[test,docs]'
	touch $(READY)

clean:
	rm -rf $(VENV) .llama-release site
