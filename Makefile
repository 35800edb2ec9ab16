# Everything runs in .venv, which the targets make when it is not there yet.
#
#   make demo         phantoms, both trainings, inference, evaluation: about fifteen minutes on a laptop
#   make train-small  the same with more phantoms and a longer training, and anatomical labels
#   make starter      the recipe of the starter weights: about four hours, see below
#   make test         the tests        make lint       style
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
# TensorFlow's start-up messages would bury the pipeline's own lines.
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo train-small starter test lint docs-check benchmark clean distclean

.venv: .venv/installed
.venv/installed: requirements.txt requirements-gpu.txt requirements-common.txt
	test -n "$(PYTHON)" || { echo "Expected Python 3.10 to 3.12, found none; set PYTHON=..." >&2; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS)
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# Phantoms, and both networks trained on them. One command after the other, each printed before it runs.
define trained_on_phantoms
set -x
$(RUN) get_verse_data.py --source phantom --data-dir $(1)/data --phantoms $(2) --seed 0
$(RUN) pre_processing_heatmap.py --data-dir $(1)/data --work-dir $(1)/work --preset small
$(RUN) train_heatmap.py --work-dir $(1)/work --preset small $(3)
$(RUN) pre_processing_segmentation.py --data-dir $(1)/data --work-dir $(1)/work --preset small
$(RUN) train_segmentation.py --work-dir $(1)/work --preset small $(4)
endef

