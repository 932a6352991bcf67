#!/usr/bin/env bash
# Build or update .venv, then run the tests: all of them, or `pytest "$@"`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/environment.sh

if [ $# -gt 0 ]; then
  exec python -m pytest "$@"
fi
# Two processes: most of these tests wait for processes of their own. Files stay whole, their fixtures are expensive.
python -m pytest tests/unit tests/contract -n 2 --dist loadfile
# One at a time: each drives Ray and vLLM.
python -m pytest tests/e2e tests/faults
