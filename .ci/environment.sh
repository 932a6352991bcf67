# Make .venv at the repository root, or bring it up to date, and put it first in PATH. Meant to be sourced.
#
# PyTorch's CPU build comes from the indexes that pip is configured with, PIP_EXTRA_INDEX_URL and PIP_FIND_LINKS included.
# Where none has that build, their CUDA build is taken: it works, and is larger. A second process that
# sources this file while a first one builds waits for the first.

_s2d_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

_s2d_say() { echo "environment: $*"; }
_s2d_fail() { echo "environment: error: $*" >&2; exit 1; }

_s2d_stamp() {
  { cat .ci/requirements-cpu.txt .ci/environment.sh pyproject.toml; pwd; } | sha256sum | cut -d' ' -f1
}

# pip, quiet unless it fails.
_s2d_pip() {
  .venv/bin/python -m pip --quiet --disable-pip-version-check --no-input "$@" >.venv/pip.log 2>&1 && return
  tail -n 15 .venv/pip.log >&2
  return 1
}

_s2d_fits() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; }

# cpu, a CUDA version such as 13.0, or nothing when torch 2.13.0 is not installed. Reads a file: importing takes seconds.
_s2d_torch() {
  .venv/bin/python - <<'PYTHON' 2>/dev/null
import importlib.util, pathlib, re
text = (pathlib.Path(importlib.util.find_spec("torch").origin).parent / "version.py").read_text()
if re.search(r"__version__ = '2\.13\.0", text):
    print(re.search(r"^cuda\b[^=]*= (?:'(.*)'|None)", text, re.M)[1] or "cpu")
PYTHON
}

# torch 2.13.0 into .venv. The CPU build is asked for by its own version, 2.13.0+cpu: pip then answers from the index's
# list of files, and downloads no other build to find out. Only a CUDA build has dependencies that the pinned packages lack.
_s2d_install_torch() {
  _s2d_pip install --no-deps torch==2.13.0+cpu 2>/dev/null && return
  _s2d_say "pip's indexes have no torch 2.13.0+cpu: taking their torch 2.13.0, which on Linux is a CUDA build as a rule."
  _s2d_say ".venv takes 4.4 GB in place of 7.5 with PyTorch's own CPU wheel index in PIP_EXTRA_INDEX_URL (docs/install.md)."
  _s2d_pip install torch==2.13.0
}

# Make an empty .venv with the named interpreter; uv finds or downloads one.
_s2d_venv() {
  rm -rf .venv
  case "$1" in
    uv) uv venv --quiet --seed --python '>=3.11,<3.13' .venv ;;
    *) "$1" -m venv .venv ;;
  esac
}

# .venv with torch 2.13.0, made by the first interpreter for which pip has it.
_s2d_interpreter() {
  if _s2d_fits .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1 && [ -n "$(_s2d_torch)" ]; then
    return
  fi
  local candidate build seen="" why=""
  for candidate in python3 python3.11 python3.12 uv; do
    if [ "$candidate" = uv ]; then
      command -v uv >/dev/null || continue
    else
      _s2d_fits "$candidate" || continue
      candidate="$("$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))')"
    fi
    case "$seen" in *" $candidate "*) continue ;; esac
    seen="$seen $candidate "
    _s2d_venv "$candidate" || { why="$why$candidate cannot make a virtual environment."$'\n'; continue; }
    _s2d_say "$(.venv/bin/python --version) in .venv"
    if _s2d_install_torch; then
      build="$(_s2d_torch)"
      [ "$build" = cpu ] || build="CUDA $build"
      _s2d_say "torch 2.13.0 ($build build)"
      return
    fi
    why="$why$candidate: pip has no torch 2.13.0 for it (its message is above)."$'\n'
    rm -rf .venv
  done
  [ -n "$seen" ] || _s2d_fail "needs Python 3.11 or 3.12 with its venv module, as python3, python3.11 or python3.12, or uv."
  _s2d_fail "no torch 2.13.0."$'\n'"${why}"
}

_s2d_build() {
  exec 9<.ci/environment.sh
  command -v flock >/dev/null && flock 9
  [ "$(cat .venv/stamp 2>/dev/null)" = "$(_s2d_stamp)" ] && return
  _s2d_interpreter
  _s2d_pip install --no-deps -r .ci/requirements-cpu.txt ||
    _s2d_fail "the pinned packages cannot be installed (pycosat has no wheels: it needs a C compiler)."
  _s2d_say "$(grep -c '^[^#]' .ci/requirements-cpu.txt) pinned packages"
  _s2d_pip install --no-deps --no-build-isolation -e . || _s2d_fail "verl-s2d cannot be installed."
  _s2d_say "verl-s2d"
  _s2d_stamp >.venv/stamp
}

(cd "$_s2d_root" && _s2d_build) || { return 1 2>/dev/null || exit 1; }
export PATH="$_s2d_root/.venv/bin:$PATH" VIRTUAL_ENV="$_s2d_root/.venv"
