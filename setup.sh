#!/usr/bin/env bash
# Install the pins of requirements.txt and this checkout into .venv, with uv or else with pip; `make` calls this.
# The stamp .venv/.ready comes last: an environment without it was cut off half-way and is made anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
exec 9> .setup.lock
if command -v flock > /dev/null; then flock 9; fi  # of two calls at once, one sets up and one waits
ready=.venv/.ready
if [ $ready -nt requirements.txt ] && [ $ready -nt pyproject.toml ]; then exit; fi
echo "setting up .venv (about 6 GB; once)"
if [ -t 1 ]; then quiet=; else quiet=--quiet; fi
if [ ! -f $ready ]; then rm -rf .venv; fi
rm -f $ready
if command -v uv > /dev/null; then
  [ -d .venv ] || uv venv $quiet --python ">=3.11" .venv
  install() { uv pip install $quiet --python .venv/bin/python "$@"; }
else
  for python in python3 python3.13 python3.12 python3.11 none; do
    if $python -c "import sys; sys.exit(sys.version_info < (3, 11))" 2> /dev/null; then break; fi
  done
  if [ $python = none ]; then echo "error: Python 3.11 or newer is needed; install it, or uv" >&2; exit 1; fi
  [ -d .venv ] || $python -m venv .venv
  install() { .venv/bin/python -m pip install $quiet --no-compile --disable-pip-version-check "$@"; }
fi
install -r requirements.txt
install --no-deps --no-build-isolation --editable .
# On all cores, once: otherwise each process of a first run compiles what it imports. Some packages hold files for Python 2.
.venv/bin/python -m compileall -q -j 0 .venv/lib > /dev/null 2>&1 || true
.venv/bin/python -c "import torch, torchvision, papermill, nkdlib"
touch $ready
