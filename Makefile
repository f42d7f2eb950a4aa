# Everything runs in a private environment, .venv, made on first use from the pins in requirements.txt.
PROFILE ?= cpu
PYTHON := .venv/bin/python
READY := .venv/.ready
# The shell reads what users set from its environment, so that quotes and spaces in it stay what they are.
export PROFILE DATA EXECUTOR JOBS SEEDS
RUN = $(PYTHON) -m nkdlib.compendium.run --profile="$$PROFILE" $${DATA:+--data="$$DATA"} \
	$${EXECUTOR:+--executor="$$EXECUTOR"} $${JOBS:+--jobs="$$JOBS"} $${SEEDS:+--seeds="$$SEEDS"}

.PHONY: help reproduce night figures verify report test lab data teachers wheels bench lock clean
.DEFAULT_GOAL := help

help:  ## say what there is
	@echo 'make TARGET [PROFILE=smoke|cpu|night|gpu|paper] [DATA=...] [EXECUTOR=...] [JOBS=...] [SEEDS=...]'
	@sed -n 's/^\([a-z]*\):.*## /  \1\t/p' Makefile | expand -t 14

reproduce: $(READY)  ## run the notebooks that changed; results in figures/PROFILE (NOTEBOOKS=... for some of them)
	@$(RUN) $(NOTEBOOKS)

night:  ## say what is left of the evidence and how long it takes, and run it; after an interruption it goes on
	@$(MAKE) --no-print-directory reproduce PROFILE=night

figures: $(READY)  ## draw every figure and table again from the kept artefacts
	@$(RUN) --force $(NOTEBOOKS)

verify: $(READY)  ## judge every claim and compare with the committed reference
	@$(PYTHON) -m nkdlib.compendium.verify --profile="$$PROFILE"

report: $(READY)  ## build the site of all results, runs/report/index.html; it needs no network
	@$(PYTHON) -m nkdlib.compendium.report --profile="$$PROFILE"

test: $(READY)  ## lint, then test everything, the notebooks at PROFILE=smoke too
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=10 $(ARGS)

# One thread, and memory that is kept, as under the runner: the same numbers, several times as fast.
lab: $(READY)  ## open JupyterLab on the notebooks
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=536870912 \
		JUPYTER_PREFER_ENV_PATH=1 $(PYTHON) -m jupyterlab --notebook-dir=notebooks --LabApp.default_url=/lab/tree/00_start_here.ipynb $(ARGS)

data: $(READY)  ## fetch and decode the profile's data, or DATA
	@$(PYTHON) -m nkdlib.data.fetch "$${DATA:-$$($(PYTHON) -c 'import os; from nkdlib.compendium.tiers import TIERS; \
		print(TIERS[os.environ["PROFILE"]].common["data"])')}"

teachers: $(READY)  ## train the teachers of teachers/ again, an hour each on one core; resumes
	@$(PYTHON) -m nkdlib.compendium.teachers cifar10-resnet20 --seed 0 1 2 3 4

# The debugger, completion and the browser's part of the widgets are large, and no run needs them.
wheels:  ## fetch for bare.sh what a machine without a network lacks, 10 MB (FOR=3.12, its Python)
	@rm -rf runs/wheels
	@python3 -m pip download --quiet --disable-pip-version-check --only-binary=:all: --python-version $${FOR:-3.12} \
		--constraint requirements.txt --dest runs/wheels papermill ipykernel ipywidgets
	@python3 -m pip download --quiet --disable-pip-version-check --only-binary=:all: --python-version $${FOR:-3.12} \
		--constraint requirements.txt --dest runs/wheels --no-deps faster-coco-eval
	@rm -f runs/wheels/debugpy-* runs/wheels/jedi-* runs/wheels/widgetsnbextension-*

bench: $(READY)  ## measure speed and memory side by side
	@for bench in benchmarks/bench_*.py; do echo "== $$bench"; $(PYTHON) "$$bench" || exit; done

lock:  ## write requirements.txt anew from pyproject.toml (needs uv; UPGRADE=--upgrade for the newest)
	@uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate $(UPGRADE) \
		--custom-compile-command 'make lock' pyproject.toml --output-file requirements.txt

clean:  ## remove the environment and all that runs left, except figures/
	@rm -rf .venv .setup.lock runs .pytest_cache .ruff_cache *.egg-info

$(READY): requirements.txt pyproject.toml
	@./setup.sh
