#!/usr/bin/env bash
# Build or update .venv, then run tests.
#
#   bash tests/run.sh              what every change has to pass: unit, contract, one short run of each kind of stage
#   bash tests/run.sh --all        every test there is, before a release: also all e2e, faults, rows and shrunk recipes
#   bash tests/run.sh tests/unit   `python -m pytest` with these arguments
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/environment.sh

chosen=(-m "not slow")
if [ "$*" = --all ]; then
  chosen=()
elif [ $# -gt 0 ]; then
  exec python -m pytest "$@"
fi
# Two processes: most of these tests wait for processes of their own. Files stay whole, their fixtures are expensive.
python -m pytest tests --ignore tests/e2e --ignore tests/faults -n 2 --dist loadfile --durations 10 "${chosen[@]}"
# One at a time: each drives Ray and vLLM.
python -m pytest tests/e2e tests/faults --durations 10 "${chosen[@]}"
