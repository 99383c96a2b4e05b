# CleftGAN-nb: `make` alone lists what there is to make. Needs make and Python 3.10 or newer; the rest goes into .venv
PYTHON  ?= python3
PROFILE ?= cpu
GPUS    ?= 1
SEEDS   ?= 0 1 2
INPUTS  ?= 900
SEED    ?= 0
ifeq ($(origin JOBS),undefined)
JOBS := $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)))' 2>/dev/null || echo 1)
endif

# What somebody gives is data. Make takes it as it stands ($(value ...): no $ in it is expanded), and a shell sees it as "$$DATA" in its environment, never as text of a command.
GIVEN := PROFILE DATA JOBS GPUS SEEDS INPUTS SEED MORE
$(foreach name,$(GIVEN),$(eval override $(name) := $$(value $(name))))
export $(GIVEN)

VENV  := .venv
STAMP := $(VENV)/.installed
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PATH := $(VIRTUAL_ENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help env test check hostile study seeds bases bench docs lab readme lock clean

help:  ## this list
	@echo "make <target>, one of:"
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-7s %s\n", $$1, $$2}' Makefile
	@printf '%s\n' "variables: PYTHON=$(PYTHON) (3.10 or newer), PROFILE=$$PROFILE (of workflow/profiles, or a file), JOBS=$$JOBS (at once), DATA=$$DATA (folder of photographs), MORE=$$MORE (for snakemake, such as -n)"

env: $(STAMP)  ## the environment in .venv, from the pins of requirements/dev.txt

# Old interpreters must be able to parse this line, so that they can say what is wrong.
$(STAMP): requirements/dev.txt settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "CleftGAN-nb needs Python 3.10 or newer; $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make an environment: is its venv module installed (Debian: python3-venv)?"; rm -rf $(VENV); exit 1; }
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Several processes of one thread each are faster than one process of several. Without a GPU, Triton's interpreter has to be asked for before any notebook imports it.
TESTS := $(or $(filter 1 2 3,$(JOBS)),4)
test: export OMP_NUM_THREADS := 1
test: env  ## every test: the project's own checks first, then the notebooks, then tests/
	python -m pytest -q tests/test_project.py
	$(if $(shell command -v nvidia-smi),,TRITON_INTERPRET=1) nbdev_test --skip_folder_re '^[_.]|^(study|bench)$$' --n_workers $(TESTS)
	nbdev_test --path nbs/study --file_re '^(00|09|1[2-9])_' --n_workers $(TESTS)
	python -m pytest -n $(TESTS) --dist loadfile --ignore tests/test_project.py

check: env  ## what must agree: notebooks and library, notebooks and README, who imports whom
	.ci/synced
	lint-imports --no-logo

hostile: env  ## files that mean harm, made from a seed: make hostile INPUTS=900 SEED=0; what fails is printed with the command that repeats it
	python tests/hostile.py --inputs="$$INPUTS" --seed="$$SEED"

STUDY = python workflow/run.py --profile="$$PROFILE" --data="$$DATA" --cores="$$JOBS" --gpus="$$GPUS"

study: env  ## run the study: make study PROFILE=smoke (minutes), or PROFILE=cpu (an hour); DATA=folder takes photographs
	@python -c 'import snakemake' 2>/dev/null || { echo "The study runs by snakemake, which needs Python 3.11 or newer: make clean, then make study PYTHON=python3.11"; exit 1; }
	@$(STUDY) --preflight $$MORE

seeds: env  ## the measures over several seeds, mean and standard deviation: make seeds PROFILE=smoke SEEDS="0 1 2"
	@$(STUDY) --seeds="$$SEEDS" $$MORE

bases: env  ## go on training the bases that ship: make bases MORE="--hours 2 --networks stylegan3-t", MORE=--ship
	python workflow/bases.py $$MORE

bench: env  ## run the benchmark notebooks of nbs/bench into outputs/bench
	@mkdir -p outputs/bench
	@for notebook in nbs/bench/*.ipynb; do papermill --no-progress-bar --cwd nbs/bench -p out ../../outputs/bench $$notebook outputs/bench/$$(basename $$notebook) || exit 1; done

docs: env  ## the site, from the notebooks, into _docs
	python workflow/docs/build.py

lab: env  ## open the notebooks
	jupyter lab nbs

readme: env  ## README.md from nbs/index.ipynb
	python workflow/readme.py

lock: env  ## new pins: resolve settings.ini for Python 3.10 to 3.13 (the CUDA packages are torch's own to pin)
	python -m pip install --quiet --disable-pip-version-check uv
	uv pip compile pyproject.toml --extra dev --constraint requirements/constraints.in --universal --python-version 3.10 --upgrade --quiet --no-header --annotation-style line --output-file $(VENV)/lock.txt
	{ echo "# made by make lock from settings.ini: do not edit"; grep -vE '^(nvidia-|cuda-)' $(VENV)/lock.txt; } > requirements/dev.txt

clean:  ## remove the environment, the smoke profile's results and leftovers (other results stay)
	rm -rf $(VENV) outputs/smoke outputs/smoke-photographs outputs/.smoke*.json _docs _proc build dist *.egg-info .snakemake .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
