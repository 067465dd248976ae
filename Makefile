# Everything here needs Python 3.11+ and make, nothing else: .venv is made and filled at the first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# --no-compile: byte-compiling what no run imports is half of an installation; -qq: errors only.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile
RUNS := runs/demo
# What a run imports. Its byte code is written now, also where the environment says that Python is to
# write none: then every launch would take some three times as long to import it.
IMPORTED := import snake_jax.cli.classify, snake_jax.cli.finetune, snake_jax.report.plots

.DEFAULT_GOAL := help
.PHONY: help demo demo-llm accept test test-all parity check fix pins clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## */  make \1	/' | expand -t 16

demo: $(VENV)/run.stamp  ## train Snake Learning and FedAvg on real images, print and plot the comparison
	rm -rf $(RUNS)
	$(BIN)/snake-jax classify --preset=demo_snake --workdir=$(RUNS)/snake
	$(BIN)/snake-jax classify --preset=demo_fedavg --workdir=$(RUNS)/fedavg
	$(BIN)/snake-jax compare $(RUNS)/snake $(RUNS)/fedavg --output=$(RUNS)

demo-llm: $(VENV)/run.stamp  ## the same with a tiny Llama on the text of Python's own help, with samples
	rm -rf $(RUNS)-llm
	$(BIN)/snake-jax finetune --preset=demo_llm_snake --workdir=$(RUNS)-llm/snake
	$(BIN)/snake-jax finetune --preset=demo_llm_fedavg --workdir=$(RUNS)-llm/fedavg
	$(BIN)/snake-jax finetune --preset=demo_llm_split --workdir=$(RUNS)-llm/split
	$(BIN)/snake-jax finetune --preset=demo_llm_splitfed --workdir=$(RUNS)-llm/splitfed
	$(BIN)/snake-jax compare $(RUNS)-llm/snake $(RUNS)-llm/fedavg $(RUNS)-llm/split \
	    $(RUNS)-llm/splitfed --output=$(RUNS)-llm

# No installation here: with an accelerator jax comes as BUILD.md says, into an environment of one's own.
accept:  ## check everything on the device that jax finds, in 25 minutes; MINUTES=, FLAGS= as --data=npz:DIR
	@if [ -x $(BIN)/python ]; then python=$(BIN)/python; else python=python; fi; \
		$$python -m experiments.accept --budget_minutes=$(or $(MINUTES),25) $(FLAGS)

test: $(VENV)/dev.stamp  ## run the tests
	$(BIN)/python -m pytest

test-all: $(VENV)/dev.stamp  ## run the slow tests too, which show at more settings what others show at one
	$(BIN)/python -m pytest -m ""

parity: $(VENV)/parity.stamp  ## install what some tests compare with, and skip without: PyTorch, peft, the TPU compiler

# pre-commit wants a git checkout; an unpacked archive gets the same tools, called directly.
check: $(VENV)/dev.stamp  ## lint, formatting, types
	@if [ "$$(git rev-parse --show-toplevel 2>/dev/null)" = "$(CURDIR)" ]; then \
		$(BIN)/pre-commit run --all-files --show-diff-on-failure; \
	else \
		$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy; \
	fi

fix: $(VENV)/dev.stamp  ## repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# On the oldest Python supported, whose versions are those that every later one can install too. attrs
# is bounded by dp-accounting, which is not needed by every run, but has to fit beside all of them.
pins: PYTHON := python3.11
pins:  ## write both requirements files anew, with the newest versions that pyproject.toml allows
	rm -rf build/pins && $(PYTHON) -m venv build/pins
	build/pins/bin/python -m pip install -qq --upgrade setuptools . 'attrs<24'
	{ echo "# Everything a run needs, pinned: CPU, Python 3.11 to 3.13, jax 0.10. Written by make pins."; \
		build/pins/bin/python -m pip freeze -qq --all --exclude pip --exclude snake-jax; } > requirements.txt
	build/pins/bin/python -m pip install -qq '.[dev]'
	{ echo "# What tests and checks need beside a run. Written by make pins."; echo "-r requirements.txt"; \
		build/pins/bin/python -m pip freeze -qq --exclude snake-jax | grep -vxFf requirements.txt; } > requirements-dev.txt
	rm -rf build

clean:  ## remove .venv, caches, built files and the demo's runs
	rm -rf $(VENV) $(RUNS) $(RUNS)-llm build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are newer than the pins they were made from, so a second `make` installs nothing.
$(VENV)/run.stamp: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or later is needed and '$(PYTHON)' is not: try make PYTHON=python3.12" >&2; exit 2; }
	@echo "Installing pinned packages into $(VENV) (about 300 MB, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --requirement requirements.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c '$(IMPORTED)'
	@touch $@

$(VENV)/parity.stamp: $(VENV)/dev.stamp requirements-parity.txt
	@$(PIP) --constraint requirements.txt --requirement requirements-parity.txt
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp requirements-dev.txt
	@$(PIP) --requirement requirements-dev.txt
	@mkdir -p $(VENV)/typings/snake_jax && ln -sfn ../../../kernels $(VENV)/typings/snake_jax/kernels
	@touch $@
