# Everything runs in .venv, made from requirements.lock; only python3, git and make are needed.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
MAKEFLAGS += --no-print-directory
# No command contains the folder's path, which may have characters that the shell interprets.
INSTALL := .venv/bin/python pipeline/install.py
# The mark of a complete environment: the folder that its scripts name, and its lock.
MARK = { pwd -P; cat $(1); }
IS_COMPLETE = $(call MARK,$(1)) | cmp -s - .venv/$(1)
# Modules that must import before an environment counts as complete.
IMPORTS ?= dvc.cli, matplotlib, pipeline.prediction, pipeline.stages.report, pipeline.stages.submit
DEV_IMPORTS ?= hypothesis, optuna, pytest, ray, xdist
# Tests in two processes, in groups (see tests/conftest.py).
PYTEST := python -m pytest -n 2 --no-loadscope-reorder

.PHONY: help setup environment dev-setup dev-environment repro report check test test-layer fuzz soak submit \
	submissions sweep benchmark lock export
.SILENT:

help:
	echo "make repro        run the whole pipeline: ends in submissions/submission.csv"
	echo "make report       regenerate metrics/report.html and print its path"
	echo "make submit       update the pipeline, send the submission to Kaggle once, wait for its score"
	echo "make submissions  list the recorded submissions, and Kaggle's list"
	echo "make export       write the ensemble as a model of Keras's own layers"
	echo "make sweep        search for better hyperparameters; continues after a kill"
	echo "make check        lint, and run the fast tests"
	echo "make test         run all tests, except those of make test-layer"
	echo "make test-layer   test the layer on each instruction set that the processor has"
	echo "make fuzz         corrupt every kind of input file, EXAMPLES=10000 times"
	echo "make soak         kill a small pipeline KILLS=30 times, and compare bytes"
	echo "make benchmark    measure the training speed of this layer, Keras, PyTorch, TensorFlow 1"
	echo "make setup        only create the environment, .venv"
	echo "make dev-setup    add the packages for tests, the sweep and Ray to .venv"
	echo "make lock         regenerate the lock files from pyproject.toml"

setup:
	$(call IS_COMPLETE,requirements.lock) || $(MAKE) environment

environment:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit("Python 3.11 to 3.13 is needed, this is %d.%d; name another one: make PYTHON=python3.12" % v)'
	echo "Making the environment .venv, which takes a minute or more"
	$(PYTHON) -m venv --clear .venv
	$(INSTALL) --require-hashes -r requirements-uv.lock || echo "uv is not available; pip installs, which takes longer"
	$(INSTALL) --require-hashes -r requirements.lock
	$(INSTALL) --no-deps --no-build-isolation -e . -e packages/fastlstm
	python -P -c "import $(IMPORTS)" 2> .venv/imports.log || { cat .venv/imports.log; exit 1; }
	$(call MARK,requirements.lock) > .venv/requirements.lock

# Adds what tests, the sweep and training on several machines need.
dev-setup: setup
	$(call IS_COMPLETE,requirements-dev.lock) || $(MAKE) dev-environment

dev-environment:
	echo "Adding the tools for tests to .venv"
	$(INSTALL) --require-hashes -r requirements-dev.lock
	python -P -c 'import $(DEV_IMPORTS)'
	$(call MARK,requirements-dev.lock) > .venv/requirements-dev.lock

repro: setup
	python -m pipeline.stages.repair
	python -m dvc repro

report: setup
	python -m dvc repro --quiet --single-item --force report
	echo "$$PWD/metrics/report.html"

check: dev-setup
	python -m ruff check
	python -m ruff format --check --quiet || { echo "Not formatted; run: ruff format"; exit 1; }
	$(PYTEST) -q -m "not slow and not forced_isa"

TESTS ?= not forced_isa
test: dev-setup
	$(PYTEST) -m "$(TESTS)"

test-layer: dev-setup
	$(PYTEST) -m forced_isa packages/fastlstm/tests

EXAMPLES ?= 10000
fuzz: dev-setup
	EXAMPLES=$(EXAMPLES) python -m pytest -q -s tests/test_hostile_input.py

KILLS ?= 30
soak: dev-setup
	python tests/soak.py $(KILLS)

# Without credentials, the list of submissions fails before the pipeline runs.
# With RESUBMIT=1 only the submission is forced, not the pipeline before it.
submit: setup
	python -m pipeline.stages.submissions > /dev/null
	python -m pipeline.stages.repair
	python -m dvc repro $(if $(filter 1,$(RESUBMIT)),--single-item --force,dvc.yaml) submissions/dvc.yaml

submissions: setup
	python -m pipeline.stages.submissions

export: setup
	python -m pipeline.stages.export

sweep: dev-setup
	python -m pipeline.stages.repair
	python -m dvc repro prepare
	python -m pipeline.stages.sweep

# PyTorch is not locked; it changes none of the locked packages.
benchmark: dev-setup
	python -c "import torch" 2> /dev/null || $(INSTALL) "torch==2.13.0"
	python packages/fastlstm/benchmarks/training_speed.py

LOCK := uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	--custom-compile-command "make lock"
PROJECTS := pyproject.toml packages/fastlstm/pyproject.toml
lock: setup
	$(INSTALL) --require-hashes -r requirements-uv.lock
	$(LOCK) --group install --output-file requirements-uv.lock
	$(LOCK) $(PROJECTS) --output-file requirements.lock
	$(LOCK) $(PROJECTS) --extra dev --constraint requirements.lock --output-file requirements-dev.lock
