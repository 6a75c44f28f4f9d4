# make setup | demo | test | lint | clean
# PYTHON picks the interpreter of a new environment, VENV its folder:
#   make setup PYTHON=python3.12 VENV=.venv312

PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
CLIPS ?= 400

BIN := $(VENV)/bin
MMSSL := $(BIN)/mmssl
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint format clean
.DELETE_ON_ERROR:

setup: $(STAMP)

# Runs again only if the wanted packages changed.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 || test -x $(BIN)/python || { \
	  echo "make: '$(PYTHON)' not found; install Python 3.11 or newer, or name it:" \
	  "make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "make: mmssl needs Python 3.11 or newer, but '$(PYTHON)' is" \
	    "$$($(PYTHON) -V 2>&1); name a newer one:" \
	    "make setup PYTHON=python3.12" >&2; exit 1; }; \
	  echo "creating $(VENV) with $$($(PYTHON) -V 2>&1)"; \
	  $(PYTHON) -m venv --clear $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[dev,beam]' --constraint constraints.txt
	@touch $@
	@echo "ready: $(MMSSL) --help"

# The README's road, once. The media and the dataset are made only if they are
# missing, and training resumes: a second call is quick. `make clean` forgets it all.
demo: setup $(DEMO)/data/tokenizer.model
	$(MMSSL) train --config configs/demo.py --workdir $(DEMO) \
	  --config.data.path=$(DEMO)/data
	$(MMSSL) eval --workdir $(DEMO)
	$(MMSSL) export --workdir $(DEMO) --out $(DEMO)/export --overwrite
	$(MMSSL) report --workdir $(DEMO)
	@echo
	@echo "The report: $(abspath $(DEMO)/report.html)"

$(DEMO)/media/manifest.jsonl: | $(STAMP)
	$(MMSSL) data demo --out $(DEMO)/media --clips $(CLIPS)

$(DEMO)/data/build_report.json: $(DEMO)/media/manifest.jsonl
	$(MMSSL) data build --manifest $< --out $(DEMO)/data

$(DEMO)/data/tokenizer.model: $(DEMO)/data/build_report.json
	$(MMSSL) data tokenizer --data $(DEMO)/data

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The demo run and the caches; the environment stays (rm -rf $(VENV) drops it).
clean:
	rm -rf $(DEMO) build dist .pytest_cache .ruff_cache .hypothesis
