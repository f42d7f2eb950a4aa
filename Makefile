# Everything runs in a private environment, .venv, made on first use from the pins in requirements.txt.
PROFILE ?= cpu
SHELL := /bin/bash
PYTHON := .venv/bin/python
READY := .venv/.ready
LOCK := $(if $(shell command -v flock),flock .setup.lock)
RUN = $(PYTHON) -m nkdlib.compendium.run --profile '$(PROFILE)' $(if $(DATA),--data '$(DATA)') \
	$(if $(EXECUTOR),--executor '$(EXECUTOR)') $(if $(JOBS),--jobs '$(JOBS)') $(if $(SEEDS),--seeds '$(SEEDS)')

.PHONY: help reproduce figures verify report test lab data bench lock clean
.DEFAULT_GOAL := help

help:  ## say what there is
	@echo 'make TARGET [PROFILE=smoke|cpu|gpu|paper] [DATA=...] [EXECUTOR=...] [JOBS=...] [SEEDS=...]'
	@sed -n 's/^\([a-z]*\):.*## /  \1\t/p' Makefile | expand -t 14

reproduce: $(READY)  ## run the notebooks that changed; results in figures/PROFILE (NOTEBOOKS=... for some of them)
	@$(RUN) $(NOTEBOOKS)

figures: $(READY)  ## draw every figure and table again from the kept artefacts
	@$(RUN) --force $(NOTEBOOKS)

verify: $(READY)  ## judge every claim and compare with the committed reference
	@$(PYTHON) -m nkdlib.compendium.verify --profile '$(PROFILE)'

report: $(READY)  ## build the site of all results, runs/report/index.html; it needs no network
	@$(PYTHON) -m nkdlib.compendium.report --profile '$(PROFILE)'

test: $(READY)  ## lint, then test everything, the notebooks at PROFILE=smoke too
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m pytest $(ARGS)

# One thread, and memory that is kept, as under the runner: the same numbers, several times as fast.
lab: $(READY)  ## open JupyterLab on the notebooks
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=536870912 \
		JUPYTER_PREFER_ENV_PATH=1 $(PYTHON) -m jupyterlab --notebook-dir=notebooks --LabApp.default_url=/lab/tree/00_start_here.ipynb $(ARGS)

data: $(READY)  ## fetch and decode the profile's data, or DATA
	@data='$(DATA)'; $(PYTHON) -m nkdlib.data.fetch "$${data:-$$($(PYTHON) -c \
		'from nkdlib.compendium.tiers import PROFILES; print(PROFILES["$(PROFILE)"].data)')}"

bench: $(READY)  ## measure speed and memory side by side
	@for bench in benchmarks/bench_*.py; do echo "== $$bench"; $(PYTHON) "$$bench" || exit; done

trials: $(READY)  ## disturb runs on purpose, use JupyterLab in a browser; writes docs/robustness.md (TRIALS=... for one)
	@cd tests && for trial in $(or $(TRIALS),lab robustness); do ../$(PYTHON) -m trials.$$trial || failed=1; done; \
		exit $${failed:-0}

lock:  ## write requirements.txt anew from pyproject.toml (needs uv; UPGRADE=--upgrade for the newest)
	@uv pip compile --quiet --universal --python-version 3.11 --extra dev --extra ray --extra report --no-annotate $(UPGRADE) \
		--custom-compile-command 'make lock' pyproject.toml --output-file requirements.txt

clean:  ## remove the environment and all that runs left, except figures/
	@rm -rf .venv .setup.lock runs .pytest_cache .ruff_cache *.egg-info

# Made under a lock and stamped last, so a set-up that was cut off is finished by the next call. A package whose
# installation was cut off has no RECORD yet; without its metadata it is installed again.
$(READY): requirements.txt pyproject.toml
	@$(LOCK) $(SHELL) -euo pipefail -c '\
		if [ $@ -nt requirements.txt ] && [ $@ -nt pyproject.toml ]; then exit; fi; \
		echo "setting up .venv (about 6 GB; once)"; \
		quiet=--quiet; if [ -t 1 ]; then quiet=; fi; \
		for info in .venv/lib/python*/site-packages/*.dist-info; do \
			[ -f "$$info/RECORD" ] || rm -rf "$$info"; done; \
		fits="import sys; sys.exit(sys.version_info < (3, 11))"; \
		if command -v uv >/dev/null; then \
			$(PYTHON) -c "$$fits" 2>/dev/null || uv venv $$quiet --clear --python ">=3.11" .venv; \
			install() { uv pip install $$quiet --python $(PYTHON) "$$@"; }; \
		else \
			found=; for python in python3 python3.13 python3.12 python3.11; do \
				if [ -z "$$found" ] && $$python -c "$$fits" 2>/dev/null; then found=$$python; fi; done; \
			if [ -z "$$found" ]; then \
				echo "error: Python 3.11 or newer is needed and none was found; install it, or uv" >&2; exit 1; fi; \
			$(PYTHON) -c "import pip; $$fits" 2>/dev/null || $$found -m venv --clear .venv; \
			install() { $(PYTHON) -m pip install $$quiet --disable-pip-version-check "$$@"; }; \
		fi; \
		install -r requirements.txt; \
		install --no-deps --no-build-isolation --editable .; \
		$(PYTHON) -c "import torch, torchvision, papermill, nkdlib"; \
		touch $@'
