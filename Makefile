# Needs make and Python 3.10 or newer; everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
READY := $(VENV)/.ready
# One thread a worker: the tests' tensors are small, and threads of two workers fight for cores.
PYTEST := OMP_NUM_THREADS=1 $(RUN) pytest -n auto --dist loadfile
# CPU seconds of these targets.
COST = $(VENV)/bin/python tests/cost.py $(MAKE) --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint quick exhaustive baselines benchmarks calibration comparison findings gallery mutants peers properties repairs docs docs-links dist clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20
	@echo "  (another interpreter: make PYTHON=python3.12 setup)"

setup: $(READY) ## make .venv and install nndiag with all it needs
	@echo "ready: $(VENV)/bin/nndiag"

demo: $(READY) ## train four networks, three of them sick, and diagnose them
	$(VENV)/bin/nndiag demo --output reports/demo

findings: $(READY) ## what is said of the corpus and the zoo is what reports/calibration/findings.csv says
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(RUN) calibration.findings --check

calibration: $(READY) ## judge labelled faults and healthy networks (installs their libraries; minutes)
	$(RUN) pip install --quiet --constraint constraints.txt --editable ".[calibration]"
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(RUN) calibration.healthy
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(RUN) calibration.public_models
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(RUN) calibration

test: $(READY) ## lint, check types, run the tests but for their long forms (5 minutes)
	@$(COST) lint quick

# The quick tests first: what they find, they find sooner.
test-all: test ## make test, and the long forms of the tests (long)
	@$(COST) exhaustive

lint: $(READY)
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

quick: $(READY)
	$(PYTEST) -m "not exhaustive"

exhaustive: $(READY)
	$(PYTEST) -m exhaustive

# What other tools cost is measured where they are: $(VENV)/bin/pip install -e ".[benchmarks]"
benchmarks: $(READY) ## measure what nndiag costs in time and memory; remakes reports/benchmarks
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(RUN) benchmarks

comparison: $(READY) ## measure how often two runs are called different; remakes reports/comparison (20 minutes)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(RUN) comparison

# One page: make gallery PAGE=zigzag. The pages of the tables that are there: make gallery REDRAW=1
gallery: $(READY) ## measure the lecture's claims; remakes reports/gallery (10 minutes at most)
	OMP_NUM_THREADS=1 PYTHONPATH=reports $(RUN) gallery $(PAGE) $(if $(REDRAW),--redraw)

baselines: $(READY) ## measure how often baselines fail; remakes reports/baselines (minutes)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(RUN) baselines

properties: $(READY) ## measure the properties of torch's building blocks; remakes reports/properties
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(RUN) properties

repairs: $(READY) ## repair the labelled faults and train before and after; makes reports/calibration/repairs.md (long)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(RUN) calibration.repairs

peers: $(READY) ## judge a small corpus by nndiag and by other tools (installs them; minutes)
	$(RUN) pip install --quiet --constraint constraints.txt --editable ".[peers]"
# Its metadata ask for torch < 2; it runs on today's.
	$(RUN) pip install --quiet --no-deps torcheck==1.0.1
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(RUN) calibration.peers

# What survived, or was not run yet: make mutants RESUME=1
mutants: $(READY) ## change the rules a little, see whether a test fails; remakes reports/mutation (long)
	$(RUN) pip install --quiet --constraint constraints.txt --editable ".[mutation]"
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(RUN) mutation $(if $(RESUME),--resume)

docs: $(READY) ## build the documentation; build/docs/html/index.html
	$(VENV)/bin/python docs/build.py

docs-links: $(READY) ## follow every link of the documentation to other sites (needs the network)
	$(VENV)/bin/python docs/build.py --links

dist: $(READY) ## build the sdist and the wheel into dist/, and check what they say of themselves
	rm -rf dist
	$(RUN) build --no-isolation
	$(RUN) twine check --strict dist/*

clean: ## remove caches, builds and the demo's reports (.venv stays)
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist reports/demo
	find nndiag reports tests -name __pycache__ -type d -exec rm -rf {} +

# The stamp, not the folder, is the target: an interrupted install is taken up again.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: there is no $(PYTHON). Install Python 3.10 or newer, or name one:" \
	    "make PYTHON=/path/to/python3 setup" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: nndiag needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
	    "Name a newer one: make PYTHON=python3.12 setup" >&2; exit 1; }
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 \
	  || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) cannot make virtual environments: its venv or ensurepip is missing." \
	    "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "installing nndiag and what it needs into $(VENV); torch is large, this can take minutes"
	$(RUN) pip install --quiet "pip>=21.3"
	$(RUN) pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@
