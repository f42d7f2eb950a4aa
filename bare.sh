#!/usr/bin/env bash
# Run notebooks with the Python that is there (PYTHON, default python3), on a machine without a network; docs/gpu.md.
#   ./bare.sh OUT --profile gpu
# OUT gets figures, records and executed notebooks as each one ends; the options are those of nkdlib.compendium.run.
# Packages that are missing come from runs/wheels (`make wheels`) and go into runs/bare, never into the system. What is
# computed stays in runs/cache, so a second call goes on from there.
set -euo pipefail
if [ $# = 0 ]; then echo "usage: ./bare.sh OUT [--profile gpu ...]" >&2; exit 2; fi
mkdir -p "$1/runs"
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")"
python=${PYTHON:-python3} own=$PWD/runs/bare names=()
where="import sys, sysconfig as s; print(s.get_path('purelib', s.get_preferred_scheme('prefix'), \
dict.fromkeys(('base', 'platbase'), sys.argv[1])))"
PYTHONPATH=$PWD:$("$python" -c "$where" "$own")
export PYTHONPATH
for wheel in runs/wheels/*.whl; do
  if [ -e "$wheel" ]; then wheel=${wheel##*/}; names+=("${wheel%%-*}"); fi
done
if [ ${#names[@]} -gt 0 ]; then  # pip skips what is there already, of any version
  "$python" -m pip --disable-pip-version-check install --quiet --no-index --find-links runs/wheels --no-deps \
    --no-warn-script-location --prefix "$own" "${names[@]}"
fi
mkdir -p runs/cache
ln -sfn "$PWD/runs/cache" "$out/runs/cache"
exec "$python" -m nkdlib.compendium.run --out "$out" "${@:2}"
