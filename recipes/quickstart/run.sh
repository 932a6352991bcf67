#!/usr/bin/env bash
# Build or update .venv, then run the quickstart; options go to `verl-s2d run` (for example --rows all --seeds 0,1).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. .ci/environment.sh
exec verl-s2d run recipes/quickstart/quickstart.yaml "$@"
