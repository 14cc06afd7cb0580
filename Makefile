# The two commands of a fresh machine: `make demo` and `make test`. Only Python 3.11 or newer and
# make are needed; everything else is installed into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: demo test lint install clean

demo: install
	$(BIN)/tiaft demo --out demo --overwrite

# Each core has its own tests, a file at a time; tests/conftest.py gives them one thread each.
test: install
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(STAMP)

# torch comes as tiatoolbox asks for it; see setup.cfg
$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'tiaft_plugin needs Python 3.11 or newer; make PYTHON=python3.12 names another')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo build *.egg-info
