# Everything runs in .venv, which the targets make when it is not there yet.
#
#   make demo         phantoms, three trainings, inference, evaluation: about 20 minutes on a laptop
#   make train-small  the same with more phantoms and a longer training
#   make starter      the recipe of the starter weights: about nine hours (experiments/starter.py says how), with
#                     options such as ARGUMENTS="--data ../shared/data --without chest"
#   make paper        the published experiment from VerSe in data/ to its table (docs/reproduce-the-paper.md), with
#                     options such as ARGUMENTS="--schedules ramp constant"
#   make test         the tests        make lint       style
#   make test-all     the tests with those that take long: every form of a scan, the runs that are killed; about an hour
#   make test-oldest  what is shipped and the quick tests, under the lowest version of each requirement: about 5 minutes
#   make test-kills   every script, killed and interrupted thirty times at random moments: about an hour; options such as
#                     ARGUMENTS="--scripts infer.py --kills 3 --interrupts 1"
#   make docs-check   the examples of the documentation: about three minutes
#   make benchmark    every benchmark (that of the inference with WORK=train-small/work: it needs trained networks)
#   make clean        remove caches and the demo

SHELL := /bin/bash
.DELETE_ON_ERROR:
.ONESHELL:
.SHELLFLAGS := -eu -o pipefail -c

# The first Python from 3.10 on; override with `make PYTHON=python3.12 demo`.
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null \
	&& { echo $$python; break; }; done)
REQUIREMENTS := $(shell nvidia-smi >/dev/null 2>&1 && echo requirements-gpu.txt || echo requirements.txt)
RUN := .venv/bin/python

.PHONY: demo train-small starter paper test test-all test-oldest test-kills lint docs-check benchmark clean distclean

.venv: .venv/installed
.venv/installed: requirements.txt requirements-gpu.txt requirements-common.txt requirements-train.txt
	test -n "$(PYTHON)" || { echo "Expected Python 3.10 to 3.12, found none; set PYTHON=..." >&2; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS) -r requirements-train.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt requirements-onnx.txt requirements-seg.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo train-small: .venv/installed
	$(RUN) experiments/phantoms.py $@

starter: .venv/installed
	$(RUN) experiments/starter.py $(ARGUMENTS)

DATA ?= data
paper: .venv/installed
	$(RUN) experiments/paper.py --data-dir $(DATA) $(ARGUMENTS)

test: .venv/installed-dev
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: .venv/installed-dev
	LONG_TESTS=1 $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# On Python 3.10 where there is one; override with `make PYTHON_OLDEST=... test-oldest`.
PYTHON_OLDEST ?= $(shell python3.10 -c 'import sys; print(sys.executable)' 2>/dev/null || echo $(PYTHON))
test-oldest:
	$(PYTHON_OLDEST) -m venv --clear .venv-oldest
	sed -n 's/^\([^#]*\)>=\([^,]*\).*/\1==\2/p' requirements.txt requirements-common.txt requirements-train.txt \
		requirements-dev.txt > .venv-oldest/lowest.txt
	.venv-oldest/bin/python -m pip install -q --disable-pip-version-check -r requirements.txt \
		-r requirements-train.txt -r requirements-dev.txt -c .venv-oldest/lowest.txt
	.venv-oldest/bin/python -m tests.oldest --lowest

# No part of the tests that every change runs.
test-kills: .venv/installed-dev
	$(RUN) -m tests.kills $(ARGUMENTS)

lint: .venv/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# Examples of the documentation, each in a copy of the project.
docs-check: .venv/installed-dev
	$(RUN) -m tests.run_docs

.venv/installed-bench: .venv/installed-dev requirements-bench.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	touch $@

benchmark: .venv/installed-bench
	for script in $(filter-out benchmarks/bench_inference.py,$(wildcard benchmarks/bench_*.py)); do
		echo "== $$script"; $(RUN) "$$script"
	done
	$(if $(WORK),$(RUN) benchmarks/bench_inference.py --work-dir $(WORK))

clean:
	rm -rf demo .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-oldest train-small starter paper