define pipeline
$(call trained_on_phantoms,$(1),$(2),$(3),$(4))
$(if $(5),$(RUN) train_labelling.py --work-dir $(1)/work --preset small $(5))
$(RUN) infer.py $(1)/data/*/*test --work-dir $(1)/work --output $(1)/predictions
$(RUN) evaluate.py --data-dir $(1)/data --split test --predictions $(1)/predictions --output $(1)/evaluation
set +x
echo "Data: $(1)/data. Networks and training curves: models, in $(1)/work. Masks and pictures: $(1)/predictions."
echo "Scores: $(1)/evaluation (summary.json, vertebrae.csv, evaluation.md, evaluation.png)."
endef

demo: .venv/installed
	@$(call pipeline,demo,12 3 5,,,)

# Trainings of train-small, with which the starter weights begin.
SMALL_HEATMAP := --epochs 12 --examples-per-epoch 60
SMALL_SEGMENTATION := --epochs 40 --examples-per-epoch 160

train-small: .venv/installed
	@$(call pipeline,train-small,60 5 20,$(SMALL_HEATMAP),$(SMALL_SEGMENTATION),--epochs 40)

# The starter weights (preset starter): the networks of train-small go on, first with images drawn from masks and no
# real CT (segmentation alone), then with real CTs too; what is shipped is an average of both. A labelling network
# of its own sees more of the rare levels.
#
#   make starter STARTER_DATA=../shared/data
#   make starter STARTER_DATA=../shared/data WITHOUT=chest    leave one case out: its fold goes to starter-without-chest
#   make starter STARTER_OPTIONS="--precision bfloat16"       of all of both networks after train-small
#   nohup make starter > starter.log 2>&1 &                   in the background
#
# Every <name>_seg-vert_msk.nii.gz below STARTER_DATA is used, with <name>_ct.nii.gz if there is one; not the
# series sub-gl*, whose licence forbids derivatives, nor the names in WITHOUT. Cases get names of their own, as
# phantoms are named like those of VerSe. What folds share is made once: STARTER_FIRST and STARTER_LEVELS, of
# generated spines alone, and STARTER_DRAWN, of these and of masks that have no CT. All steps go on where a killed
# run stopped. The networks end up in STARTER/shipped.
STARTER_DATA ?= ../shared/data
WITHOUT ?=
without = $(if $(strip $(1)),-without$(subst $() ,,$(addprefix -,$(1))))
STARTER_FIRST ?= train-small
STARTER_LEVELS ?= starter-levels
# Which of the names in WITHOUT have a mask alone, and so belong to STARTER_DRAWN.
WITHOUT_DRAWN = $(foreach name,$(WITHOUT),$(if $(shell find -L $(STARTER_DATA) -name '$(name)_ct.nii.gz'),,$(name)))
STARTER_DRAWN ?= starter-drawn$(call without,$(WITHOUT_DRAWN))
STARTER ?= starter$(call without,$(WITHOUT))
# Where each of them works.
FIRST_WORK = $(STARTER_FIRST)/work
LEVELS_WORK = $(STARTER_LEVELS)/work
DRAWN_WORK = $(STARTER_DRAWN)/work
TURNED_WORK = $(STARTER_DRAWN)/work-turned
STARTER_WORK = $(STARTER)/work
STARTER_MASKS = $(shell find -L $(STARTER_DATA) -name '*_seg-vert_msk.nii.gz' -not -name 'sub-gl*' | sort)
# Options of the trainings, such as --epochs 80, which must stay the same until they are done.
STARTER_OPTIONS ?=
STARTER_HEATMAP ?=
STARTER_SEGMENTATION ?=
STARTER_LABELLING ?=
# The training on images drawn from masks: longer, and with the learning rate of the first stage; then one that
# turns them further, as the upper chest leans more than generated spines do.
DRAWN_SEGMENTATION := --epochs 60 --mixture 0.45 0 0.33 0.22 --learning-rate 2e-3 --final-learning-rate 1e-4 --seed 1
TURNED_SEGMENTATION := --epochs 28 --mixture 0.35 0 0.35 0.3 --learning-rate 1e-3 --final-learning-rate 1e-4 --seed 2 \
	--augmentation.rotation-degrees 30
# Shares of that and of the network with real CTs in the average that is shipped.
SHARES := 3 1
PHANTOM_CASES := $(RUN) -m benchmarks.trial_labelling --generate --data $(STARTER_LEVELS)/data

starter: .venv/installed
	@test -n "$(STARTER_MASKS)" || { echo "Expected masks below STARTER_DATA=$(STARTER_DATA), found none." >&2; exit 1; }
	for name in $(WITHOUT); do
		case "$(STARTER_MASKS) " in *"/$${name}_seg-vert_msk.nii.gz "*) ;;
		*) echo "WITHOUT: expected names of cases below $(STARTER_DATA), found no $$name." >&2; exit 1;; esac
	done
	mkdir -p $(STARTER_LEVELS)/data $(STARTER_DRAWN)/data $(STARTER)/data $(STARTER)/data-segmentation $(STARTER_WORK)/models \
		$(TURNED_WORK)
	$(call trained_on_phantoms,$(STARTER_FIRST),60 5 20,$(SMALL_HEATMAP),$(SMALL_SEGMENTATION))
	ln -sfn $(abspath $(STARTER_FIRST))/data $(STARTER_LEVELS)/data/phantoms
	ln -sfn $(abspath $(STARTER_FIRST))/data $(STARTER)/data/phantoms
	ln -sfn $(abspath $(STARTER_LEVELS))/data $(STARTER_DRAWN)/data/phantoms
	ln -sfn $(abspath $(STARTER_LEVELS))/data $(STARTER)/data-segmentation/phantoms
	ln -sfn $(abspath $(STARTER))/data/real $(STARTER)/data-segmentation/real
	$(PHANTOM_CASES) --split training --variants half --seed 3001 --cases 48
	$(PHANTOM_CASES) --split training --variants rare --seed 3003 --cases 60
	$(PHANTOM_CASES) --split validation --variants half --seed 5005 --cases 15
	$(RUN) pre_processing_segmentation.py --data-dir $(STARTER_LEVELS)/data --work-dir $(LEVELS_WORK) --preset small
	$(RUN) train_labelling.py --work-dir $(LEVELS_WORK) --preset small $(STARTER_LABELLING)
	set +x
	for mask in $(STARTER_MASKS); do
		name=$$(basename $$mask _seg-vert_msk.nii.gz)
		case " $(strip $(WITHOUT)) " in *" $$name "*) continue;; esac
		ct=$$(find -L $(STARTER_DATA) -name "$${name}_ct.nii.gz" | head -n 1)
		pair="--source pairs --mask $$mask $${ct:+--ct $$ct} --key sub-real-$${name#sub-}"
		set -x
		$(RUN) get_verse_data.py $$pair --data-dir $(STARTER)/data/real
		test -n "$$ct" || $(RUN) get_verse_data.py $$pair --data-dir $(STARTER_DRAWN)/data/real
		set +x
	done
	set -x
	$(RUN) pre_processing_heatmap.py --data-dir $(STARTER)/data --work-dir $(STARTER_WORK) --preset starter
	$(RUN) train_heatmap.py --work-dir $(STARTER_WORK) --preset starter \
		--start-from $(FIRST_WORK)/models/heatmap $(STARTER_OPTIONS) $(STARTER_HEATMAP)
	$(RUN) pre_processing_segmentation.py --data-dir $(STARTER_DRAWN)/data --work-dir $(DRAWN_WORK) --preset starter
	$(RUN) train_segmentation.py --work-dir $(DRAWN_WORK) --preset starter \
		--start-from $(FIRST_WORK)/models/segmentation $(DRAWN_SEGMENTATION) $(STARTER_OPTIONS)
	ln -sfn $(abspath $(DRAWN_WORK))/segmentation $(TURNED_WORK)/segmentation
	$(RUN) train_segmentation.py --work-dir $(TURNED_WORK) --preset starter \
		--start-from $(DRAWN_WORK)/models/segmentation $(TURNED_SEGMENTATION) $(STARTER_OPTIONS)
	$(RUN) pre_processing_segmentation.py --data-dir $(STARTER)/data-segmentation --work-dir $(STARTER_WORK) --preset starter
	$(RUN) train_segmentation.py --work-dir $(STARTER_WORK) --preset starter \
		--start-from $(DRAWN_WORK)/models/segmentation $(STARTER_OPTIONS) $(STARTER_SEGMENTATION)
	ln -sfn $(abspath $(LEVELS_WORK))/models/labelling $(STARTER_WORK)/models/labelling
	set +x
	for network in heatmap labelling; do
		mkdir -p $(STARTER)/shipped/$$network
		cp $(STARTER_WORK)/models/$$network/{best.keras,settings.json} $(STARTER)/shipped/$$network
	done
	$(RUN) -m utils.learning.averaging $(TURNED_WORK)/models/segmentation $(STARTER_WORK)/models/segmentation \
		--shares $(SHARES) --output $(STARTER)/shipped/segmentation
	echo "The networks: $(STARTER_WORK)/models, and what infer.py needs of them in $(STARTER)/shipped."

test: .venv/installed-dev
	$(RUN) -m pytest -n 2 --dist loadfile

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
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv train-small starter starter-*
