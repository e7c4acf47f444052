# Everything runs in .venv, made from requirements.lock; nothing is needed but python3, git, make.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Where it is 1, or pip.conf says so, pip would install beside the environment, and refuses to.
export PIP_USER := 0
# The scripts in an environment name its folder: one that was moved is made anew.
$(shell grep -qsF "$(CURDIR)/.venv" .venv/pyvenv.cfg || rm -f .venv/complete)
MAKEFLAGS += --no-print-directory
# Tests in two processes; those that share what takes long to make stay together (see tests/conftest.py).
IN_TWO := -n 2 --no-loadscope-reorder

.PHONY: help setup repro report check test fuzz soak submit submissions sweep benchmark lock
.SILENT:

help:
	echo "make repro        run the whole pipeline: ends in submissions/submission.csv"
	echo "make report       make metrics/report.html again, and print where it is"
	echo "make submit       send the submission to Kaggle, once, and wait for its score"
	echo "make submissions  list what was sent, beside what Kaggle lists"
	echo "make sweep        search for better hyperparameters; resumes after a kill"
	echo "make check        lint, and run the fast tests"
	echo "make test         run all tests"
	echo "make fuzz         damage every kind of file EXAMPLES=10000 times"
	echo "make soak         kill a small pipeline KILLS=100 times, and compare bytes"
	echo "make benchmark    measure the training speed of this layer, Keras, PyTorch, TensorFlow 1"
	echo "make setup        only make the environment, .venv"
	echo "make lock         renew requirements.lock from pyproject.toml"

setup: .venv/complete

.venv/complete: requirements.lock
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit("Python 3.11 to 3.13 is needed, this is %d.%d; name another one: make PYTHON=python3.12" % v)'
	echo "Making the environment .venv, which takes some minutes"
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e packages/fastlstm
	touch $@

repro: setup
	python -m pipeline.stages.repair
	dvc repro

report: setup
	dvc repro --quiet --single-item --force report
	echo $(CURDIR)/metrics/report.html

check: setup
	ruff check
	ruff format --check --quiet || { echo "Not formatted; run: ruff format"; exit 1; }
	python -m pytest -q $(IN_TWO) -m "not slow"

test: setup
	python -m pytest $(IN_TWO)

EXAMPLES ?= 10000
fuzz: setup
	EXAMPLES=$(EXAMPLES) python -m pytest -q -s tests/test_hostile_input.py

KILLS ?= 100
soak: setup
	python tests/soak.py $(KILLS)

# Forced, it must be this stage alone: the pipeline before it would be run again, too.
submit: setup
	python -m pipeline.kaggle.credentials
	python -m pipeline.stages.repair
	dvc repro submissions/dvc.yaml $(if $(filter 1,$(RESUBMIT)),--single-item --force)

submissions: setup
	python -m pipeline.stages.submissions

sweep: setup
	python -m pipeline.stages.repair
	dvc repro prepare
	python -m pipeline.stages.sweep

benchmark: setup .venv/benchmark
	python -m benchmarks.training_speed

# Adds the extra "benchmark" of pyproject.toml, PyTorch, and changes none of the locked packages.
.venv/benchmark: .venv/complete pyproject.toml
	pip install --quiet --disable-pip-version-check $$(python -c 'import tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["benchmark"])')
	touch $@

lock: setup
	pip install --quiet uv
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
		--custom-compile-command "make lock" --extra dev --extra ray --extra sweep --extra test \
		--output-file requirements.lock pyproject.toml
